"""The service without its file descriptors: what is done at start, for a burst, at an audit.

The daemon (`kdumphpd.daemon`) feeds it uevents, signals and the time. What it
does is recorded; what it cannot mend it tries again at growing gaps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kdumphpd.audit.audit import Audit, audit
from kdumphpd.audit.compare import Verdict
from kdumphpd.errors import KdumphpdError
from kdumphpd.events.burst import Action, Burst, Outcome, Pace
from kdumphpd.events.monitor import Drained
from kdumphpd.host import Host
from kdumphpd.load.keeper import Look, Mended, State
from kdumphpd.machine.ranges import total
from kdumphpd.report.fields import Details, duration_text
from kdumphpd.report.journal import OnceUntilChanged, Reporter
from kdumphpd.report.records import Kind, Priority
from kdumphpd.report.text import machine_summary

_RELOAD = "systemctl reload kdumphpd loads it again"


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
        self._disarmed = False
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
        look = self._host.keeper.look()
        if look.block is not None and self._host.keeper.matches(look):
            self._record(Kind.ADOPTED, "the loaded image is the configured one", _details(look))
            if look.state is State.STALE:
                self._mend(look, Kind.REPAIRED)
            self._status = f"complete: {machine_summary(look.machine)}"
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

    def reload(self) -> None:
        """Read the configuration again and load the image if that asks for another one.

        A configuration that cannot be used is recorded, and the old one stays.
        """
        try:
            host = self._open_host()
            look = host.keeper.look()
            current = host.keeper.matches(look)
        except KdumphpdError as error:
            text = f"the old configuration stays: {error}"
            self._record(Kind.STATUS, text, Details(), Priority.ERR)
            return
        self._host.source.close()
        self._host = host
        self._burst = self._burst.paced(Pace.of(host.config), self._clock())
        self._trouble = OnceUntilChanged()
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
        text = "stopped; the loaded image stays, nothing keeps it current"
        self._record(Kind.STOPPED, text, Details())
        self._host.source.close()

    def _check(self) -> None:
        fingerprint: object = None
        try:
            look = self._host.keeper.look()
        except KdumphpdError as error:
            outcome = Outcome.FAILED
            self._complain(f"cannot look: {error}", Verdict.UNKNOWN)
        else:
            fingerprint = (look.machine, look.state)
            outcome = self._answer(look)
        self._burst = self._burst.checked(self._clock(), fingerprint, outcome)
        if not self._burst.active:
            self._close_burst()

    def _answer(self, look: Look) -> Outcome:
        if look.state is State.CURRENT:
            return Outcome.CURRENT
        if look.state is State.STALE:
            if not self._burst.may_update(self._clock()):
                return Outcome.HELD
            return Outcome.UPDATED if self._mend(look, Kind.UPDATED) else Outcome.FAILED
        if look.state is State.UNLOADED and self._disarmed:
            mended = self._host.keeper.load(look.machine)
            done = self._report_load(Kind.REPAIRED, "armed again", look, mended)
            return Outcome.UPDATED if done else Outcome.FAILED
        self._stay_out(look)
        return Outcome.CURRENT

    def _stay_out(self, look: Look) -> None:
        """What is loaded, or not, is somebody's decision: respect it, and say so once."""
        if look.state is State.FOREIGN:
            kind, text = Kind.FOREIGN, "another program loaded its own image, leaving it alone"
        else:
            kind, text = Kind.DISARMED, "another program unloaded the crash image"
        if self._trouble.is_new(kind):
            self._record(kind, f"{text}; {_RELOAD}", _details(look), Priority.WARNING)

    def _mend(self, look: Look, kind: Kind) -> bool:
        change = str(look.change) if look.change else "the loaded header cannot be read"
        return self._report_load(kind, change, look, self._host.keeper.mend(look))

    def _report_load(self, kind: Kind, what: str, look: Look, mended: Mended) -> bool:
        """Record a load and what failed before it; whether it succeeded."""
        now = self._clock()
        self._disarmed = not mended.armed
        loaded = mended.loaded
        if loaded is None:
            verdict = Verdict.STALE if mended.armed else Verdict.UNLOADED
            self._complain("; ".join(mended.failures), verdict, busy=mended.busy)
            return False
        details = replace(_details(look), armed=True, backend=loaded.backend)
        if mended.failures:
            self._record(Kind.FALLBACK, "; ".join(mended.failures), details)
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
                verdict=Verdict.COMPLETE.value,
            ),
        )
        self._status = f"complete: {machine_summary(look.machine)}"
        return True

    def _complain(self, problem: str, verdict: Verdict, *, busy: bool = False) -> None:
        """Record what could not be mended: once, until something else is the matter."""
        unloaded = verdict is Verdict.UNLOADED
        self._status = f"{verdict.value}: {problem}"
        if busy or not self._trouble.is_new((verdict, problem)):
            return
        self._record(
            Kind.DISARMED if unloaded else Kind.FALLBACK,
            f"{'NO CRASH KERNEL IS LOADED: ' if unloaded else ''}{problem}; trying again",
            Details(armed=not unloaded, verdict=verdict.value),
            Priority.ERR if verdict is Verdict.UNKNOWN else Priority.CRIT,
        )

    def _close_burst(self) -> None:
        burst = self._burst
        if burst.updates:
            # The load was verified by its digest already; this is about the machine.
            found = audit(self._host.root, self._host.reader, verify=False)
            noun = "update" if burst.updates == 1 else "updates"
            text = f"{burst.updates} {noun} for {burst.uevents} uevents; {_verdict_text(found)}"
            self._record_audit(Kind.AUDITED, text, found)
        elif burst.uevents:
            text = f"{burst.uevents} uevents changed nothing that a vmcore needs"
            self._record(Kind.UNCHANGED, text, Details(armed=not self._disarmed))

    def _audit(self) -> None:
        found = audit(self._host.root, self._host.reader)
        mine = found.managed_by == "kdumphpd"
        spoilt = mine and found.verdict in (Verdict.STALE, Verdict.DAMAGED)
        self._record_audit(Kind.AUDITED, _verdict_text(found), found)
        if spoilt:
            try:
                self._mend(self._host.keeper.look(), Kind.REPAIRED)
            except KdumphpdError as error:
                self._complain(f"cannot repair: {error}", found.verdict)
        self._burst = self._burst.audited(self._clock(), stale=spoilt)

    def _hint(self) -> None:
        """Look once more soon: something may have changed since the look that was acted on."""
        self._burst = self._burst.audited(self._clock(), stale=True)

    def _record_audit(self, kind: Kind, text: str, found: Audit) -> None:
        self._status = text
        header = found.header
        details = Details(armed=found.loaded, verdict=found.verdict.value)
        if header is not None:
            details = replace(
                details,
                cpus=len(header.cpus),
                memory_bytes=total(header.memory),
                ranges=len(header.memory),
            )
        if kind is Kind.AUDITED and not self._audited.is_new(text):
            return
        priority = None if found.verdict is Verdict.COMPLETE else Priority.WARNING
        self._record(kind, text, details, priority)

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


def _verdict_text(found: Audit) -> str:
    return "; ".join((found.verdict.value, *found.reasons))
