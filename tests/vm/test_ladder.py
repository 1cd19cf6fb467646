"""Where the host stops permitting things while the daemon runs: nothing is lost by trying."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.synthetic import pe
from tests.vm.rig import (
    GIB,
    TRIXIE,
    Dimm,
    Guest,
    GuestImage,
    Journal,
    Machine,
    Overlay,
    add_product,
    build_or_reuse,
)
from tests.vm.rig.product import CONFIG
from tests.vm.scenarios import audit, crash_is_complete, wait_until_complete

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

TREE = Path(__file__).parents[2]
WITHOUT_KEXEC_LOAD = "[Service]\nSystemCallFilter=~kexec_load\nSystemCallErrorNumber=ENOSYS\n"
# A load of files takes seconds under emulation: a hundred times as long would be too long.
HURRY = "[update]\nmax_disarmed_percent = 10\n"
HAND_OVER_THE_WHOLE = b"""\
import os
from kdumphpd.load.syscalls import KEXEC_FILE_ON_CRASH, LiveKernel
kernel, initrd = (os.open(one, os.O_RDONLY) for one in ("/boot/uki.efi", "/boot/capture.img"))
LiveKernel().kexec_file_load(kernel, initrd, b"", KEXEC_FILE_ON_CRASH)
"""
LOCKDOWN = "/sys/kernel/security/lockdown"


def machine(guest: Guest, wheel: Path, directory: Path, drop_in: str = "") -> Machine:
    overlay = Overlay(directory / "overlay")
    add_product(overlay, guest, wheel, TREE / "systemd")
    if drop_in:
        overlay.write("/etc/systemd/system/kdumphpd.service.d/test.conf", drop_in)
    overlay.enable("kdumphpd.service")
    return Machine(build_or_reuse(guest, TREE / "build/vm"), directory / "vm", overlay)


def add(vm: Machine) -> Dimm:
    dimm = vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(dimm)
    return dimm


def test_an_image_that_the_kernel_made_for_us_is_kept_and_known_again(
    wheel: Path, tmp_path: Path
) -> None:
    with machine(TRIXIE, wheel, tmp_path, WITHOUT_KEXEC_LOAD) as vm:
        journal = Journal(vm.guest)
        vm.guest.wait_for_unit("kdumphpd.service", timeout=120)
        choice, _ = journal.wait_for(2, "fallback")
        assert choice["KDUMPHPD_BACKEND"] == "file"
        assert "kexec_load: ENOSYS" in choice["MESSAGE"]
        dimm = add(vm)
        wait_until_complete(vm)
        assert not journal.records("updated"), "the kernel did that"
        vm.hot_remove_dimm(dimm)
        (updated,) = journal.wait_for(1, "updated", timeout=120)
        assert updated["KDUMPHPD_BACKEND"] == "file"
        assert updated["KDUMPHPD_CHANGE"].endswith("removed")
        wait_until_complete(vm)

        vm.guest.run("systemctl restart kdumphpd", timeout=120)
        journal.wait_for(1, "adopted")
        assert audit(vm)["managed_by"] == "kdumphpd"
        assert len(journal.records("updated")) == 1, "nothing was loaded anew"
        dimm = add(vm)
        wait_until_complete(vm)
        crash_is_complete(vm, dimm, cpus=1)


def test_of_a_unified_kernel_image_the_kernel_gets_what_it_can_load(
    bookworm: GuestImage, wheel: Path, tmp_path: Path
) -> None:
    """From inside of the unit's sandbox, and the crash kernel boots."""
    overlay = Overlay(tmp_path / "overlay")
    config = CONFIG.replace("/boot/vmlinuz", "/boot/uki.efi") + HURRY
    add_product(overlay, bookworm.guest, wheel, TREE / "systemd", config)
    uki = tmp_path / "uki.efi"
    kernel = bookworm.kernel.read_bytes()
    uki.write_bytes(pe([(b".osrel", b"ID=test\n"), (b".linux", kernel), (b".initrd", b"none")]))
    overlay.copy(uki, "/boot/uki.efi")
    overlay.write("/etc/systemd/system/kdumphpd.service.d/test.conf", WITHOUT_KEXEC_LOAD)
    overlay.enable("kdumphpd.service")
    with Machine(bookworm, tmp_path / "vm", overlay) as vm:
        vm.guest.wait_for_unit("kdumphpd.service", timeout=120)
        assert audit(vm)["verdict"] == "complete"
        # What kdumphpd must never do: the kernel looks at the file when it is too late.
        _, _, said = vm.guest.try_run("python3 -", stdin=HAND_OVER_THE_WHOLE)
        assert "Exec format error" in said, "the kernel takes the whole: this shows nothing"
        assert vm.guest.read("/sys/kernel/kexec_crash_loaded").strip() == "0"
        vm.guest.run("systemctl restart kdumphpd", timeout=120)
        assert audit(vm)["verdict"] == "complete"
        dimm = add(vm)
        (updated,) = Journal(vm.guest).wait_for(1, "updated", timeout=300)
        assert updated["KDUMPHPD_BACKEND"] == "file"
        wait_until_complete(vm)
        crash_is_complete(vm, dimm, cpus=1)


def test_lockdown_ends_the_ladder_and_disarms_nothing(wheel: Path, tmp_path: Path) -> None:
    with machine(TRIXIE, wheel, tmp_path) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        guest.wait_for_unit("kdumphpd.service", timeout=120)
        guest.run(f"echo integrity >{LOCKDOWN}")
        dimm = add(vm)
        wait_until_complete(vm)
        vm.hot_remove_dimm(dimm)
        (ended,) = journal.wait_for(2, "fallback", timeout=120)[1:]
        assert ended["PRIORITY"] == "2"
        assert ended["KDUMPHPD_ARMED"] == "1"
        assert ended["KDUMPHPD_VERDICT"] == "stale"
        assert "is not accepted" in ended["MESSAGE"]
        found = audit(vm)
        assert (found["verdict"], found["loaded"]) == ("stale", True)
        assert found["image"]["verified"] is True

        # Nothing can be read from here on: each daemon says that once.
        guest.run(f"echo confidentiality >{LOCKDOWN}")
        add(vm)
        journal.wait_for(3, "fallback")
        guest.run("systemctl restart kdumphpd", timeout=120)
        add(vm)
        add(vm)
        guest.run("systemctl kill --kill-whom=main -s USR1 kdumphpd")
        journal.wait_for(1, "status")
        restarted = journal.records("started")[-1]
        said = [
            one
            for one in journal.records("fallback", "started", "audited")
            if one.get("KDUMPHPD_VERDICT") == "unknown"
        ]
        assert restarted["KDUMPHPD_BACKEND"] == "kernel"
        assert [one["KDUMPHPD_EVENT"] for one in said] == ["fallback", "fallback", "started"]
        assert guest.read("/sys/kernel/kexec_crash_loaded").strip() == "1"
