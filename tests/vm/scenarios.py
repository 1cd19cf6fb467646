"""What each guest must show: stories told to a machine, verdicts by the rig's oracles."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.vm.rig import (
    GIB,
    Dimm,
    Journal,
    Machine,
    cpu_notes_in_vmcore,
    expected_ram,
    find_pattern,
    hold_pattern,
    ram_in_vmcore,
)

CONTENT = b"memory that was plugged in after the crash kernel was loaded"


@dataclass(frozen=True)
class Shown:
    """What a scenario showed.

    Attributes:
        kernel: the guest's release, as uname says it.
        rungs: backends of the loads after the first, sorted.
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


def follow_hotplug(vm: Machine) -> Shown:
    """DIMMs come and go and a CPU comes, each with one delta load; the vmcore is complete."""
    journal = Journal(vm.guest)
    vm.guest.wait_for_unit("kdumphpd.service")
    stays = vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(stays)
    journal.wait_for(1, "updated")
    vm.hot_add_cpu()
    vm.wait_for_cpus(2)
    journal.wait_for(2, "updated")
    goes = vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(goes)
    journal.wait_for(3, "updated")
    vm.hot_remove_dimm(goes)
    journal.wait_for(4, "updated")
    settle(vm)

    updates = journal.records("updated")
    count = f"{blocks(vm, goes)} blocks"
    assert [one["KDUMPHPD_CHANGE"] for one in updates] == [
        f"memory {stays.start:#x}-{stays.end:#x}, 1 GiB, {count} added",
        "cpu 1 added",
        f"memory {goes.start:#x}-{goes.end:#x}, 1 GiB, {count} added",
        f"memory {goes.start:#x}-{goes.end:#x}, 1 GiB, {count} removed",
    ]
    assert {one["KDUMPHPD_BACKEND"] for one in updates} == {"delta"}
    seen = shown(vm, updates)
    crash_is_complete(vm, stays, cpus=2)
    return seen


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
    vm.guest.wait_for_unit("kdumphpd.service")
    cpu = vm.hot_add_cpu()
    vm.wait_for_cpus(2)
    journal.wait_for(1, "updated")
    assert audit(vm)["header"]["cpus"] == [0, 1]
    vm.hot_remove_cpu(cpu)
    journal.wait_for(2, "updated")
    settle(vm)

    updates = journal.records("updated")
    assert [one["KDUMPHPD_CHANGE"] for one in updates] == ["cpu 1 added", "cpu 1 removed"]
    assert {one["KDUMPHPD_BACKEND"] for one in updates} == {"delta"}
    found = audit(vm)
    assert (found["verdict"], found["exit_code"]) == ("complete", 0), found
    assert found["header"]["cpus"] == [0]
    return shown(vm, updates)


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


def shown(vm: Machine, updates: Sequence[dict[str, Any]]) -> Shown:
    """The figures of ``updates``, journal records of loads."""
    return Shown(
        kernel=vm.guest.run("uname -r").strip(),
        rungs=tuple(sorted({one["KDUMPHPD_BACKEND"] for one in updates})),
        unarmed_usec=tuple(int(one["KDUMPHPD_UNARMED_USEC"]) for one in updates),
    )
