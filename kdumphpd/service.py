"""The service without its file descriptors: what is done at start, for a burst, at an audit.

The daemon (`kdumphpd.daemon`) feeds it uevents, signals and the time. What it
does is recorded; what it cannot mend it tries again at growing gaps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from kdumphpd.adopter import LOCK_SECONDS, Adopter, Sight
from kdumphpd.audit.audit import audit
from kdumphpd.audit.compare import Verdict
from kdumphpd.charge import Charge, Due
from kdumphpd.distribution.adoption import Owner, Reason
from kdumphpd.distribution.hotplug_rules import RulesKeeper
from kdumphpd.errors import BusyError, KdumphpdError
from kdumphpd.events.burst import Action, Burst, Outcome, Pace
from kdumphpd.events.monitor import Drained
from kdumphpd.host import Host
from kdumphpd.load.keeper import Look, Mended, State
from kdumphpd.machine import reservation as reservations
from kdumphpd.report.account import Account
from kdumphpd.report.fields import Details
from kdumphpd.report.journal import Reporter
from kdumphpd.report.records import Kind, Priority
from kdumphpd.report.summary import (
    complete,
    counted,
    look_details,
    verdict_text,
)

_RELOAD = "systemctl reload kdumphpd loads it again"


class Service:
    """Keeps one host's crash image current and says what it did.

    Args:
        open_host: reads the configuration and puts the host together.
        reporter: takes the records.
        clock: microseconds of CLOCK_MONOTONIC.
        adopter: looks at whose image is loaded.
        rules: the host's hotplug rules.
    """

    def __init__(
        self,
        open_host: Callable[[], Host],
        reporter: Reporter,
        clock: Callable[[], int],
        adopter: Adopter,
        rules: RulesKeeper,
    ) -> None:
        self._open_host = open_host
        self._clock = clock
        self._adopter = adopter
        self._rules = rules
        self._charge = Charge(open_host())
        self._burst = Burst.begin(Pace.of(self._charge.host.config), clock())
        self._say = Account(reporter, lambda: self._burst.uevents)
        self._refused = ""  # why the configuration of the last reload is not in force

    @property
    def deadline(self) -> int:
        """When `turn` has something to do if nothing comes in, in the clock's microseconds."""
        look_at, deadline = self._adopter.look_at, self._burst.deadline
        return deadline if look_at is None else min(look_at, deadline)

    @property
    def status(self) -> str:
        """One line for the service manager."""
        return "; ".join(filter(None, (self._say.status, self._refused)))

    def start(self) -> None:
        """Adopt the loaded image if it is the one that is wanted, else load that.

        Raises:
            KdumphpdError: neither could be done; what was loaded before still is,
                or a CRIT record says that nothing is.
        """
        try:
            self._charge.host.keeper.look()
        except KdumphpdError as error:
            self._start_blind(error)
            return
        with self._adopter.sight(self._charge.host) as sight:
            look = sight.look
            if sight.keep:
                text = "the loaded image is the configured one"
                self._say.record(Kind.ADOPTED, text, look_details(look))
                if look.state is State.CURRENT or (
                    not sight.busy and self._mend(look, Kind.REPAIRED)
                ):
                    self._say.status = complete(look)
            mended = self._follow(sight, Kind.STARTED, "watching; image loaded")
            if mended is not None and mended.loaded is None and self._is_in_vain(mended):
                raise mended.error()
            if mended is None or mended.loaded is None:
                armed = mended.armed if mended else look.state is not State.UNLOADED
                details = replace(look_details(look), armed=armed)
                self._say.record(Kind.STARTED, f"watching; {self._say.status}", details)
            self._charge.use(sight.host)
        self._mind_rules(again=True)
        self._hint()

    def _is_in_vain(self, mended: Mended) -> bool:
        """Whether a first load that failed is no better the next time.

        Where kdump's own image is still loaded, its hotplug rule does more for that than we.
        """
        return self._charge.host.owner is Owner.CONFIGURATION or (
            mended.armed and not (mended.busy or mended.overtaken)
        )

    def _start_blind(self, error: KdumphpdError) -> None:
        """Go on where the kernel keeps an image that nobody may read; else raise ``error``."""
        if not reservations.kept_by_kernel(self._charge.host.root):
            raise error
        self._say.complain(f"cannot look: {error}", Verdict.UNKNOWN)
        details = Details(armed=True, backend="kernel", verdict=Verdict.UNKNOWN.value)
        text = "watching; the kernel updates the loaded image, what it leaves cannot be seen"
        self._say.record(Kind.STARTED, text, details)
        self._hint()

    def reload(self) -> None:
        """Read the configuration again and load the image if that asks for another one.

        A configuration that cannot be used is recorded, and the old one stays.
        """
        host = None
        with contextlib.ExitStack() as stack:
            try:
                host = self._open_host()
                sight = stack.enter_context(self._adopter.sight(host, fresh=True))
            except KdumphpdError as error:
                if host is not None:
                    host.source.close()
                self._refused = f"the old configuration stays: {error}"
                self._say.record(Kind.STATUS, self._refused, Details(), Priority.ERR)
                return
            self._refused = ""
            self._charge.use(sight.host)
            self._reloaded(sight)
        self._mind_rules(again=True)
        self._hint()

    def _reloaded(self, sight: Sight) -> None:
        self._burst = self._burst.paced(Pace.of(sight.host.config), self._clock())
        self._say.begin_anew()
        self._charge.due = Due.NOTHING
        if sight.adopt and sight.host.owner is Owner.CONFIGURATION:
            self._charge.due = Due.REARM if sight.look.state is State.UNLOADED else Due.RELOAD
        if sight.keep:
            text = "configuration read again, the image is the same"
            self._say.record(Kind.ADOPTED, text, look_details(sight.look))
        self._follow(sight, Kind.UPDATED, "configuration read again, image loaded")

    def files_changed(self) -> None:
        """Note that files of the host's kdump changed."""
        self._adopter.drain(self._charge.host)

    def uevents(self, drained: Drained) -> None:
        """Note uevents that came in."""
        now = self._clock()
        if drained.uevents:
            self._burst = self._burst.uevent(now, len(drained.uevents))
        if drained.lost:
            self._burst = self._burst.lost(now)

    def turn(self) -> None:
        """Do what is due, if anything is."""
        adopts = self._adopter.due()
        if adopts:
            self._adopt()
        action = self._burst.due(self._clock())
        if action is Action.CHECK:
            self._check()
        elif action is Action.AUDIT:
            self._audit()
        self._mind_rules(again=adopts)

    def unforeseen(self, error: Exception) -> None:
        """Go on after an error that nobody thought of: say where, and give the rules back."""
        now = self._clock()
        self._charge.keeps = False
        self._adopter.failed()
        self._burst = self._burst.checked(now, None, Outcome.FAILED)
        self._say.complain_of_us(error)
        self._mind_rules()

    def report_status(self) -> None:
        """Audit now and record the result (SIGUSR1)."""
        found = audit(self._charge.host.root, self._charge.host.reader)
        self._say.audited(Kind.STATUS, verdict_text(found), found, blind=self._charge.blind)

    def stop(self) -> None:
        """Say that nobody keeps the image from here on."""
        text = "stopped; what is loaded stays, nothing keeps it current"
        self._say.record(Kind.STOPPED, text, Details())
        self._charge.host.source.close()

    def _check(self) -> None:
        fingerprint: object = None
        self._charge.ours = self._charge.blind = False
        try:
            look = self._charge.host.keeper.look()
        except KdumphpdError as error:
            outcome, self._charge.blind, self._charge.keeps = Outcome.FAILED, True, False
            self._say.complain(f"cannot look: {error}", Verdict.UNKNOWN)
        else:
            fingerprint = (look.machine, look.state)
            self._charge.ours = look.ours
            self._say.note_choice(self._say.choice.looked(look), look)
            outcome = self._answer(look)
        self._burst = self._burst.checked(self._clock(), fingerprint, outcome)
        if not self._burst.active:
            self._close_burst(outcome)

    def _answer(self, look: Look) -> Outcome:
        unloaded = look.state is State.UNLOADED
        if look.state is State.FOREIGN or (unloaded and self._charge.due is not Due.REARM):
            if self._charge.host.owner is Owner.KDUMP:
                self._adopter.noticed(look)
            else:
                self._stay_out(look)
            return Outcome.CURRENT
        if look.state is State.CURRENT and self._charge.due in (Due.NOTHING, Due.HEADER):
            self._charge.due = Due.NOTHING
            self._charge.keeps = self._charge.keeps or self._charge.host.keeper.can_keep(look)
            self._say.current(look)
            return Outcome.CURRENT
        if look.state is State.DAMAGED:
            self._charge.due = Due.IMAGE
        patience = self._burst.pace.interval_usec
        if self._charge.due is Due.NOTHING and self._say.choice.leaves(
            look, self._clock(), patience
        ):
            self._say.status = "stale: the kernel, which updates this header, gets time to do so"
            return Outcome.HELD
        # Where nothing is loaded, or nothing that would start, there is no protection to lose.
        armed = not unloaded and self._charge.due is not Due.IMAGE
        if armed and not self._burst.may_update(self._clock()):
            self._say.status = f"{look.state.value}: an update waits, the last one was just now"
            return Outcome.HELD
        return self._load_due(look)

    def _load_due(self, look: Look) -> Outcome:
        """Load what is due, unless kdump is at work."""
        try:
            with self._charge.host.lock.held(LOCK_SECONDS):
                self._adopter.held_up("")
                return Outcome.UPDATED if self._act(look) else Outcome.FAILED
        except BusyError as error:
            self._say.status = f"{look.state.value}: an update waits, {error}"
            for text in self._adopter.held_up(str(error)):
                self._say.record(Kind.STATUS, text, look_details(look), Priority.WARNING)
            return Outcome.HELD
        except KdumphpdError as error:
            unloaded = look.state is State.UNLOADED
            self._say.complain(str(error), Verdict.UNLOADED if unloaded else Verdict.STALE)
            return Outcome.FAILED

    def _adopt(self) -> None:
        """See what the host's kdump did, and follow it."""
        try:
            with self._adopter.sight(
                self._charge.host, lost_by_us=self._charge.due is Due.REARM
            ) as sight:
                armed = sight.look.state is not State.UNLOADED
                if sight.adopt and armed and not self._burst.may_update(self._clock()):
                    self._adopter.postponed(self._burst.rest_until)
                    self._say.status = "kdump's image stays for now, the last load was just now"
                    loaded = False
                else:
                    kind = Kind.REPAIRED if sight.lost else Kind.ADOPTED
                    mended = self._follow(sight, kind, sight.resolution.reason.value)
                    loaded = bool(mended and mended.loaded)
        except KdumphpdError as error:
            self._charge.keeps = False
            self._adopter.failed()
            self._say.complain(f"cannot look: {error}", Verdict.UNKNOWN)
            return
        if sight.host is self._charge.host:
            return
        if loaded or sight.keep or not sight.look.ours:
            self._charge.use(sight.host)
            self._hint()
        else:
            # What is loaded is of the earlier answer, whose files are open.
            sight.host.source.close()
            self._adopter.forget()

    def _follow(self, sight: Sight, kind: Kind, what: str) -> Mended | None:
        """Do what a look asks for; what came of the load if it asks for one."""
        for text in self._adopter.news(sight):
            self._say.record(Kind.STATUS, text, Details(), Priority.WARNING)
        mended = None
        if sight.adopt:
            if sight.lost:
                self._say.complain(sight.why, Verdict.UNLOADED)
            mended = self._load_wanted(sight, kind, what)
            if mended.loaded is None and sight.host.owner is Owner.KDUMP:
                self._adopter.failed(sight)
                return mended
        elif sight.wait:
            self._say.status = f"kdump is at work: {sight.busy}"
            self._charge.keeps = sight.look.ours or self._charge.keeps
        elif sight.keep:
            self._charge.keeps = sight.host.keeper.can_keep(sight.look)
        else:
            self._stay_out(sight.look, sight)
        loaded = mended.loaded if mended else None
        block = loaded.block if loaded else sight.look.block if sight.keep else None
        remark = self._adopter.remark(sight, by_us=block is not None)
        if remark:
            self._say.record(Kind.STATUS, remark, Details(), Priority.INFO)
        self._adopter.done(sight)
        return mended

    def _mind_rules(self, *, again: bool = False) -> None:
        """Have the distribution's hotplug rule in force exactly while we do not keep the image."""
        if self._rules.follow(self._charge.keeps, again=again):
            self._hint()
        problem = self._rules.problem and f"hotplug rules: {self._rules.problem}"
        self._say.trouble("rules", problem)

    def _load_wanted(self, sight: Sight, kind: Kind, what: str) -> Mended:
        look = sight.look
        if look.state is State.FOREIGN and sight.host.owner is Owner.CONFIGURATION:
            text = "another program's image is loaded; loading the configured one instead"
            self._say.record(Kind.FOREIGN, text, look_details(look))
        keeper = sight.host.keeper
        kdumps = sight.resolution.reason is Reason.KDUMP_LOADED
        mended = (keeper.adopt if kdumps else keeper.load)(look.machine)
        self._report_load(kind, what, look, mended)
        return mended

    def _act(self, look: Look) -> bool:
        """Load what is due; whether it succeeded."""
        if look.state is State.STALE and self._charge.due is not Due.IMAGE:
            return self._mend(
                look, Kind.REPAIRED if self._charge.due is Due.HEADER else Kind.UPDATED
            )
        what = {Due.IMAGE: "the image was damaged", Due.RELOAD: "the configured image is loaded"}
        if self._charge.host.keeper.look().state is not look.state:
            self._say.status = "trying again: another program loaded or unloaded an image meanwhile"
            return False
        mended = self._charge.host.keeper.load(look.machine)
        return self._report_load(
            Kind.REPAIRED, what.get(self._charge.due, "armed again"), look, mended
        )

    def _stay_out(self, look: Look, sight: Sight | None = None) -> None:
        """What is loaded, or not, is somebody's decision: respect it, and say so once."""
        self._charge.due, self._charge.keeps = Due.NOTHING, False
        if look.state is State.FOREIGN:
            kind, text = Kind.FOREIGN, "another program loaded its own image, leaving it alone"
        else:
            kind, text = Kind.DISARMED, "another program unloaded the crash image"
        text = sight.why if sight else f"{text}; {_RELOAD}"
        crit = sight is not None and sight.lost
        self._say.stays_out(kind, text, look, Priority.CRIT if crit else Priority.WARNING)

    def _mend(self, look: Look, kind: Kind) -> bool:
        change = str(look.change) if look.change else "the loaded header cannot be read"
        return self._report_load(kind, change, look, self._charge.host.keeper.mend(look))

    def _report_load(self, kind: Kind, what: str, look: Look, mended: Mended) -> bool:
        """Note and record what came of a load; whether it succeeded."""
        loaded = mended.loaded
        if mended.ran_command:
            self._adopter.ran_command(self._charge.host)
        if loaded is None:
            self._report_failure(look, mended)
            return False
        if loaded.backend != "delta" or self._charge.due is not Due.RELOAD:
            self._charge.due = Due.NOTHING
        self._charge.keeps = True
        if not loaded.kept:
            # Where nothing was loaded, the call took no protection away.
            cost = loaded.unarmed_usec if look.state is not State.UNLOADED else 0
            self._burst = self._burst.updated(self._clock(), cost)
        self._say.loaded(kind, what, look, mended, self._burst.run_start)
        return True

    def _report_failure(self, look: Look, mended: Mended) -> None:
        problem = mended.text
        unloaded = not (mended.armed or mended.dropped or look.state is State.UNLOADED)
        if mended.busy or mended.overtaken or unloaded:
            # Another program is at work: the next look sees what it has done.
            self._say.status = f"trying again: {problem}"
            return
        # Whatever the distribution's rule can do is more than we can now.
        self._charge.keeps = False
        if not mended.armed:
            self._charge.due = Due.REARM
            self._say.complain(problem, Verdict.UNLOADED)
        elif self._charge.due is Due.IMAGE:
            self._say.complain(problem, Verdict.DAMAGED)
        else:
            current = look.state is State.CURRENT
            self._say.complain(problem, Verdict.COMPLETE if current else Verdict.STALE)

    def _close_burst(self, outcome: Outcome) -> None:
        burst = self._burst
        if self._charge.blind:
            return  # that is said already
        uevents = counted(burst.uevents, "uevent")
        idle = not burst.updates and not self._say.choice.managed
        if burst.uevents and idle and self._charge.ours and outcome is Outcome.CURRENT:
            text = f"{uevents} changed nothing that a vmcore needs"
            self._say.record(Kind.UNCHANGED, text, Details(armed=True))
        elif burst.updates or burst.uevents:
            # Our loads were verified by their digest already; this is about the machine.
            found = audit(self._charge.host.root, self._charge.host.reader, verify=False)
            text = f"{counted(burst.updates, 'update')} for {uevents}; {verdict_text(found)}"
            self._say.audited(
                Kind.AUDITED, text, found, blind=self._charge.blind, updates=burst.updates
            )

    def _audit(self) -> None:
        found = audit(self._charge.host.root, self._charge.host.reader)
        self._say.audited(Kind.AUDITED, verdict_text(found), found, blind=self._charge.blind)
        if found.managed_by == "kdumphpd" and found.verdict is Verdict.DAMAGED:
            self._charge.due = Due.IMAGE
        elif found.managed_by == "kdumphpd" and found.verdict is Verdict.STALE:
            self._charge.due = Due.HEADER if self._charge.due is Due.NOTHING else self._charge.due
        # Back-off ends after a while, what is due does not; and that another program's
        # image is loaded, or none, is for the next look to see and say.
        ask = self._charge.due is not Due.NOTHING or found.managed_by != "kdumphpd"
        self._burst = self._burst.audited(self._clock(), stale=ask)

    def _hint(self) -> None:
        """Look once more soon: something may have changed since the look that was acted on."""
        self._burst = self._burst.audited(self._clock(), stale=True)
