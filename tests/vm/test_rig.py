"""The rig proves itself without the product: kexec-tools loads, the rig does the rest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.vm.rig import (
    CAPTURE_COMMAND_LINE,
    GIB,
    MIB,
    GuestImage,
    Machine,
    cpu_notes_in_vmcore,
    expected_ram,
    find_pattern,
    hold_pattern,
    ram_in_vmcore,
)

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

CONTENT = b"kdumphpd looks for these bytes"
LOAD = f"kexec -c -p /boot/vmlinuz --initrd=/boot/capture.img --append='{CAPTURE_COMMAND_LINE}'"


def test_vmcore_of_hotplugged_machine(bookworm: GuestImage, tmp_path: Path) -> None:
    with Machine(bookworm, tmp_path) as vm:
        first, second = vm.hot_add_dimm(2 * GIB), vm.hot_add_dimm(1 * GIB)
        vm.hot_add_cpu()
        vm.wait_for_memory(first)
        vm.wait_for_memory(second)
        vm.wait_for_cpus(2)
        vm.hot_remove_dimm(second)
        pattern = hold_pattern(vm.guest, first, CONTENT)
        vm.guest.run(LOAD)
        iomem = vm.guest.read("/proc/iomem")
        addresses = pattern.addresses()
        capture = vm.crash()

    ram = expected_ram(iomem)
    # kexec-tools still lists the first MiB, which it backs up.
    assert ram == [span for span in ram_in_vmcore(capture.header) if span[0] >= 1 * MIB]
    assert any(start <= first.start and first.end <= end for start, end in ram)
    assert not any(start <= second.start <= end for start, end in ram)
    assert cpu_notes_in_vmcore(capture.header) == 2
    assert all(first.start <= address <= first.end for address in addresses)
    assert find_pattern(capture.vmcore, addresses, CONTENT)
    assert not find_pattern(capture.vmcore, addresses, CONTENT[::-1])
    assert not find_pattern(capture.vmcore, [second.start], CONTENT)
    assert "sysrq: Trigger a crash" in capture.dmesg.read_text()
    readelf = subprocess.run(
        ["readelf", "-lW", capture.vmcore], capture_output=True, text=True, check=True
    )
    assert "LOAD" in readelf.stdout
