"""What always holds beside RHEL's kdump, in any order of what can happen to the host.

* The distribution's hotplug rule is shadowed exactly while the daemon keeps what is loaded.
* Nothing loaded is crit, or mended, unless an administrator did it.
* No record and no status says of the host what is not so.
"""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kdumphpd.distribution.unit_state import UnitState
from kdumphpd.errors import KdumphpdError
from kdumphpd.report.records import Priority
from kdumphpd.service import Service
from tests.unit.fake_kdump import hint
from tests.unit.fake_kdump_utils import LINE, OTHER_KERNEL, FakeKdumpUtils
from tests.unit.fake_kernel import MIB
from tests.unit.host_fixture import FakeHost, uevents

#: Longer than anything that is waited for: the hourly audit, and a retry after failures.
LONG = 4500


class Host(RuleBasedStateMachine):
    """kdump, an administrator, hotplug, faults, and a daemon that comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.host = FakeHost(Path(self.directory.name), crashkernel=64 * MIB)
        self.kdump = FakeKdumpUtils(self.host)
        self.service: Service | None = None
        self.meant_empty = True  # nothing loaded is what an administrator wants
        self.cpus = 2
        self.daemon_starts()

    def teardown(self) -> None:
        self.settles()
        self.directory.cleanup()

    # --- kdump ------------------------------------------------------------------------

    @precondition(lambda self: self.host.unit is not UnitState.ACTIVE)
    @rule()
    def service_starts(self) -> None:
        self.kdump.start(self.service)
        self.meant_empty = False

    @rule()
    def service_stops(self) -> None:
        self.kdump.stop(self.service)
        self.meant_empty = not self.host.kernel.loaded

    @rule()
    def kdumpctl_stop(self) -> None:
        self.kdump.kdumpctl(self.service, "stop")
        self.meant_empty = True

    @precondition(lambda self: self.host.unit is UnitState.ACTIVE)
    @rule(command=st.sampled_from(["reload", "restart", "test"]), xtrace=st.booleans())
    def kdumpctl_loads(self, command: str, xtrace: bool) -> None:
        self.kdump.kdumpctl(self.service, command, xtrace=xtrace)
        self.meant_empty = False

    @precondition(lambda self: self.host.unit is UnitState.ACTIVE)
    @rule(seen=st.booleans())
    def a_reload_fails(self, seen: bool) -> None:
        self.kdump.breaks = True
        self.kdump.kdumpctl(self.service, "reload", seen=seen)
        self.kdump.breaks = False
        self.meant_empty = False

    @rule(seen=st.booleans())
    def kdumpctl_status(self, seen: bool) -> None:
        self.kdump.kdumpctl(self.service, "status", seen=seen)

    @rule(more=st.sampled_from(["", " a=1", " b=2"]))
    def sysconfig_changes(self, more: str) -> None:
        changed = self.kdump.configure(LINE + more)
        if self.service is not None:
            hint(self.host, self.service, changed)

    # --- an administrator -------------------------------------------------------------

    @rule(
        line=st.sampled_from([LINE, f"{LINE} hand=1"]),
        kernel=st.sampled_from([None, OTHER_KERNEL]),
    )
    def loads_by_hand(self, line: str, kernel: str | None) -> None:
        self.kdump.by_hand(line, **({"kernel_name": kernel} if kernel else {}))
        self.meant_empty = False

    @rule()
    def unloads_by_hand(self) -> None:
        self.host.kernel.unload()
        self.meant_empty = True

    # --- the machine ------------------------------------------------------------------

    @rule(count=st.integers(0, 20))
    def hotplug(self, count: int) -> None:
        if self.cpus < 8:
            self.host.kernel.hot_add_cpu(self.cpus)
            self.cpus += 1
        if count and self.service is not None:
            self.service.uevents(uevents(count))

    @rule(code=st.sampled_from([0, errno.EPERM]))
    def kexec_load_is_refused_from_here_on(self, code: int) -> None:
        self.host.kernel.refuse("kexec_load", code)

    @rule()
    def the_next_load_disarms(self) -> None:
        self.host.kernel.fail_next(errno.ENOMEM, before_free=False)

    # --- the daemon -------------------------------------------------------------------

    def daemon_starts(self) -> None:
        self.service = self.host.service()
        try:
            self.service.start()
        except KdumphpdError:
            self.daemon_ends()

    def daemon_ends(self) -> None:
        self.service = None
        self.host.rules.give_back()  # the unit's ExecStopPost=

    @rule(killed=st.booleans())
    def daemon_restarts(self, killed: bool) -> None:
        if self.service is not None and not killed:
            self.service.stop()
        self.daemon_ends()
        self.daemon_starts()

    @rule(seconds=st.sampled_from([0.1, 1, 10]))
    def time_passes(self, seconds: float) -> None:
        if self.service is not None:
            self.host.pass_time(self.service, seconds)

    # --- what holds -------------------------------------------------------------------

    @rule()
    def settles(self) -> None:
        if self.service is None:
            return
        self.host.pass_time(self.service, LONG)
        self.host.clock.advance(0.001)
        self.rule_is_shadowed_exactly_while_we_keep()
        self.nothing_loaded_is_crit_or_meant()
        self.status_is_true()

    def rule_is_shadowed_exactly_while_we_keep(self) -> None:
        ours = self.host.block() is not None and self.host.kernel.loaded
        able = not self.host.kernel.refusals.get("kexec_load")
        described = ours and self.host.problem(exact=False) is None
        if ours and able:
            assert self.host.rules.ours
            assert described, self.host.records[-3:]
        elif not ours:
            assert not self.host.rules.ours, self.service and self.service.status
        elif not described:
            assert not self.host.rules.ours, "stale, and we cannot mend it"

    def nothing_loaded_is_crit_or_meant(self) -> None:
        if self.host.kernel.loaded or self.meant_empty:
            return
        if self.host.unit is UnitState.STOPPED:
            return
        last = [one for one in self.host.records if one.details.armed is not None][-1]
        assert last.details.armed is False, last
        crit = [one.priority for one in self.host.records if one.details.armed is False]
        assert Priority.CRIT in crit, self.host.records[-5:]

    def status_is_true(self) -> None:
        assert self.service is not None
        if self.service.status.startswith("complete"):
            assert self.host.kernel.loaded
            assert self.host.audit().verdict.value == "complete"

    @invariant()
    def no_record_lies(self) -> None:
        assert not self.host.records.lies


TestHost = Host.TestCase
TestHost.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
