"""The service against a host on which anything happens in any order.

Whatever comes, a host whose kernel permits loads ends with a complete and intact
image, unless another program wanted it otherwise, and then that was said.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kdumphpd.audit.compare import Verdict
from kdumphpd.machine.ranges import Range
from kdumphpd.report.records import Kind, Priority
from tests.unit.fake_kernel import MIB
from tests.unit.host_fixture import GIB, FakeHost, uevents

DIMMS = [Range((4 + one) * GIB, (5 + one) * GIB - 1) for one in (0, 1, 3, 4)]
CPUS = range(2, 6)
#: More than the pad of an image has page tables for.
DEVICE = Range(1 << 42, (1 << 42) + 1400 * GIB - 1)
#: Longer than back-off at its slowest, and several audits.
LONG = 6 * 3600


class FaultyHost(RuleBasedStateMachine):
    """Counts what really happened, beside a service that has to find it out."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="kdumphpd-faults-"))
        self.host = self.make_host()
        self.kernel = self.host.kernel
        self.service = self.host.service()
        self.changes = self.damages = self.reloads = 0
        #: Whose decision the present image, or its absence, is.
        self.others = False
        #: A load of the service failed: until it succeeds, it may load where nothing is.
        self.owed = False

    def make_host(self) -> FakeHost:
        return FakeHost(self.directory, crashkernel=64 * MIB)

    def ours(self) -> bool:
        """Whether the loaded image is there by the service's doing."""
        return self.kernel.loaded and self.host.block() is not None

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    @initialize()
    def start(self) -> None:
        self.act(self.service.start)

    def act(self, step: Callable[[], None]) -> None:
        """Let the service act: it never leaves the host unarmed without a CRIT record."""
        armed, said = self.kernel.loaded, len(self.host.records)
        step()
        self.owed |= not self.kernel.loaded and not self.others
        if armed and not self.kernel.loaded:
            new = self.host.records[said:]
            assert any(
                one.kind is Kind.DISARMED and one.priority is Priority.CRIT for one in new
            ), new

    # --- the machine changes -----------------------------------------------------------

    @rule(dimm=st.sampled_from(DIMMS), count=st.integers(0, 16))
    def plug_or_unplug_memory(self, dimm: Range, count: int) -> None:
        if dimm in self.kernel.ram:
            self.kernel.hot_remove_memory(dimm)
        else:
            self.kernel.hot_add_memory(dimm)
        self.changes += 1
        self.send(count)

    @rule(cpu=st.sampled_from(CPUS), count=st.integers(0, 2))
    def plug_or_unplug_a_cpu(self, cpu: int, count: int) -> None:
        if cpu in self.kernel.cpus:
            self.kernel.hot_remove_cpu(cpu)
        else:
            self.kernel.hot_add_cpu(cpu)
        self.changes += 1
        self.send(count)

    @precondition(lambda self: not self.kernel.devices)
    @rule(name=st.sampled_from(["Persistent Memory", "0000:03:00.0"]))
    def a_device_s_memory_is_mapped(self, name: str) -> None:
        self.kernel.map_device_memory(DEVICE, name)
        # The next load may be a delta that goes beyond the pad, and is followed by a full one.
        self.changes += 1

    @rule(count=st.integers(0, 3), lost=st.booleans())
    def uevents_about_nothing(self, count: int, lost: bool) -> None:
        self.service.uevents(uevents(count, lost=lost))

    def send(self, count: int) -> None:
        if count:
            self.service.uevents(uevents(count))

    # --- time --------------------------------------------------------------------------

    @rule()
    def wake_up(self) -> None:
        self.act(self.service.turn)

    @rule(seconds=st.sampled_from([0.01, 0.5, 3, 12, 400, 4000]))
    def time_passes(self, seconds: float) -> None:
        end = self.host.clock.now + int(seconds * 1e6)
        while self.service.deadline <= end:
            self.host.clock.now = max(self.host.clock.now, self.service.deadline)
            self.act(self.service.turn)
        self.host.clock.now = end

    # --- faults ------------------------------------------------------------------------

    @rule(
        fault=st.sampled_from(
            [
                (errno.EPERM, True),
                (errno.EBUSY, True),
                (errno.ENOMEM, False),
                (errno.EFAULT, False),
                (errno.EADDRNOTAVAIL, False),
            ]
        ),
        times=st.integers(1, 4),
    )
    def loads_will_fail(self, fault: tuple[int, bool], times: int) -> None:
        self.kernel.fail_next(*fault, times=times)

    @rule()
    def permission_goes_or_comes(self) -> None:
        self.kernel.permitted = not self.kernel.permitted

    @precondition(lambda self: self.kernel.loaded and self.host.block() is not None)
    @rule(region=st.integers(0, 3), where=st.floats(0, 1))
    def memory_is_damaged(self, region: int, where: float) -> None:
        block = self.host.live_block()
        place = block.regions[region]
        self.host.flip(place.start + int(where * (place.size - 1)))
        self.damages += 1

    @precondition(lambda self: self.kernel.loaded and self.host.block() is not None)
    @rule(where=st.integers(0, 600))
    def the_header_is_damaged(self, where: int) -> None:
        self.host.flip(self.host.live_header() + where)
        self.damages += 1

    # --- other programs ----------------------------------------------------------------

    @rule(style=st.sampled_from(["kexec_load", "kexec_file_load"]))
    def another_program_loads(self, style: str) -> None:
        self.kernel.foreign_load(style)
        self.others = True

    @precondition(lambda self: self.kernel.loaded)
    @rule()
    def another_program_unloads(self) -> None:
        self.kernel.unload()
        self.others = True

    @rule()
    def the_administrator_reloads(self) -> None:
        self.others = False
        self.act(self.service.reload)
        self.reloads += 1
        # A foreign image that the kernel let nobody replace stays.
        self.others = self.kernel.loaded and not self.ours()

    # --- what must hold ----------------------------------------------------------------

    @invariant()
    def loads_are_bounded_by_what_happened(self) -> None:
        calls = self.kernel.calls
        failed = sum(1 for one in calls if one.error)
        causes = 1 + self.changes + self.damages + self.reloads + 2 * failed
        assert len(calls) <= causes, (len(calls), causes)

    @invariant()
    def a_delta_never_named_more_than_the_header(self) -> None:
        assert all(one.names == ("elfcorehdr",) or len(one.names) == 5 for one in self.kernel.calls)

    @rule()
    def in_the_end_all_is_well_or_was_said(self) -> None:
        self.kernel.permitted = True
        self.act(lambda: self.host.pass_time(self.service, LONG))
        owed, self.owed = self.owed, False
        if self.others and not (self.ours() and owed):
            assert self.host.records.of(Kind.FOREIGN, Kind.DISARMED)
            assert not self.ours()
            return
        self.others = False
        assert self.kernel.loaded
        assert self.host.problem(exact=False) is None
        found = self.host.audit()
        own = self.host.block() is not None
        assert (found.verdict, found.verified) == (Verdict.COMPLETE, True if own else None)
        assert self.service.status.startswith("complete")


TestFaults = FaultyHost.TestCase
TestFaults.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
# It has no time limit of its own: an example that hangs is a failure.
pytestmark = pytest.mark.timeout(300)
