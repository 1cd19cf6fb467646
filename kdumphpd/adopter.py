"""Looks at whose image is loaded, and at what the host's kdump would load.

Between the service, which acts, and `kdumphpd.distribution`, which knows the host's
kdump: one look takes kdump's lock, asks, compares and decides
(`kdumphpd.distribution.adoption`). Uevents need none of this: they change no owner.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kdumphpd.answer import Answer, Informed, deciding_files, image_files
from kdumphpd.distribution import armed, kdumpctl
from kdumphpd.distribution.adoption import (
    AT_WORK,
    Adoption,
    Decision,
    Owner,
    Reason,
    Resolution,
    Seen,
    Whose,
)
from kdumphpd.distribution.auto import Kdump
from kdumphpd.distribution.unit_state import UnitState, unit_state
from kdumphpd.distribution.watch import Changed
from kdumphpd.errors import BusyError, KdumphpdError
from kdumphpd.host import Host
from kdumphpd.load import duty, remembered
from kdumphpd.load.keeper import Look, State
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.report.journal import OnceUntilChanged

#: The daemon has uevents to answer; the end of kdump's work wakes it in any case.
LOCK_SECONDS = 1.0
#: How long kdump's lock may be held before that is worth a record: rebuilding an
#: initrd takes minutes.
LONG_HELD_USEC = 300_000_000
#: Commands of kdumpctl after which what is loaded may be another image.
_LOADING = frozenset(("start", "stop", "reload", "restart", "test"))


class Watch(Protocol):
    """Says which files changed; see `kdumphpd.distribution.watch.FileWatch`."""

    def watch(self, paths: Iterable[Path], opening: Iterable[Path] = ()) -> None:
        """Watch ``paths`` from here on, and when those in ``opening`` are opened."""

    def drain(self) -> Changed:
        """Take what changed, without blocking."""


@dataclass(frozen=True)
class Sight:
    """What a look found, and what follows.

    Attributes:
        host: with what is wanted now; it has its files open.
        look: the look.
        whose: the image that is loaded.
        resolution: what to do about it.
        problem: why what is wanted is not known, so that what is loaded stays; empty if it is.
        busy: who holds kdump's lock; empty if nobody does.
        adoption: what was remembered when it was decided.
    """

    host: Host
    look: Look
    whose: Whose
    resolution: Resolution
    problem: str
    busy: str
    adoption: Adoption

    @property
    def adopt(self) -> bool:
        """Whether to load what is wanted."""
        return self.resolution.decision is Decision.ADOPT

    @property
    def keep(self) -> bool:
        """Whether what is loaded is what is wanted."""
        return self.resolution.decision is Decision.KEEP

    @property
    def wait(self) -> bool:
        """Whether kdump is at work."""
        return self.resolution.decision is Decision.WAIT

    @property
    def lost(self) -> bool:
        """Whether nothing is loaded although nobody meant that."""
        return self.resolution.reason in (Reason.KDUMP_LOST, Reason.KDUMP_FAILED)

    @property
    def why(self) -> str:
        """The reason as a sentence, with the remedy if we stay out."""
        kdump, reason = self.host.kdump, self.resolution.reason
        if self.resolution.decision is not Decision.STAY_OUT or kdump is None:
            return reason.value
        if self.problem:
            return "another image is loaded, and what kdump would load is not known"
        if reason is Reason.KDUMP_FAILED:
            return f"{reason.value}; journalctl -u {kdump.unit} says why"
        return f"{reason.value}; {kdump.restart} loads kdump's image"


class Adopter:
    """Remembers what kdump did between two looks.

    Args:
        clock: microseconds of CLOCK_MONOTONIC.
        watch: for kdump's files.
        state_of: the state of a unit; `unit_state`.
    """

    def __init__(
        self,
        clock: Callable[[], int],
        watch: Watch,
        state_of: Callable[[str], UnitState] = unit_state,
    ) -> None:
        self._clock = clock
        self._watch = watch
        self._state_of = state_of
        self._watched: frozenset[Path] = frozenset()
        self._answer = Answer()
        self._adoption = Adoption()
        # Of kdumpctl, since its lock was closed the last time.
        self._commands: frozenset[str] = frozenset()
        # Whether kdump has really loaded is not known: its lock was closed, and no more.
        self._unsure = False
        self._left_alone: tuple[State, str] | None = None
        self._busy_since: int | None = None
        self._said = {name: OnceUntilChanged() for name in ("asked", "lock", "remark")}

    @property
    def look_at(self) -> int | None:
        """When the next look is due; None if only a hint makes it so."""
        return self._adoption.look_at

    def due(self) -> bool:
        """Whether a look is due."""
        return self._adoption.due(self._clock())

    def drain(self, host: Host) -> None:
        """Note what kdump did since the last time."""
        changed, kdump = self._watch.drain(), host.kdump
        if changed.opened:
            self._commands |= kdumpctl.commands(host.root)
        closed = kdump is not None and kdump.lock in changed.paths
        loaded = kdump is not None and not changed.paths.isdisjoint(kdump.loaded)
        if closed or loaded or changed.lost:
            self._acted(loaded=loaded)
        elif changed:
            self._adoption = self._adoption.files_changed(self._clock())

    def _acted(self, *, loaded: bool) -> None:
        """Note that kdump is through, with the commands that were seen of it."""
        commands, self._commands = self._commands, frozenset()
        if commands and commands.isdisjoint(_LOADING) and not loaded:
            return  # kdumpctl status, and the like
        stopped = commands & _LOADING == {kdumpctl.STOP}
        self._unsure = not (loaded or commands)
        self._adoption = self._adoption.acted(self._clock(), stopped=stopped)

    def ran_command(self, host: Host) -> None:
        """Note that kdump's own command ran for us: its lock says nothing new."""
        changed, self._commands = self._watch.drain(), frozenset()
        lock = {host.kdump.lock} if host.kdump else set()
        if changed.lost or not changed.paths <= lock:
            self._adoption = self._adoption.files_changed(self._clock())

    def noticed(self, look: Look) -> None:
        """Note that between two looks an image is not ours, or gone.

        If kdump did it, its own hint is on its way; so not at once.
        """
        known = self._left_alone is not None and self._left_alone[0] is look.state
        if not known and self._adoption.look_at is None:
            self._adoption = self._adoption.files_changed(self._clock())

    def news(self, sight: Sight) -> list[str]:
        """What went wrong around a look and has not been said yet."""
        problem = sight.problem and (
            f"what kdump would load is not known, what is loaded stays: {sight.problem}"
        )
        news = [problem] if self._is_news("asked", problem) else []
        return [*news, *self.held_up(sight.busy)]

    def remark(self, sight: Sight, *, by_us: bool) -> str:
        """What to tell of how the image is loaded, once; empty if there is nothing.

        Args:
            sight: a look that was followed.
            by_us: what is loaded after it was loaded by kexec_load(2), and so made by us.
        """
        spec = sight.host.source.known
        text = spec.remark if spec and by_us else ""
        return text if text and self._is_news("remark", text) else ""

    def held_up(self, busy: str) -> list[str]:
        """What to say of kdump's lock.

        Args:
            busy: who holds it; empty if we got it.

        Returns:
            ``busy``, once, when that has been so for long.
        """
        now = self._clock()
        if not busy:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
        held = self._busy_since is not None and now - self._busy_since >= LONG_HELD_USEC
        return [busy] if self._is_news("lock", busy if held else "") else []

    def _is_news(self, name: str, text: str) -> bool:
        if not text:
            self._said[name].over()
            return False
        return self._said[name].is_new(text)

    @contextlib.contextmanager
    def sight(
        self, host: Host, *, lost_by_us: bool = False, fresh: bool = False
    ) -> Iterator[Sight]:
        """Look, with kdump's lock held to the end of the block if that can be had.

        Args:
            host: with what kdump answered so far, if it was asked.
            lost_by_us: a load of ours failed and left nothing.
            fresh: the configuration was read again: as at the first look.

        Raises:
            KdumphpdError: the machine cannot be looked at; with a configuration of our own
                also if the files that it names cannot be used.
        """
        # The files first: what changes while we ask and look is a hint to come.
        self._watch_files(host)
        with contextlib.ExitStack() as stack:
            busy = ""
            try:
                stack.enter_context(host.lock.held(LOCK_SECONDS))
            except BusyError as error:
                busy = str(error)
            # Who has just let go of the lock has acted.
            self.drain(host)
            adoption = self._remembered(host, lost_by_us, fresh)
            yield self._decide(host, adoption, busy)

    def _remembered(self, host: Host, lost_by_us: bool, fresh: bool) -> Adoption:
        before = self._adoption
        first = before.fresh and not fresh  # and not the configuration read again
        return replace(
            before,
            fresh=before.fresh or fresh,
            lost_by_us=lost_by_us or before.lost_by_us or duty.load_is_owed(host.root),
            kdump_stopped=before.kdump_stopped or (first and duty.stop_was_seen(host.root)),
        )

    def _decide(self, host: Host, adoption: Adoption, busy: str) -> Sight:
        look = host.keeper.look()
        informed = Informed(host)
        if not busy:
            try:
                informed = self._answer.renew(host, anew=adoption.fresh)
            except BusyError as error:
                busy = str(error)
        whose, informed = self._whose(informed, look, adoption.fresh, busy)
        self._watch_files(informed.host)
        if self._is_as_left(host, look):
            # kdump let go of its lock, and the image is the one from before.
            adoption = replace(adoption, kdump_acted=False)
        seen = Seen(whose, host.owner, kdump_busy=bool(busy), unit=self._unit(host, whose))
        resolution = adoption.resolve(seen)
        return Sight(informed.host, look, whose, resolution, informed.problem, busy, adoption)

    def _whose(
        self, informed: Informed, look: Look, fresh: bool, busy: str
    ) -> tuple[Whose, Informed]:
        """Whose image is loaded; a problem only if it matters for that."""
        if look.state is State.UNLOADED:
            return Whose.NOTHING, replace(informed, problem="")
        if look.ours:
            return _ours(informed, look, compare=not busy and (fresh or informed.asked))
        host = informed.host
        if informed.problem or busy:
            return Whose.OTHER, informed
        if host.owner is Owner.CONFIGURATION:
            return Whose.UNKNOWN, informed
        try:
            whose = _identify(host)
            if whose is not Whose.KDUMPS and not informed.asked:
                # Not all that decides kdump's answer is a file: watchdogs, for one.
                informed = self._answer.renew(host, anew=True)
                whose = Whose.OTHER if informed.problem else _identify(informed.host)
        except KdumphpdError as error:
            return Whose.OTHER, replace(informed, problem=str(error))
        return whose, informed

    def _is_as_left(self, host: Host, look: Look) -> bool:
        if not self._unsure or self._left_alone is None or look.state is not State.FOREIGN:
            return False
        return self._left_alone == (look.state, _end(host))

    def _unit(self, host: Host, whose: Whose) -> UnitState:
        """Asked only where it decides something."""
        unsure = (Whose.NOTHING, Whose.LIKE_KDUMPS, Whose.UNKNOWN)
        if host.kdump is None or host.owner is Owner.CONFIGURATION or whose not in unsure:
            return UnitState.UNKNOWN
        return self._state_of(host.kdump.unit)

    def done(self, sight: Sight) -> None:
        """Note that what ``sight`` asks for was done."""
        now, root = self._clock(), sight.host.root
        if sight.problem:
            # Not decided: whatever is remembered counts when it is known.
            self._adoption = sight.adoption.failed(now, armed=True)
            return
        if sight.busy:
            self._adoption = sight.adoption.decided(now, AT_WORK)
            return
        self._adoption = sight.adoption.decided(now, sight.resolution)
        out, state = sight.resolution.decision is Decision.STAY_OUT, sight.look.state
        end = _end(sight.host) if out and state is State.FOREIGN else ""
        self._left_alone = (state, end) if out else None
        if self._adoption.kdump_stopped:
            duty.note_stop(root)
        elif not sight.adopt:
            duty.settle(root)

    def forget(self) -> None:
        """Ask again at the next look: the latest answer was not put to use."""
        self._answer.forget()

    def failed(self, sight: Sight | None = None) -> None:
        """Note that it could not be done; it is tried again at growing gaps."""
        adoption = sight.adoption if sight else self._adoption
        self._adoption = adoption.failed(self._clock(), armed=True)

    def postponed(self, until: int) -> None:
        """Note that it has to wait."""
        self._adoption = replace(self._adoption, look_at=until)

    def _watch_files(self, host: Host) -> None:
        kdump = host.kdump
        if host.owner is Owner.CONFIGURATION or kdump is None:
            paths: frozenset[Path] = frozenset()
        else:
            own = (kdump.lock, *kdump.loaded, *deciding_files(host))
            paths = frozenset((*own, *image_files(host)))
        if paths != self._watched:
            self._watched = paths
            self._watch.watch(paths, _opening(kdump) if paths else ())


