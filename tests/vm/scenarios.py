"""What each guest must show: stories told to a machine, verdicts by the rig's oracles."""

from __future__ import annotations

import io
import json
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
from tests.vm.rig.oracles import LOW_MEMORY
from tests.vm.rig.progress import log

CONTENT = b"memory that was plugged in after the crash kernel was loaded"


KEXEC_FILE_LOAD = (
    f"kexec -s -p /boot/vmlinuz --initrd=/boot/capture.img --append='{CAPTURE_COMMAND_LINE}'"
)

LOCKDOWN = "/sys/kernel/security/lockdown"


@dataclass(frozen=True)
class Shown:
    """What a scenario showed.

    Attributes:
        kernel: the guest's release, as uname says it.
        rungs: what kept the header: ``kernel``, backends of the loads after the first;
            ``none`` where that is not what was to be shown.
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


def follow_hotplug(vm: Machine, rung: str = "delta", node: int = 0) -> Shown:
    """DIMMs come and go and a CPU comes, each with one load; the vmcore is complete.

    Args:
        vm: the machine.
        rung: what the loads must be.
        node: the DIMMs' NUMA node.
    """
    stays, goes = _plug_and_unplug(vm, node=node)
    settle(vm)
    updates = Journal(vm.guest).records("updated")
    count = f"{len(blocks(vm, goes))} blocks"
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


def follow_hotplug_by_command(vm: Machine) -> Shown:
    """No system call loads for us: kdump's own command does, once for a DIMM."""
    guest, journal = vm.guest, Journal(vm.guest)
    guest.wait_for_unit("kdumphpd.service", timeout=120)
    (choice,) = journal.wait_for(1, "fallback")
    assert choice["KDUMPHPD_BACKEND"] == "command"
    for call in ("kexec_load: ENOSYS", "kexec_file_load: ENOSYS"):
        assert call in choice["MESSAGE"], choice
    before = guest.read("/run/kdumpctl.log")
    assert "reload" not in before.split(), "what kdump loaded was complete"
    dimm = vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(dimm)
    updates = journal.wait_for(1, "updated", timeout=180)
    settle(vm)
    change = f"memory {dimm.start:#x}-{dimm.end:#x}, 1 GiB, {len(blocks(vm, dimm))} blocks added"
    assert [(one["KDUMPHPD_BACKEND"], one["KDUMPHPD_CHANGE"]) for one in updates] == [
        ("command", change)
    ]
    assert guest.read("/run/kdumpctl.log") == f"{before}reload\n"
    seen = shown(vm, updates)
    crash_is_complete(vm, dimm, cpus=1)
    return seen


def follow_hotplug_with_kernel(vm: Machine, rung: str = "delta", cpus: int = 2) -> Shown:
    """The kernel updates the loaded header; what it leaves is repaired by ``rung``.

    How many loads that takes is left open: the kernel drops an update while somebody
    else holds the kexec lock.
    """
    stays, goes = _plug_and_unplug(vm, cpus)
    journal = Journal(vm.guest)
    assert "kernel" in [one.get("KDUMPHPD_BACKEND") for one in journal.records("fallback")]
    updates = journal.records("updated")
    removed = [one for one in updates if one["KDUMPHPD_CHANGE"].endswith("removed")]
    gone = f"memory {goes.start:#x}-{goes.end:#x}, 1 GiB, {len(blocks(vm, goes))} blocks removed"
    assert [one["KDUMPHPD_CHANGE"] for one in removed] == [gone]
    assert {one["KDUMPHPD_BACKEND"] for one in updates} == {rung}
    seen = shown(vm, updates, by_kernel=True)
    crash_is_complete(vm, stays, cpus)
    return seen


def follow_hotplug_with_secure_boot(vm: Machine) -> Shown:
    """Secure Boot: the kernel takes signed files only, updates the header and leaves some.

    Without a CPU: the firmware has to greet it in SMM, and under emulation hangs there.
    """
    assert "[integrity]" in vm.guest.read("/sys/kernel/security/lockdown")
    assert "secureboot: Secure boot enabled" in vm.guest.run("dmesg")
    return follow_hotplug_with_kernel(vm, "file", cpus=1)


def _plug_and_unplug(vm: Machine, cpus: int = 2, node: int = 0) -> tuple[Dimm, Dimm]:
    """A DIMM in, CPUs up to ``cpus``, another DIMM in and out again; complete after each.

    The DIMMs are of NUMA node ``node``.

    Returns:
        The DIMM that stays, and the one that has gone.
    """
    vm.guest.wait_for_unit("kdumphpd.service")
    stays = vm.hot_add_dimm(1 * GIB, node=node)
    vm.wait_for_memory(stays)
    wait_until_complete(vm)
    assert _holds(ram_in_loaded_header(vm), stays)
    for count in range(2, cpus + 1):
        vm.hot_add_cpu()
        vm.wait_for_cpus(count)
    wait_until_complete(vm)
    goes = vm.hot_add_dimm(1 * GIB, node=node)
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


