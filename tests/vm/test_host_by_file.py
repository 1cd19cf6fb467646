"""Where kexec_load is forbidden, as on EL 10: kdump's image stays, and is repaired when stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.kdump_host import (
    PATIENCE,
    Software,
    ends_well,
    host,
    is_loaded,
    rules_read,
    wait_until_kept,
)
from tests.vm.rig import GIB, Journal, Machine
from tests.vm.scenarios import audit, ram_in_loaded_header, wait_until_complete

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

# A kernel without CONFIG_KEXEC; no other way to have that on Debian's.
DROP_IN = """\
[Service]
SystemCallFilter=~kexec_load
SystemCallErrorNumber=ENOSYS
"""
# A load of files takes seconds under emulation: a hundred times as long would be too long.
CONFIG = "[update]\nmax_disarmed_percent = 10\n"


def keeps_kdumps_image(vm: Machine) -> None:
    """At the start kdump's own image stays: the same again would gain nothing."""
    journal = Journal(vm.guest)
    (started,) = journal.wait_for(1, "started", timeout=PATIENCE)
    assert "kdump's own image is complete and stays" in started["MESSAGE"]
    # Nobody is told of a system call that is not used.
    assert "kexec_load is used" not in journal.text(), journal.text()
    wait_until_kept(vm)
    assert is_loaded(vm)
    loads = [one for one in journal.records() if int(one.get("KDUMPHPD_UNARMED_USEC", 0)) > 0]
    assert not loads, journal.text()


def test_no_kexec_load(software: Software, tmp_path: Path) -> None:
    with host(software, tmp_path, config=CONFIG, drop_in=DROP_IN) as vm:
        vm.guest.wait_for_unit("kdumphpd.service", PATIENCE)
        keeps_kdumps_image(vm)
        ends_well(vm)


def test_no_kexec_load_and_the_kernel_updates(software_on_trixie: Software, tmp_path: Path) -> None:
    with host(software_on_trixie, tmp_path, config=CONFIG, drop_in=DROP_IN) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        guest.wait_for_unit("kdumphpd.service", PATIENCE)
        keeps_kdumps_image(vm)
        assert guest.read("/sys/devices/system/memory/crash_hotplug").strip() == "1"

        # The kernel keeps up with what comes, and leaves what goes.
        stays, goes = vm.hot_add_dimm(GIB), vm.hot_add_dimm(GIB)
        for dimm in (stays, goes):
            vm.wait_for_memory(dimm)
        wait_until_complete(vm)
        vm.hot_remove_dimm(goes)
        wait_until_complete(vm)
        header = ram_in_loaded_header(vm)
        assert not any(start <= goes.start <= end for start, end in header)
        (*_, repaired) = journal.records("updated", "repaired")
        assert repaired["KDUMPHPD_BACKEND"] == "file", journal.text()
        assert audit(vm)["loaded"]
        assert rules_read(vm)
        ends_well(vm)