def _opening(kdump: Kdump | None) -> tuple[Path, ...]:
    return (kdump.lock,) if kdump is not None and kdump.tells_command else ()


def _identify(host: Host) -> Whose:
    """Whose an image is that is not ours."""
    with PhysicalMemory(host.root) as memory:
        reserved = reservations.find(host.root, host.reader.resources()).ranges
        addresses = host.reader.fixed().addresses
        with host.source.protected_mode_part(host.reader) as kernel, kernel.view() as view:
            return armed.identify(host.root, memory, addresses, reserved, host.source.spec, view)


def _ours(informed: Informed, look: Look, *, compare: bool) -> tuple[Whose, Informed]:
    host = informed.host
    if informed.problem or not compare:
        return Whose.OURS, informed
    try:
        return (Whose.OURS if host.keeper.matches(look) else Whose.OURS_OTHER), informed
    except KdumphpdError as error:
        if host.owner is Owner.CONFIGURATION:
            raise
        return Whose.OURS, replace(informed, problem=str(error))


def _end(host: Host) -> str:
    """What tells one loaded image from another; empty if it cannot be read."""
    try:
        place = reservations.find(host.root, host.reader.resources()).main
        with PhysicalMemory(host.root) as memory:
            return remembered.witness(memory, place)
    except KdumphpdError:
        return ""
