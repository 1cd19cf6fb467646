"""`test_faults` where the kernel updates headers itself, and where permissions come and go."""

from __future__ import annotations

import errno

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from kdumphpd.machine.ranges import Range
from tests.unit.hotplug_host import HotplugHost
from tests.unit.test_faults import FaultyHost

CMA = Range(0x20000000, 0x23FFFFFF)


class FaultyLadder(FaultyHost):
    """The rungs of kexec_load, or what remains without it."""

    host: HotplugHost

    def make_host(self) -> HotplugHost:
        return HotplugHost(self.directory)

    def ours(self) -> bool:
        return self.kernel.loaded and self.host.audit().managed_by == "kdumphpd"

    @initialize(cma=st.booleans())
    def start(self, cma: bool = False) -> None:
        self.updates_dropped = self.switches = 0
        if cma:
            self.host.kernel.reserve_cma(CMA)
        super().start()

    @rule(pauses=st.integers(1, 3))
    def the_kernel_writes_the_header(self, pauses: int) -> None:
        self.host.kernel.write_header(pauses)

    @rule(count=st.integers(1, 3))
    def the_kernel_drops_updates(self, count: int) -> None:
        self.host.kernel.drop_updates(count)
        self.updates_dropped += count

    @rule(code=st.sampled_from([0, errno.ENOSYS, errno.EPERM, errno.EACCES]))
    def kexec_load_is_permitted_or_not(self, code: int) -> None:
        self.host.kernel.refuse("kexec_load", code)
        self.switches += 1

    @rule(code=st.sampled_from([0, errno.ENOSYS, errno.EPERM]))
    def kexec_file_load_is_permitted_or_not(self, code: int) -> None:
        self.host.kernel.refuse("kexec_file_load", code)
        self.switches += 1

    @rule(code=st.sampled_from([0, errno.EKEYREJECTED, errno.EPERM]))
    def files_are_accepted_or_not(self, code: int) -> None:
        self.host.kernel.accepts_files = code
        self.switches += 1

    @rule(held=st.booleans())
    def crash_hotplug_is_contended(self, held: bool) -> None:
        self.host.kernel.contended = held

    @invariant()
    def no_load_for_a_reboot_was_ever_carried_out(self) -> None:
        assert ("reboot", 0) not in self.host.kernel.file_calls

    @invariant()
    def file_loads_are_bounded_by_what_happened(self) -> None:
        calls = [code for kind, code in self.host.kernel.file_calls if kind == "crash"]
        failed = sum(1 for one in self.kernel.calls if one.error) + sum(map(bool, calls))
        causes = 1 + self.changes + self.damages + self.reloads + self.switches + 2 * failed
        assert len(calls) <= causes

    @rule()
    def in_the_end_all_is_well_or_was_said(self) -> None:
        kernel = self.host.kernel
        kernel.refuse("kexec_load", 0)
        kernel.refuse("kexec_file_load", 0)
        kernel.accepts_files = 0
        kernel.contended = False
        super().in_the_end_all_is_well_or_was_said()


TestFaultsOfTheLadder = FaultyLadder.TestCase
TestFaultsOfTheLadder.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
pytestmark = pytest.mark.timeout(300)
