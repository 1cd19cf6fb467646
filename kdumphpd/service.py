"""The service without its file descriptors: what is done at start, for a burst, at an audit.

The daemon (`kdumphpd.daemon`) feeds it uevents, signals and the time. What it
does is recorded; what it cannot mend it tries again at growing gaps.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace

from kdumphpd.audit.audit import Audit, audit
from kdumphpd.audit.compare import Verdict
from kdumphpd.errors import KdumphpdError
from kdumphpd.events.burst import Action, Burst, Outcome, Pace
from kdumphpd.events.monitor import Drained
from kdumphpd.host import Host
from kdumphpd.load.choice import Choice, News
from kdumphpd.load.keeper import Look, Mended, State
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.ranges import total
from kdumphpd.report.fields import Details, duration_text
from kdumphpd.report.journal import OnceUntilChanged, Reporter
from kdumphpd.report.records import Kind, Priority
from kdumphpd.report.text import machine_summary

_RELOAD = "systemctl reload kdumphpd loads it again"


class Due(enum.Enum):
    """What the next look has to do although no uevent asks for it."""

    NOTHING = "nothing"
    HEADER = "header"  # an audit found the header stale
    IMAGE = "image"  # an audit found the image damaged
    RELOAD = "reload"  # the image of a new configuration could not be loaded
    REARM = "rearm"  # nothing is loaded, by a failure of ours


class Service:
    """Keeps one host's crash image current and says what it did.

    Args:
        open_host: reads the configuration and puts the host together.
        reporter: takes the records.
        clock: microseconds of CLOCK_MONOTONIC.
    """

    def __init__(
        self, open_host: Callable[[], Host], reporter: Reporter, clock: Callable[[], int]
    ) -> None:
        self._open_host = open_host
        self._reporter = reporter
        self._clock = clock
        self._host = open_host()
        self._burst = Burst.begin(Pace.of(self._host.config), clock())
        self._trouble = OnceUntilChanged()
        self._audited = OnceUntilChanged()
        self._generation = 0
        self._due = Due.NOTHING
        self._ours = False  # the last look found our image
        self._choice = Choice()
        self._blind = False  # the last look found nothing that can be read
        self._status = "starting"

    @property
    def deadline(self) -> int:
        """When `turn` has something to do if nothing comes in, in the clock's microseconds."""
        return self._burst.deadline

    @property
    def status(self) -> str:
        """One line for the service manager."""
        return self._status

    def start(self) -> None:
        """Adopt the loaded image if it is the configured one, else load that.

        Raises:
            KdumphpdError: neither could be done; what was loaded before still is,
                or a CRIT record says that nothing is.
        """
        try:
            look = self._host.keeper.look()
        except KdumphpdError as error:
            self._start_blind(error)
            return
        if look.ours and self._host.keeper.matches(look):
            self._record(Kind.ADOPTED, "the loaded image is the configured one", _details(look))
            if look.state is State.CURRENT or self._mend(look, Kind.REPAIRED):
                self._status = _complete(look)
            self._record(Kind.STARTED, f"watching; {self._status}", _details(look))
        else:
            if look.state is State.FOREIGN:
                self._record(
                    Kind.FOREIGN,
                    "another program's image is loaded; loading the configured one instead",
                    _details(look),
                )
            mended = self._host.keeper.load(look.machine)
            if not self._report_load(Kind.STARTED, "watching; image loaded", look, mended):
                raise mended.error()
        self._hint()

    def _start_blind(self, error: KdumphpdError) -> None:
        """Go on where the kernel keeps an image that nobody may read; else raise ``error``."""
        root = self._host.root
        try:
            kept = reservations.crash_loaded(root) and reservations.kernel_updates(root)
        except KdumphpdError:
            kept = False
        if not kept:
            raise error
        self._complain(f"cannot look: {error}", Verdict.UNKNOWN)
        details = Details(armed=True, backend="kernel", verdict=Verdict.UNKNOWN.value)
        text = "watching; the kernel updates the loaded image, what it leaves cannot be seen"
        self._record(Kind.STARTED, text, details)
        self._hint()

    def reload(self) -> None:
        """Read the configuration again and load the image if that asks for another one.

        A configuration that cannot be used is recorded, and the old one stays.
        """
        host = None
        try:
            host = self._open_host()
            look = host.keeper.look()
            current = host.keeper.matches(look)
        except KdumphpdError as error:
            if host is not None:
                host.source.close()
            text = f"the old configuration stays: {error}"
            self._record(Kind.STATUS, text, Details(), Priority.ERR)
            return
        self._host.source.close()
        self._host = host
        self._burst = self._burst.paced(Pace.of(host.config), self._clock())
        self._trouble = OnceUntilChanged()
        wanted = Due.REARM if look.state is State.UNLOADED else Due.RELOAD
        self._due = Due.NOTHING if current else wanted
        if current:
            self._record(
                Kind.ADOPTED, "configuration read again, the image is the same", _details(look)
            )
        else:
            mended = host.keeper.load(look.machine)
            self._report_load(Kind.UPDATED, "configuration read again, image loaded", look, mended)
        self._hint()

    def uevents(self, drained: Drained) -> None:
        """Note uevents that came in."""
        now = self._clock()
        if drained.uevents:
            self._burst = self._burst.uevent(now, len(drained.uevents))
        if drained.lost:
            self._burst = self._burst.lost(now)

    def turn(self) -> None:
        """Do what is due, if anything is."""
        action = self._burst.due(self._clock())
        if action is Action.CHECK:
            self._check()
        elif action is Action.AUDIT:
            self._audit()

    def report_status(self) -> None:
        """Audit now and record the result (SIGUSR1)."""
        found = audit(self._host.root, self._host.reader)
        self._record_audit(Kind.STATUS, _verdict_text(found), found)

    def stop(self) -> None:
        """Say that nobody keeps the image from here on."""
        text = "stopped; what is loaded stays, nothing keeps it current"
        self._record(Kind.STOPPED, text, Details())
        self._host.source.close()

    def _check(self) -> None:
        fingerprint: object = None
        self._ours = self._blind = False
        try:
            look = self._host.keeper.look()
        except KdumphpdError as error:
            outcome, self._blind = Outcome.FAILED, True
            self._complain(f"cannot look: {error}", Verdict.UNKNOWN)
        else:
            fingerprint = (look.machine, look.state)
            self._ours = look.ours
            self._note_choice(self._choice.looked(look), look)
            outcome = self._answer(look)
        self._burst = self._burst.checked(self._clock(), fingerprint, outcome)
        if not self._burst.active:
            self._close_burst(outcome)

    def _answer(self, look: Look) -> Outcome:
        unloaded = look.state is State.UNLOADED
        if look.state is State.FOREIGN or (unloaded and self._due is not Due.REARM):
            self._stay_out(look)
            return Outcome.CURRENT
        if look.state is State.CURRENT and self._due in (Due.NOTHING, Due.HEADER):
            self._due = Due.NOTHING
            self._trouble.over()
            self._status = _complete(look)
            return Outcome.CURRENT
        if self._due is Due.NOTHING and self._choice.leaves(look, self._clock(), self._patience):
            self._status = "stale: the kernel, which updates this header, gets time to do so"
            return Outcome.HELD
        # Where nothing is loaded, or nothing that would start, there is no protection to lose.
        armed = not unloaded and self._due is not Due.IMAGE
        if armed and not self._burst.may_update(self._clock()):
            self._status = f"{look.state.value}: an update waits, the last one was just now"
            return Outcome.HELD
        return Outcome.UPDATED if self._act(look) else Outcome.FAILED

    def _act(self, look: Look) -> bool:
        """Load what is due; whether it succeeded."""
        if look.state is State.STALE and self._due is not Due.IMAGE:
            return self._mend(look, Kind.REPAIRED if self._due is Due.HEADER else Kind.UPDATED)
        what = {Due.IMAGE: "the image was damaged", Due.RELOAD: "the configured image is loaded"}
        mended = self._host.keeper.load(look.machine)
        return self._report_load(Kind.REPAIRED, what.get(self._due, "armed again"), look, mended)

    def _stay_out(self, look: Look) -> None:
        """What is loaded, or not, is somebody's decision: respect it, and say so once."""
        self._due = Due.NOTHING
        if look.state is State.FOREIGN:
            kind, text = Kind.FOREIGN, "another program loaded its own image, leaving it alone"
        else:
            kind, text = Kind.DISARMED, "another program unloaded the crash image"
        self._status = text
        if self._trouble.is_new(kind):
            self._record(kind, f"{text}; {_RELOAD}", _details(look), Priority.WARNING)

    def _mend(self, look: Look, kind: Kind) -> bool:
        change = str(look.change) if look.change else "the loaded header cannot be read"
        return self._report_load(kind, change, look, self._host.keeper.mend(look))

    def _report_load(self, kind: Kind, what: str, look: Look, mended: Mended) -> bool:
        """Record a load and what failed before it; whether it succeeded."""
        now = self._clock()
        loaded = mended.loaded
        if loaded is None:
            self._report_failure(look, mended)
            return False
        if loaded.backend != "delta" or self._due is not Due.RELOAD:
            self._due = Due.NOTHING
        details = replace(_details(look), armed=True, backend=loaded.backend)
        if mended.failures:
            self._record(Kind.FALLBACK, "; ".join(mended.failures), details)
        self._note_choice(self._choice.loaded(mended), look)
        self._trouble.over()
        self._generation += 1
        # Where nothing was loaded, the call took no protection away.
        cost = loaded.unarmed_usec if look.state is not State.UNLOADED else 0
        self._burst = self._burst.updated(now, cost)
        began = self._burst.run_start
        unarmed = duration_text(loaded.unarmed_usec)
        self._record(
            kind,
            f"{what}; {loaded.backend} load, not armed for {unarmed}",
            replace(
                details,
                unarmed_usec=loaded.unarmed_usec,
                latency_usec=None if began is None else max(0, loaded.live_at - began),
                verdict=None if loaded.problem else Verdict.COMPLETE.value,
            ),
        )
        self._status = loaded.problem or _complete(look)
        return True

    def _report_failure(self, look: Look, mended: Mended) -> None:
        problem = "; ".join(mended.failures)
        unloaded = not (mended.armed or mended.dropped or look.state is State.UNLOADED)
        if mended.busy or mended.overtaken or unloaded:
            # Another program is at work: the next look sees what it has done.
            self._status = f"trying again: {problem}"
        elif not mended.armed:
            self._due = Due.REARM
            self._complain(problem, Verdict.UNLOADED)
        elif self._due is Due.IMAGE:
            self._complain(problem, Verdict.DAMAGED)
        else:
            current = look.state is State.CURRENT
            self._complain(problem, Verdict.COMPLETE if current else Verdict.STALE)

    def _complain(self, problem: str, verdict: Verdict) -> None:
        """Record what could not be mended: once, until something else is the matter."""
        unloaded, unknown = verdict is Verdict.UNLOADED, verdict is Verdict.UNKNOWN
        self._status = f"{verdict.value}: {problem}"
        if not self._trouble.is_new((verdict, problem)):
            return
        self._record(
            Kind.DISARMED if unloaded else Kind.FALLBACK,
            f"{'NO CRASH KERNEL IS LOADED: ' if unloaded else ''}{problem}; trying again",
            Details(armed=None if unknown else not unloaded, verdict=verdict.value),
            Priority.ERR if unknown else Priority.CRIT,
        )

    def _close_burst(self, outcome: Outcome) -> None:
        burst = self._burst
        if self._blind:
            return  # that is said already
        uevents = _counted(burst.uevents, "uevent")
        idle = not burst.updates and not self._choice.managed
        if burst.uevents and idle and self._ours and outcome is Outcome.CURRENT:
            text = f"{uevents} changed nothing that a vmcore needs"
            self._record(Kind.UNCHANGED, text, Details(armed=True))
        elif burst.updates or burst.uevents:
            # Our loads were verified by their digest already; this is about the machine.
            found = audit(self._host.root, self._host.reader, verify=False)
            text = f"{_counted(burst.updates, 'update')} for {uevents}; {_verdict_text(found)}"
            self._record_audit(Kind.AUDITED, text, found)

    def _audit(self) -> None:
        found = audit(self._host.root, self._host.reader)
        self._record_audit(Kind.AUDITED, _verdict_text(found), found)
        if found.managed_by == "kdumphpd" and found.verdict is Verdict.DAMAGED:
            self._due = Due.IMAGE
        elif found.managed_by == "kdumphpd" and found.verdict is Verdict.STALE:
            self._due = Due.HEADER if self._due is Due.NOTHING else self._due
        # Back-off ends after a while, what is due does not; and that another program's
        # image is loaded, or none, is for the next look to see and say.
        ask = self._due is not Due.NOTHING or found.managed_by != "kdumphpd"
        self._burst = self._burst.audited(self._clock(), stale=ask)

    def _hint(self) -> None:
        """Look once more soon: something may have changed since the look that was acted on."""
        self._burst = self._burst.audited(self._clock(), stale=True)

    def _record_audit(self, kind: Kind, text: str, found: Audit) -> None:
        self._status = _verdict_text(found)
        header = found.header
        details = Details(armed=found.loaded, verdict=found.verdict.value)
        if header is not None:
            details = replace(
                details,
                cpus=len(header.cpus),
                memory_bytes=total(header.memory),
                ranges=len(header.memory),
            )
        known = self._blind and found.verdict is Verdict.UNKNOWN
        if kind is Kind.AUDITED and (known or not self._audited.is_new(text)):
            return
        priority = None if found.verdict is Verdict.COMPLETE else Priority.WARNING
        self._record(kind, text, details, priority)

    @property
    def _patience(self) -> int:
        """Microseconds that the kernel gets for a header that it updates itself."""
        return self._burst.pace.interval_usec

    def _note_choice(self, news: News | None, look: Look) -> None:
        """Record which way of loading is taken and why, when that is news."""
        if news is not None:
            priority = Priority.INFO if news.backend in (None, "kernel", "full", "delta") else None
            details = replace(_details(look), backend=news.backend)
            self._record(Kind.FALLBACK, news.text, details, priority)

    def _record(
        self, kind: Kind, text: str, details: Details, priority: Priority | None = None
    ) -> None:
        details = replace(details, generation=self._generation, uevents=self._burst.uevents)
        self._reporter.record(kind, text, priority=priority, **vars(details))


def _details(look: Look) -> Details:
    """What every record about a look says."""
    machine = look.machine
    return Details(
        armed=look.state is not State.UNLOADED,
        cpus=len(machine.cpus),
        memory_bytes=total(machine.ram),
        ranges=len(machine.ram),
        change=str(look.change) if look.change and not look.change.empty else None,
    )


def _complete(look: Look) -> str:
    return f"complete: {machine_summary(look.machine)}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _verdict_text(found: Audit) -> str:
    return "; ".join((found.verdict.value, *found.reasons))
