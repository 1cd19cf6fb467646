"""Looks while the kernel itself writes the header: it holds no image then, for a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdumphpd.audit.compare import Verdict
from kdumphpd.distribution import armed
from kdumphpd.load.keeper import State
from kdumphpd.machine import reservation
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.snapshot import MachineReader
from kdumphpd.report.records import Kind
from tests.unit.fake_crash_hotplug import CrashHotplugKernel
from tests.unit.fake_kdump import FakeKdump
from tests.unit.fake_kernel import MIB, FakeKernel
from tests.unit.host_fixture import COMMAND_LINE, DIMM, FakeHost, uevents


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    kernel = CrashHotplugKernel.q35(tmp_path, crashkernel=64 * MIB)
    return FakeHost(tmp_path, kernel=kernel)


def test_the_fake_holds_no_image_while_it_writes_the_header(host: FakeHost) -> None:
    """arch/x86/kernel/crash.c, arch_crash_handle_hotplug_event; kernel/crash_core.c.

    crash_handle_hotplug_event has the kexec lock, so that crash_check_hotplug_support
    answers 0.
    """
    host.load()
    host.kernel.write_header(pauses=2)
    files = ("/sys/kernel/kexec_crash_loaded", "/sys/devices/system/memory/crash_hotplug")
    for _ in range(2):
        assert [host.root.read_text(one) for one in files] == ["0", "0"]
        host.root.pause(0.01)
    assert [host.root.read_text(one) for one in files] == ["1", "1"]


@pytest.mark.parametrize("pauses", [1, 3])
def test_the_audit_looks_again(host: FakeHost, pauses: int) -> None:
    host.kernel.foreign_load("kexec_file_load")
    host.kernel.write_header(pauses)
    found = host.audit()
    assert (found.verdict, found.loaded, found.managed_by) == (Verdict.COMPLETE, True, "kernel")


def test_the_service_does_not_say_that_another_program_unloaded(host: FakeHost) -> None:
    service = host.service()
    service.start()
    host.settle(service)
    calls = len(host.kernel.calls)
    host.records.clear()
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(8))
    host.kernel.write_header()
    host.settle(service)
    assert not host.records.of(Kind.DISARMED, Kind.FOREIGN)
    assert len(host.kernel.calls) == calls
    assert host.problem(exact=False) is None


def test_the_armed_image_is_asked_for_again(host: FakeHost) -> None:
    FakeKdump(host).by_hand(COMMAND_LINE)
    reader = MachineReader(host.root)
    place = (host.kernel.reservation,)
    host.kernel.write_header()
    with PhysicalMemory(host.root) as memory:
        found = armed.read_armed(host.root, memory, reader.fixed().addresses, place)
    assert found is not None
    assert found.entry == host.kernel.entry


def test_what_was_unloaded_is_said_to_be_after_a_while(host: FakeHost) -> None:
    parts = host.load()
    host.kernel.unload()
    host.kernel.paused = 0
    assert parts.keeper.look().state is State.UNLOADED
    assert host.audit().verdict is Verdict.UNLOADED
    assert 0 < host.kernel.paused < 10


def test_kernels_that_write_no_header_are_asked_once(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    assert not reservation.crash_loaded(kernel.root)
    assert kernel.paused == 0
