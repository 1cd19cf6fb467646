"""What guests must show of the audit alone: images that others loaded, readers who may not read."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.vm.rig import GIB, Journal, Machine, expected_ram
from tests.vm.rig.oracles import LOW_MEMORY
from tests.vm.scenarios import (
    KEXEC_FILE_LOAD,
    LOCKDOWN,
    Shown,
    audit,
    ram_in_loaded_header,
    shown,
    vmcore_is_complete,
)

_KEXEC_LOAD = KEXEC_FILE_LOAD.replace("kexec -s", "kexec -c", 1)
_UNPRIVILEGED = "setpriv --reuid=nobody --regid=nogroup --clear-groups kdumphpd audit --json"


def audit_images_of_others(vm: Machine) -> Shown:
    """The audit of what kexec-tools and the kernel load: complete, then stale, and unloaded.

    The unit is not started at boot.
    """
    assert (audit(vm)["verdict"], audit(vm)["exit_code"]) == ("unloaded", 2)
    for load in (_KEXEC_LOAD, KEXEC_FILE_LOAD):
        vm.guest.run("kexec -p -u")
        vm.guest.run(load, timeout=120)
        found = audit(vm)
        assert (found["verdict"], found["exit_code"]) == ("complete", 0), found
        assert found["managed_by"] == _manager(vm)
        ram = [one for one in ram_in_loaded_header(vm) if one[1] > LOW_MEMORY[1]]
        assert ram == expected_ram(vm.guest.read("/proc/iomem"))
        _is_unknown(vm, _UNPRIVILEGED)
        dimm = vm.hot_add_dimm(GIB)
        vm.wait_for_memory(dimm)
        found = audit(vm)
        if found["managed_by"] == "kernel":
            vm.guest.wait_until("kdumphpd audit", 60)
        else:
            assert (found["verdict"], found["exit_code"]) == ("stale", 1), found
            assert found["missing"]["memory"] == [[dimm.start, dimm.end]]
    return replace(shown(vm, []), rungs=("none",))


def know_nothing_in_confidentiality(vm: Machine) -> Shown:
    """lockdown=confidentiality hides /proc/kcore: ``unknown``, said once, with the reason.

    The kernel goes on updating the header, so that the vmcore is complete.
    """
    journal = Journal(vm.guest)
    vm.guest.wait_for_unit("kdumphpd.service")
    _is_unknown(vm, _UNPRIVILEGED)
    vm.guest.run(f"echo confidentiality >{LOCKDOWN}")
    _is_unknown(vm, "kdumphpd audit --json")
    for count in (1, 2):
        dimm = vm.hot_add_dimm(1 * GIB)
        vm.wait_for_memory(dimm)
        journal.wait_for(1, "fallback", "audited", timeout=120)
        vm.guest.run("systemctl kill -s USR1 kdumphpd")
        journal.wait_for(count, "status")
    unknown = [
        one["MESSAGE"]
        for one in journal.records()
        if one.get("KDUMPHPD_VERDICT") == "unknown" and one["KDUMPHPD_EVENT"] != "status"
    ]
    assert len(unknown) == 1, unknown
    assert "kcore" in unknown[0]
    assert journal.records("updated") == []
    seen = shown(vm, [], by_kernel=True)
    vmcore_is_complete(vm, dimm, cpus=1)
    return seen


def _manager(vm: Machine) -> str:
    """Who updates the loaded header, by the kernel's own word."""
    answer = vm.guest.run("cat /sys/devices/system/memory/crash_hotplug 2>/dev/null || echo 0")
    return "kernel" if answer.strip() == "1" else "other"


def _is_unknown(vm: Machine, command: str) -> None:
    """``command`` is an audit that may not read: it says so, and why, in the contract's JSON."""
    code, stdout, stderr = vm.guest.try_run(command)
    assert (code, stderr) == (3, "")
    found = json.loads(stdout)
    assert (found["verdict"], found["loaded"], found["header"]) == ("unknown", True, None)
    assert found["reasons"]
