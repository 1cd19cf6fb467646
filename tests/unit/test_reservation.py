from __future__ import annotations

from pathlib import Path

import pytest

from kdumphpd.errors import MachineError
from kdumphpd.machine import iomem, reservation
from kdumphpd.machine.iomem import Resource
from kdumphpd.machine.ranges import Range
from tests.unit.fake_kernel import FakeKernel

_HIGH = Range(0x150000000, 0x15FFFFFFF)
_LOW = Range(0x6F000000, 0x7EFFFFFF)


def _resources(kernel: FakeKernel) -> tuple[Resource, ...]:
    return iomem.parse((kernel.directory / "proc/iomem").read_text())


def _two(tmp_path: Path, high: Range, low: Range) -> FakeKernel:
    ram = [Range(0x100000, 0x7FFDEFFF), Range(0x100000000, 0x17FFFFFFF)]
    return FakeKernel(tmp_path, ram, high, low)


def test_one_reservation(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    found = reservation.find(kernel.root, _resources(kernel))
    assert (found.main, found.ranges) == (kernel.reservation, (kernel.reservation,))


@pytest.mark.parametrize("low", [_LOW, Range(0x77000000, 0x7EFFFFFF)])
def test_images_go_to_the_high_one_of_two(tmp_path: Path, low: Range) -> None:
    kernel = _two(tmp_path, _HIGH, low)
    found = reservation.find(kernel.root, _resources(kernel))
    assert (found.main, found.ranges) == (_HIGH, (low, _HIGH))


def test_the_size_in_sysfs_decides(tmp_path: Path) -> None:
    kernel = _two(tmp_path, _HIGH, Range(0x77000000, 0x7EFFFFFF))
    (tmp_path / "sys/kernel/kexec_crash_size").write_text(f"{0x8000000}\n")
    assert reservation.find(kernel.root, _resources(kernel)).main.start == 0x77000000


def test_nothing_reserved_names_the_parameter(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    without = [one for one in _resources(kernel) if one.name != "Crash kernel"]
    with pytest.raises(MachineError, match="crashkernel="):
        reservation.find(kernel.root, without)
    (tmp_path / "sys/kernel/kexec_crash_size").write_text("0\n")
    with pytest.raises(MachineError, match="crashkernel="):
        reservation.find(kernel.root, _resources(kernel))


def test_a_size_that_fits_none_is_refused(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    (tmp_path / "sys/kernel/kexec_crash_size").write_text("4096\n")
    with pytest.raises(MachineError, match="4096"):
        reservation.find(kernel.root, _resources(kernel))


@pytest.mark.parametrize("where", ["sys/kernel/kexec_crash_", "sys/kernel/kexec/crash_"])
def test_old_and_new_places_in_sysfs(tmp_path: Path, where: str) -> None:
    kernel = FakeKernel.q35(tmp_path)
    for name in ("loaded", "size"):
        old = tmp_path / f"sys/kernel/kexec_crash_{name}"
        new = tmp_path / f"{where}{name}"
        new.parent.mkdir(exist_ok=True)
        old.rename(new)
    assert not reservation.crash_loaded(kernel.root)
    (tmp_path / f"{where}loaded").write_text("1\n")
    assert reservation.crash_loaded(kernel.root)
    assert reservation.find(kernel.root, _resources(kernel)).main == kernel.reservation


def test_what_the_kernel_says_of_its_own_updates(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    assert reservation.elfcorehdr_size(kernel.root) == 0
    assert not reservation.kernel_updates(kernel.root)
    (tmp_path / "sys/kernel/crash_elfcorehdr_size").write_text("459200\n")
    (tmp_path / "sys/devices/system/memory/crash_hotplug").write_text("1\n")
    assert reservation.elfcorehdr_size(kernel.root) == 459200
    assert reservation.kernel_updates(kernel.root)


def test_a_sysfs_file_that_is_no_number_is_refused(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    (tmp_path / "sys/kernel/kexec_crash_loaded").write_text("yes\n")
    with pytest.raises(MachineError, match="kexec_crash_loaded"):
        reservation.crash_loaded(kernel.root)
