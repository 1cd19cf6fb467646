"""What each guest must show: stories told to a machine, verdicts by the rig's oracles."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.vm.rig import (
    CAPTURE_COMMAND_LINE,
    GIB,
    Dimm,
    Journal,
    Machine,
    cpu_notes_in_vmcore,
    expected_ram,
    find_pattern,
    hold_pattern,
    ram_in_header,
    ram_in_vmcore,
)

CONTENT = b"memory that was plugged in after the crash kernel was loaded"


KEXEC_FILE_LOAD = (
    f"kexec -s -p /boot/vmlinuz --initrd=/boot/capture.img --append='{CAPTURE_COMMAND_LINE}'"
)


@dataclass(frozen=True)
class Shown:
    """What a scenario showed.

    Attributes:
        kernel: the guest's release, as uname says it.
        rungs: what kept the header: ``kernel``, backends of the loads after the first.
        unarmed_usec: microseconds without a crash kernel, of each of these loads.
    """

    kernel: str
    rungs: tuple[str, ...]
    unarmed_usec: tuple[int, ...]


def audit(vm: Machine) -> dict[str, Any]:
    """The audit's JSON, with its ``exit_code``."""
    code, stdout, stderr = vm.guest.try_run("kdumphpd audit --json")
    assert stdout, stderr
    found: dict[str, Any] = json.loads(stdout)
    found["exit_code"] = code
    return found


def follow_hotplug(vm: Machine, rung: str = "delta") -> Shown:
    """DIMMs come and go and a CPU comes, each with one load; the vmcore is complete."""
    stays, goes = _plug_and_unplug(vm)
    settle(vm)
    updates = Journal(vm.guest).records("updated")
    count = f"{blocks(vm, goes)} blocks"
    assert [one["KDUMPHPD_CHANGE"] for one in updates] == [
        f"memory {stays.start:#x}-{stays.end:#x}, 1 GiB, {count} added",
        "cpu 1 added",
        f"memory {goes.start:#x}-{goes.end:#x}, 1 GiB, {count} added",
        f"memory {goes.start:#x}-{goes.end:#x}, 1 GiB, {count} removed",
    ]
    assert {one["KDUMPHPD_BACKEND"] for one in updates} == {rung}
    seen = shown(vm, updates)
    crash_is_complete(vm, stays, cpus=2)
    return seen


def follow_hotplug_by_file(vm: Machine) -> Shown:
    """As follow_hotplug, by kexec_file_load(2)."""
    return follow_hotplug(vm, "file")


def follow_hotplug_with_kernel(vm: Machine) -> Shown:
    """The kernel updates the header of our image; what it leaves is repaired by delta.

    How many loads that takes is left open: the kernel drops an update while somebody
    else holds the kexec lock.
    """
    stays, goes = _plug_and_unplug(vm)
    journal = Journal(vm.guest)
    assert "kernel" in [one.get("KDUMPHPD_BACKEND") for one in journal.records("fallback")]
    updates = journal.records("updated")
    removed = [one for one in updates if one["KDUMPHPD_CHANGE"].endswith("removed")]
    gone = f"memory {goes.start:#x}-{goes.end:#x}, 1 GiB, {blocks(vm, goes)} blocks removed"
    assert [one["KDUMPHPD_CHANGE"] for one in removed] == [gone]
    assert {one["KDUMPHPD_BACKEND"] for one in updates} == {"delta"}
    seen = shown(vm, updates, by_kernel=True)
    crash_is_complete(vm, stays, cpus=2)
    return seen


def _plug_and_unplug(vm: Machine) -> tuple[Dimm, Dimm]:
    """A DIMM, a CPU, another DIMM, and that one out again; complete after each.

    Returns:
        The DIMM that stays, and the one that has gone.
    """
    vm.guest.wait_for_unit("kdumphpd.service")
    stays = vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(stays)
    wait_until_complete(vm)
    assert _holds(ram_in_loaded_header(vm), stays)
    vm.hot_add_cpu()
    vm.wait_for_cpus(2)
    wait_until_complete(vm)
    goes = vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(goes)
    wait_until_complete(vm)
    assert _holds(ram_in_loaded_header(vm), goes)
    vm.hot_remove_dimm(goes)
    wait_until_complete(vm)
    assert not _holds(ram_in_loaded_header(vm), goes)
    return stays, goes


