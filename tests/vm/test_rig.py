"""The rig proves itself without the product: kexec-tools loads, the rig does the rest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.vm.rig import (
    CAPTURE_COMMAND_LINE,
    GIB,
    MIB,
    CommandFailedError,
    GuestImage,
    Machine,
    Overlay,
    RigError,
    cpu_notes_in_vmcore,
    expected_ram,
    find_pattern,
    hold_pattern,
    ram_in_vmcore,
)

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

CONTENT = b"kdumphpd looks for these bytes"
LOAD = f"kexec -c -p /boot/vmlinuz --initrd=/boot/capture.img --append='{CAPTURE_COMMAND_LINE}'"

UNIT = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/bin/greet
"""


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


def test_guest_is_driven_from_outside(bookworm: GuestImage, tmp_path: Path) -> None:
    overlay = Overlay(tmp_path / "overlay")
    overlay.write("/usr/local/bin/greet", "#!/bin/sh\necho hello >/run/greeted\n", 0o755)
    overlay.write("/usr/lib/systemd/system/greet.service", UNIT)
    overlay.enable("greet.service")
    with Machine(bookworm, tmp_path / "vm", overlay) as vm:
        vm.guest.wait_for_unit("greet.service")
        assert vm.guest.read("/run/greeted") == "hello\n"

        vm.guest.write("/run/bytes", bytes(range(256)) * 9000, mode=0o600)
        assert vm.guest.run("stat -c '%a %s' /run/bytes") == "600 2304000\n"
        with pytest.raises(CommandFailedError, match="exit code 3") as failed:
            vm.guest.run("echo out; echo err >&2; exit 3")
        assert (failed.value.stdout, failed.value.stderr) == ("out\n", "err\n")
        with pytest.raises(RigError, match="still running after 1 s"):
            vm.guest.run("sleep 1000", timeout=1)

        dimm = vm.hot_add_dimm(1 * GIB)
        vm.wait_for_memory(dimm)
        pattern = hold_pattern(vm.guest, dimm, CONTENT, pages=1)
        (address,) = pattern.addresses()
        assert vm.read_physical(address, len(CONTENT)) == CONTENT
        with vm.freeze() as memory:
            assert memory.read(address, len(CONTENT)) == CONTENT
            memory.flip(address)
        flipped = bytes([CONTENT[0] ^ 0xFF]) + CONTENT[1:]
        assert vm.read_physical(address, len(CONTENT)) == flipped

        cpu = vm.hot_add_cpu()
        vm.wait_for_cpus(2)
        vm.hot_remove_cpu(cpu)
        vm.wait_for_cpus(1)

        # Nothing is loaded: a guest that merely dies must not pass.
        with pytest.raises(RigError, match="the machine ended without 'CAPTURE-BEGIN'") as ended:
            vm.crash()
        assert "Kernel panic - not syncing: sysrq triggered crash" in str(ended.value)
    assert not vm.is_running()


def test_guest_has_what_the_product_needs(
    bookworm: GuestImage, product: Overlay, tmp_path: Path
) -> None:
    with Machine(bookworm, tmp_path / "vm", product) as vm:
        modules = "kdumphpd.config, pydantic, pyudev, structlog, systemd.daemon, systemd.journal"
        vm.guest.run(f"python3 -c 'import {modules}'")
        assert vm.guest.run("head -n 1 /usr/bin/kdumphpd") == "#!/usr/bin/python3\n"
        # Guests have no man(1) to look the pages of Documentation= up.
        vm.guest.run("systemd-analyze --man=no verify kdumphpd.service")
        assert "explicit" in vm.guest.read("/etc/kdumphpd/kdumphpd.toml")
        vm.guest.run("test -s /boot/vmlinuz && test -s /boot/capture.img")
