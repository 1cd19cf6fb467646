"""Looks at whose image is loaded, and at what the host's kdump would load.

Between the service, which acts, and `kdumphpd.distribution`, which knows the host's
kdump: one look takes kdump's lock, has the hotplug rules, asks, compares and decides
(`kdumphpd.distribution.adoption`). Uevents need none of this: they change no owner.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kdumphpd.distribution import armed, unit_state
from kdumphpd.distribution.adoption import Adoption, Decision, Loaded, Owner, Seen, Verdict
from kdumphpd.distribution.hotplug_rules import HotplugRules
from kdumphpd.distribution.watch import Changed
from kdumphpd.errors import BusyError, KdumphpdError
from kdumphpd.host import Host
from kdumphpd.load.keeper import Look, State
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.report.journal import OnceUntilChanged

#: The daemon has uevents to answer; the end of kdump's work wakes it in any case.
LOCK_SECONDS = 1.0
#: How long kdump's lock may be held before that is worth a record: rebuilding an
#: initrd takes minutes.
LONG_HELD_USEC = 300_000_000


class Watch(Protocol):
    """Says which files changed; see `kdumphpd.distribution.watch.FileWatch`."""

    def watch(self, paths: Iterable[Path]) -> None:
        """Watch ``paths`` from here on."""

    def drain(self) -> Changed:
        """Take what changed, without blocking."""


@dataclass(frozen=True)
class Sight:
    """What a look found, and what follows.

    Attributes:
        host: with what is wanted now; it has its files open.
        problem: why that is not known, so that what is loaded stays; empty if it is.
        busy: who holds kdump's lock; empty if nobody does.
        adoption: what was remembered when it was decided.
        again: something changed while it was asked about.
    """

    host: Host
    look: Look
    verdict: Verdict
    problem: str
    busy: str
    adoption: Adoption
    again: bool

    @property
    def adopt(self) -> bool:
        """Whether to load what is wanted."""
        return self.verdict.decision is Decision.ADOPT

    @property
    def keep(self) -> bool:
        """Whether what is loaded is what is wanted."""
        return self.verdict.decision is Decision.KEEP

    @property
    def wait(self) -> bool:
        """Whether kdump is at work."""
        return self.verdict.decision is Decision.WAIT

    @property
    def why(self) -> str:
        """The reason as a sentence, with the remedy if we stay out."""
        if self.verdict.decision is not Decision.STAY_OUT or self.host.kdump is None:
            return self.verdict.reason.value
        if self.problem:
            return "another image is loaded, and what kdump would load is not known"
        return f"{self.verdict.reason.value}; {self.host.kdump.restart} loads kdump's image"


class Adopter:
    """Remembers what kdump did between two looks.

    Args:
        clock: microseconds of CLOCK_MONOTONIC.
        rules: the host's hotplug rules.
        watch: for kdump's files.
        is_running: whether a unit is active; `unit_state.is_running`.
    """

    def __init__(
        self,
        clock: Callable[[], int],
        rules: HotplugRules,
        watch: Watch,
        is_running: Callable[[str], bool | None] = unit_state.is_running,
    ) -> None:
        self._clock = clock
        self._rules = rules
        self._watch = watch
        self._watched: frozenset[Path] = frozenset()
        self._is_running = is_running
        self._adoption = Adoption()
        self._stays_out: State | None = None
        self._rules_problem = ""
        self._busy_since: int | None = None
        self._said = {name: OnceUntilChanged() for name in ("asked", "rules", "lock")}

    @property
    def look_at(self) -> int | None:
        """When the next look is due; None if only a hint makes it so."""
        return self._adoption.look_at

    def due(self) -> bool:
        """Whether a look is due."""
        return self._adoption.due(self._clock())

    def drain(self, host: Host) -> bool:
        """Note what kdump did since the last time; whether it did anything."""
        changed = self._watch.drain()
        acted = host.kdump is not None and not changed.paths.isdisjoint(host.kdump.loaded)
        if acted or changed.lost:
            self._adoption = self._adoption.acted(self._clock())
        elif changed:
            self._adoption = self._adoption.files_changed(self._clock())
        return bool(changed)

    def noticed(self, look: Look) -> None:
        """Note that between two looks an image is not ours, or gone.

        If kdump did it, its own hint is on its way; so not at once.
        """
        if look.state is not self._stays_out and self._adoption.look_at is None:
            self._adoption = self._adoption.files_changed(self._clock())

    def news(self, sight: Sight) -> list[str]:
        """What went wrong around a look and has not been said yet."""
        problem = sight.problem and (
            f"what kdump would load is not known, what is loaded stays: {sight.problem}"
        )
        rules = self._rules_problem and f"hotplug rules: {self._rules_problem}"
        texts = {"asked": problem, "rules": rules}
        news = [text for name, text in texts.items() if self._is_news(name, text)]
        return [*news, *self.held_up(sight.busy)]

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
            host: with what is to be asked about; a new one asks anew.
            lost_by_us: a load of ours failed and left nothing.
            fresh: the configuration was read again: as at the first look.

        Raises:
            KdumphpdError: the machine cannot be looked at; with a configuration of our own
                also if the files that it names cannot be used.
        """
        # The files first: what changes while we ask and look is a hint to come.
        self._watch_files(_own_files(host) | self._watched)
        problem = _problem(host)
        self._watch_files(_own_files(host) | _image_files(host))
        with contextlib.ExitStack() as stack:
            busy = ""
            try:
                stack.enter_context(host.lock.held(LOCK_SECONDS))
            except BusyError as error:
                busy = str(error)
            # Who has just let go of the lock has acted.
            again = self.drain(host)
            adoption = replace(
                self._adoption, lost_by_us=lost_by_us, fresh=self._adoption.fresh or fresh
            )
            self._guard(host, problem)
            look = host.keeper.look()
            loaded, problem = self._loaded(host, look, problem)
            seen = Seen(
                loaded,
                host.owner,
                kdump_busy=bool(busy),
                kdump_running=self._kdump_running(host, loaded, adoption),
            )
            yield Sight(host, look, adoption.decide(seen), problem, busy, adoption, again)

    def done(self, sight: Sight) -> None:
        """Note that what ``sight`` asks for was done."""
        if sight.problem:
            # Not decided: whatever is remembered counts when it is known.
            self._adoption = sight.adoption.failed(self._clock(), armed=True)
            return
        self._adoption = sight.adoption.decided(self._clock(), sight.verdict)
        out = sight.verdict.decision is Decision.STAY_OUT
        self._stays_out = sight.look.state if out else None
        if sight.again:
            self._adoption = self._adoption.files_changed(self._clock())

    def failed(self, sight: Sight | None = None) -> None:
        """Note that it could not be done; it is tried again at growing gaps."""
        adoption = sight.adoption if sight else self._adoption
        self._adoption = adoption.failed(self._clock(), armed=True)

    def postponed(self, until: int) -> None:
        """Note that it has to wait."""
        self._adoption = replace(self._adoption, look_at=until)

    def _watch_files(self, paths: frozenset[Path]) -> None:
        if paths != self._watched:
            self._watched = paths
            self._watch.watch(paths)

    def _guard(self, host: Host, problem: str) -> None:
        """Have the hotplug rules before the look, unless there is nothing that we can do."""
        helpless = problem and host.keeper.look().state is State.FOREIGN
        self._rules_problem = self._rules.give_back() if helpless else self._rules.take_over()

    def _loaded(self, host: Host, look: Look, problem: str) -> tuple[Loaded, str]:
        """What is loaded, and the problem if it matters for that."""
        if look.state is State.UNLOADED:
            return Loaded.NOTHING, ""
        if look.ours:
            return _ours(host, look, problem)
        if problem:
            return Loaded.OTHER, problem
        if host.owner is Owner.CONFIGURATION:
            return Loaded.UNTOLD, ""
        with PhysicalMemory(host.root) as memory:
            reserved = reservations.find(host.root, host.reader.resources()).ranges
            addresses = host.reader.fixed().addresses
            return armed.identify(host.root, memory, addresses, reserved, host.source.spec), ""

    def _kdump_running(self, host: Host, loaded: Loaded, adoption: Adoption) -> bool | None:
        """Ask only where it decides something."""
        asked = adoption.lost_by_us if loaded is Loaded.NOTHING else adoption.fresh
        if host.kdump is None or host.owner is Owner.CONFIGURATION or not asked:
            return None
        if loaded not in (Loaded.NOTHING, Loaded.UNTOLD):
            return None
        return self._is_running(host.kdump.unit)


def _own_files(host: Host) -> frozenset[Path]:
    """Files that say when kdump has acted, or would load something else."""
    if host.owner is Owner.CONFIGURATION or host.kdump is None:
        return frozenset()
    return frozenset((*host.kdump.loaded, *host.kdump.asked))


def _image_files(host: Host) -> frozenset[Path]:
    """The kernel and the initrd, where kdump has said which."""
    spec = host.source.known
    if host.owner is Owner.CONFIGURATION or spec is None:
        return frozenset()
    return frozenset((spec.kernel, spec.initrd))


def _ours(host: Host, look: Look, problem: str) -> tuple[Loaded, str]:
    if not problem:
        try:
            return (Loaded.OURS if host.keeper.matches(look) else Loaded.OURS_OTHER), ""
        except KdumphpdError as error:
            if host.owner is Owner.CONFIGURATION:
                raise
            problem = str(error)
    return Loaded.OURS, problem


def _problem(host: Host) -> str:
    if host.owner is Owner.CONFIGURATION:
        return ""
    try:
        host.source.spec  # noqa: B018
    except KdumphpdError as error:
        return str(error)
    return ""
