"""Where the host stops permitting things while the daemon runs: nothing is lost by trying."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.rig import (
    GIB,
    TRIXIE,
    Dimm,
    Guest,
    Journal,
    Machine,
    Overlay,
    add_product,
    build_or_reuse,
)
from tests.vm.scenarios import audit, crash_is_complete, wait_until_complete

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

TREE = Path(__file__).parents[2]
WITHOUT_KEXEC_LOAD = "[Service]\nSystemCallFilter=~kexec_load\nSystemCallErrorNumber=ENOSYS\n"
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
        guest.run("systemctl kill -s USR1 kdumphpd")
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