def wait_until_complete(vm: Machine) -> None:
    """Wait for the audit's verdict ``complete``."""
    vm.guest.wait_until("kdumphpd audit", 120)


def follow_hotplug_above_4g(vm: Machine) -> Shown:
    """As follow_hotplug, with a reservation above 4 GiB and one for DMA below."""
    reserved = re.findall("^ +([0-9a-f]+)-.* Crash kernel$", vm.guest.read("/proc/iomem"), re.M)
    assert len(reserved) == 2, reserved
    assert int(reserved[0], 16) < 4 * GIB <= int(reserved[1], 16)
    return follow_hotplug(vm)


def follow_virtio_mem(vm: Machine) -> Shown:
    """Memory that a virtio-mem device gives and takes; the vmcore is complete."""
    journal = Journal(vm.guest)
    vm.guest.wait_for_unit("kdumphpd.service")
    vm.resize_virtio_mem(2 * GIB)
    journal.wait_for(1, "updated")
    stays = vm.resize_virtio_mem(1 * GIB)
    settle(vm)
    assert "System RAM (virtio_mem)" in vm.guest.read("/proc/iomem")
    updates = journal.records("updated")
    assert {one["KDUMPHPD_BACKEND"] for one in updates} == {"delta"}
    assert updates[-1]["KDUMPHPD_CHANGE"].endswith("removed")
    seen = shown(vm, updates)
    crash_is_complete(vm, stays, cpus=1)
    return seen


def remove_cpu(vm: Machine) -> Shown:
    """A CPU comes and goes, each with one delta load.

    Without a crash: see Machine.hot_remove_cpu.
    """
    journal = Journal(vm.guest)
    _plug_and_unplug_cpu(vm)
    assert audit(vm)["header"]["cpus"] == [0]
    updates = journal.wait_for(2, "updated")
    assert [one["KDUMPHPD_CHANGE"] for one in updates] == ["cpu 1 added", "cpu 1 removed"]
    assert {one["KDUMPHPD_BACKEND"] for one in updates} == {"delta"}
    return shown(vm, updates)


def remove_cpu_with_kernel(vm: Machine) -> Shown:
    """A CPU comes and goes; the kernel's header has a note for every possible one anyway."""
    _plug_and_unplug_cpu(vm)
    return shown(vm, Journal(vm.guest).records("updated"), by_kernel=True)


def _plug_and_unplug_cpu(vm: Machine) -> None:
    vm.guest.wait_for_unit("kdumphpd.service")
    cpu = vm.hot_add_cpu()
    vm.wait_for_cpus(2)
    wait_until_complete(vm)
    assert {0, 1} <= set(audit(vm)["header"]["cpus"])
    vm.hot_remove_cpu(cpu)
    vm.guest.wait_until('[ "$(cat /sys/devices/system/cpu/present)" = 0 ]', 60)
    settle(vm)
    wait_until_complete(vm)


def mend_what_the_kernel_leaves(vm: Machine) -> Shown:
    """Where the kernel keeps the header, it keeps memory that is gone; the daemon does not.

    The unit is not started at boot.
    """
    vm.guest.run(KEXEC_FILE_LOAD)
    found = audit(vm)
    assert (found["verdict"], found["managed_by"]) == ("complete", "kernel"), found
    stays, goes = vm.hot_add_dimm(1 * GIB), vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(stays)
    vm.wait_for_memory(goes)
    wait_until_complete(vm)
    vm.hot_remove_dimm(goes)

    # Without us: what the kernel left, by the audit and from outside the guest.
    stale = audit(vm)
    assert (stale["verdict"], stale["exit_code"]) == ("stale", 1), stale
    assert stale["extra"]["memory"] == [[goes.start, goes.end]]
    assert stale["missing"] == {"cpus": [], "memory": []}
    assert _holds(ram_in_loaded_header(vm), goes)

    # With us: at the start, and again when memory goes under the daemon's eyes.
    journal = Journal(vm.guest)
    vm.guest.run("systemctl start kdumphpd.service", timeout=300)
    assert audit(vm)["verdict"] == "complete"
    assert not _holds(ram_in_loaded_header(vm), goes)
    goes = vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(goes)
    wait_until_complete(vm)
    assert _holds(ram_in_loaded_header(vm), goes)
    vm.hot_remove_dimm(goes)
    wait_until_complete(vm)
    assert not _holds(ram_in_loaded_header(vm), goes)
    assert _holds(ram_in_loaded_header(vm), stays)
    seen = shown(vm, journal.records("updated", "repaired"), by_kernel=True)
    crash_is_complete(vm, stays, cpus=1)
    return seen