def remove_cpu(vm: Machine) -> Shown:
    """A DIMM and a CPU come and the CPU goes, each with one delta load; then a crash."""
    journal = Journal(vm.guest)
    stays = _plug_and_unplug_cpu(vm)
    assert audit(vm)["header"]["cpus"] == [0]
    updates = journal.wait_for(3, "updated")
    assert [one["KDUMPHPD_CHANGE"] for one in updates] == [
        f"memory {stays.start:#x}-{stays.end:#x}, 1 GiB, {len(blocks(vm, stays))} blocks added",
        "cpu 1 added",
        "cpu 1 removed",
    ]
    assert {one["KDUMPHPD_BACKEND"] for one in updates} == {"delta"}
    seen = shown(vm, updates)
    _crash_without_cpu(vm, stays)
    return seen


def remove_cpu_with_kernel(vm: Machine) -> Shown:
    """As remove_cpu; the kernel's header has a note for every possible CPU anyway."""
    stays = _plug_and_unplug_cpu(vm)
    seen = shown(vm, Journal(vm.guest).records("updated"), by_kernel=True)
    _crash_without_cpu(vm, stays)
    return seen


def _plug_and_unplug_cpu(vm: Machine) -> Dimm:
    """Gives a DIMM that stays."""
    vm.guest.wait_for_unit("kdumphpd.service")
    stays = vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(stays)
    wait_until_complete(vm)
    cpu = vm.hot_add_cpu()
    vm.wait_for_cpus(2)
    wait_until_complete(vm)
    assert {0, 1} <= set(audit(vm)["header"]["cpus"])
    vm.hot_remove_cpu(cpu)
    vm.guest.wait_until('[ "$(cat /sys/devices/system/cpu/present)" = 0 ]', 60)
    settle(vm)
    wait_until_complete(vm)
    return stays


def _crash_without_cpu(vm: Machine, stays: Dimm) -> None:
    if vm.outlives_cpus:
        crash_is_complete(vm, stays, cpus=1)
    else:
        log.warning("no crash after the CPU's removal: this QEMU would die of it")


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


def stay_armed_in_lockdown(vm: Machine) -> Shown:
    """Lockdown forbids every rung: that is recorded, and what is loaded stays.

    Lockdown is raised under the running daemon: booted with it, nothing could be loaded.
    """
    journal = Journal(vm.guest)
    vm.guest.wait_for_unit("kdumphpd.service")
    before = expected_ram(vm.guest.read("/proc/iomem"))
    vm.guest.run(f"echo integrity >{LOCKDOWN}")
    dimm = vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(dimm)
    (failed,) = journal.wait_for(1, "fallback")
    assert (failed["PRIORITY"], failed["KDUMPHPD_ARMED"]) == ("2", "1")
    assert failed["KDUMPHPD_VERDICT"] == "stale"
    unsigned = (
        "file: /boot/vmlinuz is not accepted: kexec_file_load: EPERM (Operation not permitted);"
        " the kernel is locked down and the file has no signature that it trusts"
    )
    assert failed["MESSAGE"].split("; ", 1) == [
        "delta, full: kexec_load: EPERM, the kernel is locked down (integrity)",
        f"{unsigned}; command: none is configured ([update] command); trying again",
    ]
    found = audit(vm)
    assert (found["verdict"], found["loaded"]) == ("stale", True)
    assert found["missing"]["memory"] == [[dimm.start, dimm.end]]
    seen = shown(vm, journal.records("updated"))
    assert ram_in_vmcore(vm.crash().header) == before
    return seen


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
    vmcore_is_complete(vm, dimm, cpus)


def vmcore_is_complete(vm: Machine, dimm: Dimm, cpus: int) -> None:
    """As crash_is_complete, whatever the audit says."""
    pattern = hold_pattern(vm.guest, dimm, CONTENT)
    expected, addresses = expected_ram(vm.guest.read("/proc/iomem"), cma(vm)), pattern.addresses()
    capture = vm.crash()
    # kexec-tools lists RAM in the first MiB too, which does no harm.
    ram = [one for one in ram_in_vmcore(capture.header) if one[1] > LOW_MEMORY[1]]
    assert ram == expected
    assert cpu_notes_in_vmcore(capture.header) == cpus
    assert all(dimm.start <= address <= dimm.end for address in addresses)
    assert find_pattern(capture.vmcore, addresses, CONTENT)


def cma(vm: Machine) -> str:
    """What crashkernel=...,cma reserved, as the kernel says it; empty where it has none."""
    return vm.guest.run("cat /sys/kernel/kexec/crash_cma_ranges 2>/dev/null || true")


def blocks(vm: Machine, dimm: Dimm) -> range:
    """The numbers of the memory blocks that ``dimm`` has in the guest."""
    size = int(vm.guest.read("/sys/devices/system/memory/block_size_bytes"), 16)
    return range(dimm.start // size, (dimm.end + 1) // size)


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
