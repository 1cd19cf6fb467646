"""``crashkernel=...,cma``: RAM of the running kernel that the crash kernel may use as its own."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.audit.compare import Verdict
from kdumphpd.errors import KdumphpdError, MachineError
from kdumphpd.load.keeper import State
from kdumphpd.machine import crash_cma
from kdumphpd.machine.ranges import Range, merge, total
from kdumphpd.machine.snapshot import MachineReader
from tests.unit import fake_files
from tests.unit.fake_crash_hotplug import CrashHotplugKernel
from tests.unit.fake_kernel import MIB, FakeKernel
from tests.unit.host_fixture import GIB, OTHER_DIMM, FakeHost, uevents
from tests.unit.strategies import separate_ranges

LOW, HIGH = Range(0x20000000, 0x23FFFFFF), Range(4 * GIB, 4 * GIB + 64 * MIB - 1)


def crash_hotplug_host(directory: Path) -> FakeHost:
    kernel = CrashHotplugKernel.q35(directory, memory=3 * GIB, crashkernel=64 * MIB)
    return FakeHost(directory, kernel=kernel)


@pytest.fixture
def cma_host(tmp_path: Path) -> FakeHost:
    host = crash_hotplug_host(tmp_path)
    host.kernel.reserve_cma(LOW, HIGH)
    return host


def test_the_fake_lists_cma_memory_as_the_kernel_does(cma_host: FakeHost) -> None:
    """kernel/kexec_core.c, crash_cma_ranges_show; arch/x86/kernel/crash.c.

    elf_header_exclude_ranges leaves it out of the header; /proc/iomem does not tell it
    from other RAM. As a 7.2 kernel with crashkernel=128M,cma showed it.
    """
    kernel = cma_host.kernel
    shown = kernel.root.read_text("/sys/kernel/kexec/crash_cma_ranges")
    assert shown == "20000000-23ffffff\n100000000-103ffffff"
    assert kernel.root.read_text("/proc/iomem").count("20000000-23ffffff") == 0
    image = kernel.foreign_load("kexec_file_load")
    found = kernel.crash(image.elfcorehdr)
    assert found is not None
    listed = [Range(start, start + size - 1) for start, _, size in found.loads[1:]]
    assert total(merge(listed)) == total(cma_host.machine_ram())
    assert not any(one.overlaps(LOW) or one.overlaps(HIGH) for one in listed)


@pytest.mark.parametrize("style", ["kexec_load", "kexec_file_load"])
def test_images_of_others_are_complete_with_or_without_it(cma_host: FakeHost, style: str) -> None:
    """The kernel leaves it out; kexec-tools lists it, and does not give it to the crash kernel."""
    cma_host.kernel.foreign_load(style)
    assert cma_host.audit().verdict is Verdict.COMPLETE


def test_our_image_is_given_it_as_ram_and_leaves_it_out_of_the_header(cma_host: FakeHost) -> None:
    parts = cma_host.load()
    cma_host.assert_complete()
    assert cma_host.audit().verdict is Verdict.COMPLETE
    ram = cma_host.capture_ram()
    assert all(any(one.contains(cma) for one in ram) for cma in (LOW, HIGH))
    assert total(ram) == total(
        fake_files.without(
            [Range(0x1000, 0x9FBFF), cma_host.kernel.reservation, LOW, HIGH],
            [cma_host.live_block().elfcorehdr],
        )
    )
    look = parts.keeper.look()
    assert look.state is State.CURRENT
    assert parts.keeper.matches(look), "built again, it is the same image"


def test_an_image_that_the_kernel_made_is_not_loaded_again_and_again(cma_host: FakeHost) -> None:
    cma_host.kernel.refuse("kexec_load", errno.ENOSYS)
    service = cma_host.service()
    service.start()
    cma_host.settle(service)
    loads = len(cma_host.kernel.file_calls)
    assert loads == 1
    cma_host.kernel.hot_add_memory(OTHER_DIMM)
    service.uevents(uevents(8))
    cma_host.pass_time(service, 6 * 3600)
    assert cma_host.audit().verdict is Verdict.COMPLETE
    assert len(cma_host.kernel.file_calls) == loads


def test_kernels_before_the_file_are_asked_for_their_variables(tmp_path: Path) -> None:
    host = crash_hotplug_host(tmp_path)
    host.kernel.reserve_cma(LOW, HIGH, shown="memory")
    host.kernel.foreign_load("kexec_file_load")
    assert host.audit().verdict is Verdict.COMPLETE
    host.load()
    host.assert_complete()


def test_where_the_kernel_hides_it_that_is_said_and_nothing_claimed(tmp_path: Path) -> None:
    host = crash_hotplug_host(tmp_path)
    host.kernel.reserve_cma(LOW, shown="hidden")
    host.kernel.foreign_load("kexec_file_load")
    found = host.audit()
    assert found.verdict is Verdict.UNKNOWN
    assert "crashkernel=...,cma" in found.reasons[0]
    assert "CAP_SYSLOG" in found.reasons[0]


@pytest.mark.parametrize("command_line", ["", "crashkernel=256M,high", "crashkernel=64M,cma"])
def test_kernels_without_it_have_none(tmp_path: Path, command_line: str) -> None:
    """6.1 takes ``crashkernel=64M,cma crashkernel=256M`` and reserves 256 MiB."""
    kernel = FakeKernel.q35(tmp_path)
    (tmp_path / "proc/cmdline").write_text(f"ro {command_line} crashkernel=256M\n")
    kernel.show_symbol("crashk_res", kernel.text.start)
    assert MachineReader(kernel.root).fixed().cma == ()


@pytest.mark.parametrize(
    ("content", "named"), [("100-\n", "100-"), ("2000-1000\n", "2000-1000"), ("?\n", "?")]
)
def test_a_file_with_other_content_is_named(content: str, named: str) -> None:
    with pytest.raises(MachineError, match="crash_cma_ranges") as caught:
        crash_cma.parse(content)
    assert repr(named) in str(caught.value)


@pytest.mark.parametrize(
    ("count", "pair"), [(-1, (0, 0)), (5, (0, 0)), (1, (HIGH.end, HIGH.start))]
)
def test_variables_that_make_no_sense_are_an_error(
    tmp_path: Path, count: int, pair: tuple[int, int]
) -> None:
    host = crash_hotplug_host(tmp_path)
    host.kernel.reserve_cma(HIGH, shown="memory")
    host.kernel.set_cma_variables(count, [pair])
    with pytest.raises(MachineError, match="crashk_cma_ranges"):
        MachineReader(host.root).fixed()


@given(separate_ranges())
def test_the_kernels_own_format_gives_the_ranges_back(ranges: tuple[Range, ...]) -> None:
    text = "".join(f"{one.start:08x}-{one.end:08x}\n" for one in ranges)
    assert crash_cma.parse(text) == ranges


@given(st.text())
def test_any_text_is_parsed_or_refused_in_our_own_words(text: str) -> None:
    with contextlib.suppress(KdumphpdError):
        assert all(one.size for one in crash_cma.parse(text))
