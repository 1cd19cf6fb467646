"""On Debian's own kdump: kdump-tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.kdump_host import rules_read
from tests.vm.kdump_tools import unpack_kdump_tools
from tests.vm.rig import (
    GIB,
    GuestImage,
    Journal,
    Machine,
    Overlay,
    add_product,
)
from tests.vm.scenarios import audit, crash_is_complete

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

TREE = Path(__file__).parents[2]

# Loads follow each other closely here.
CONFIG = "[update]\nmax_disarmed_percent = 10\nsettle_seconds = 2.0\n"


@pytest.fixture
def overlay(bookworm: GuestImage, wheel: Path, tmp_path: Path) -> Overlay:
    """The product with source = "auto", not enabled."""
    overlay = Overlay(tmp_path / "overlay")
    add_product(overlay, bookworm.guest, wheel, TREE / "systemd", CONFIG)
    return overlay


def test_kdump_tools(bookworm: GuestImage, overlay: Overlay, tmp_path: Path) -> None:
    with Machine(bookworm, tmp_path / "vm", overlay) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        unpack_kdump_tools(vm)
        guest.run("systemctl start kdumphpd")
        (stopped,) = journal.wait_for(1, "disarmed")
        assert "kdump is stopped" in stopped["MESSAGE"]
        # Nothing is kept, so kdump's own rule is in force.
        assert rules_read(vm, "50-kdump-tools.rules") == "/usr/lib/udev/rules.d"

        guest.run("systemctl start kdump-tools")
        (adopted,) = journal.wait_for(1, "adopted")
        assert adopted["KDUMPHPD_BACKEND"] == "full"
        assert rules_read(vm, "50-kdump-tools.rules") == "/run/udev/rules.d"
        assert "kexec_cmd" in guest.run("kdumphpd plan")

        dimm = vm.hot_add_dimm(1 * GIB)
        vm.wait_for_memory(dimm)
        journal.wait_for(1, "updated")
        vm.hot_add_cpu()
        vm.wait_for_cpus(2)
        updates = journal.wait_for(2, "updated")
        assert {one["KDUMPHPD_BACKEND"] for one in updates} == {"delta"}
        assert not journal.records("foreign")
        assert audit(vm)["managed_by"] == "kdumphpd"
        crash_is_complete(vm, dimm, cpus=2)