def audit_where_memory_cannot_be_read(vm: Machine) -> Shown:
    """lockdown=confidentiality hides /proc/kcore: the verdict is ``unknown``, and says why.

    The unit is not started. Nothing is loaded when the machine boots with lockdown, so
    this one is raised afterwards.
    """
    vm.guest.run(KEXEC_FILE_LOAD)
    unprivileged = "setpriv --reuid=nobody --regid=nogroup --clear-groups kdumphpd audit --json"
    for command in (
        unprivileged,
        "echo confidentiality >/sys/kernel/security/lockdown && kdumphpd audit --json",
    ):
        code, stdout, stderr = vm.guest.try_run(command)
        assert (code, stderr) == (3, "")
        found = json.loads(stdout)
        assert (found["verdict"], found["header"]) == ("unknown", None)
        assert found["loaded"] is True
        assert found["reasons"]
    return shown(vm, [])


def ram_in_loaded_header(vm: Machine) -> list[tuple[int, int]]:
    """RAM in the header that a crash now would use.

    Where it lies is the audit's word, what it says is read from outside the guest.
    """
    header = audit(vm)["header"]
    return ram_in_header(io.BytesIO(vm.read_physical(header["address"], header["size"])))


def _holds(ram: Sequence[tuple[int, int]], dimm: Dimm) -> bool:
    return any(start <= dimm.start and dimm.end <= end for start, end in ram)


def settle(vm: Machine) -> None:
    """Wait until the last burst is over, and see that its closing audit is content."""
    (*_, closing) = Journal(vm.guest).wait_for(1, "audited", timeout=120)
    assert closing["KDUMPHPD_VERDICT"] == "complete"


def crash_is_complete(vm: Machine, dimm: Dimm, cpus: int) -> None:
    """The audit finds nothing missing, and neither do others in the vmcore of a crash now.

    Args:
        vm: is crashed, and has ended afterwards.
        dimm: memory that must be in the vmcore with its contents.
        cpus: how many are online.
    """
    found = audit(vm)
    assert (found["verdict"], found["exit_code"]) == ("complete", 0), found
    pattern = hold_pattern(vm.guest, dimm, CONTENT)
    iomem, addresses = vm.guest.read("/proc/iomem"), pattern.addresses()
    capture = vm.crash()
    assert ram_in_vmcore(capture.header) == expected_ram(iomem)
    assert cpu_notes_in_vmcore(capture.header) == cpus
    assert all(dimm.start <= address <= dimm.end for address in addresses)
    assert find_pattern(capture.vmcore, addresses, CONTENT)


def blocks(vm: Machine, dimm: Dimm) -> int:
    """How many memory blocks ``dimm`` has in the guest."""
    size = int(vm.guest.read("/sys/devices/system/memory/block_size_bytes"), 16)
    return (dimm.end + 1 - dimm.start) // size


def shown(vm: Machine, updates: Sequence[dict[str, Any]], *, by_kernel: bool = False) -> Shown:
    """The figures of ``updates``, journal records of loads, beside what the kernel did."""
    return Shown(
        kernel=vm.guest.run("uname -r").strip(),
        rungs=(
            *(("kernel",) if by_kernel else ()),
            *sorted({one["KDUMPHPD_BACKEND"] for one in updates}),
        ),
        unarmed_usec=tuple(int(one["KDUMPHPD_UNARMED_USEC"]) for one in updates),
    )
