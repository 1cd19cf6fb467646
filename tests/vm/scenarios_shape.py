"""What guests of a particular shape must show; as scenarios.py, which has the common ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.vm.rig import GIB, MIB, Dimm, Journal, Machine, expected_ram
from tests.vm.rig.oracles import cma_ranges
from tests.vm.scenarios import (
    KEXEC_FILE_LOAD,
    Shown,
    audit,
    blocks,
    cma,
    crash_is_complete,
    follow_hotplug,
    follow_hotplug_with_kernel,
    ram_in_loaded_header,
    settle,
    shown,
    wait_until_complete,
)

_PAGE = 4096
#: struct boot_params has room for as many (arch/x86/include/uapi/asm/bootparam.h).
_E820_MAX_ENTRIES_ZEROPAGE = 128

# Does what `kdumphpd load` does, with as little room for growth as an image of another
# release may have: a guest cannot be given the TiB or the 8192 ranges that ours has room for.
_LOAD_WITH_ROOM = """\
import sys
from kdumphpd import cli
from kdumphpd.image.layout import Room
from kdumphpd.load import loader
loader.room_for = lambda *_: Room(pad=int(sys.argv[1]), elfcorehdr=int(sys.argv[2]))
sys.exit(cli.main(["load"]))
"""


def follow_hotplug_above_4g(vm: Machine) -> Shown:
    """As follow_hotplug, with a reservation above 4 GiB and one for DMA below."""
    low, high = _reserved(vm)
    assert low[0] < 4 * GIB <= high[0]
    return follow_hotplug(vm)


def follow_hotplug_on_node_1(vm: Machine) -> Shown:
    """As follow_hotplug, with DIMMs of the second NUMA node."""
    return follow_hotplug(vm, node=1)


def follow_hotplug_with_cma(vm: Machine, rung: str = "delta") -> Shown:
    """The crash kernel has more RAM by crashkernel=...,cma, which no header lists.

    An image that the kernel made is complete and stays; then as follow_hotplug_with_kernel,
    and the crash kernel has had that memory. The unit is not started at boot.
    """
    (memory,) = cma_ranges(cma(vm))
    vm.guest.run(KEXEC_FILE_LOAD)
    first = vm.hot_add_dimm(128 * MIB)
    vm.wait_for_memory(first)
    wait_until_complete(vm)
    expected = expected_ram(vm.guest.read("/proc/iomem"), cma(vm))
    assert ram_in_loaded_header(vm) == expected
    vm.guest.run("systemctl start kdumphpd", timeout=300)
    found = audit(vm)
    assert (found["verdict"], found["managed_by"]) == ("complete", "kdumphpd"), found
    assert ram_in_loaded_header(vm) == expected
    vm.guest.run("systemctl restart kdumphpd", timeout=300)
    assert len(Journal(vm.guest).records("adopted")) == 1, "built again, it is the same image"
    seen = follow_hotplug_with_kernel(vm, rung)
    start, end = memory
    usable = f"BIOS-e820: .*0x0*{start:x}-0x0*{end:x}\\]"
    assert re.search(usable, vm.console.text()), usable
    return seen


def follow_hotplug_with_cma_by_file(vm: Machine) -> Shown:
    """As follow_hotplug_with_cma, by kexec_file_load(2)."""
    return follow_hotplug_with_cma(vm, "file")


def follow_hotplug_with_efi(vm: Machine) -> Shown:
    """As follow_hotplug; the crash kernel has the firmware's runtime services."""
    return _with_efi(vm, follow_hotplug)


def follow_hotplug_with_kernel_and_efi(vm: Machine) -> Shown:
    """As follow_hotplug_with_kernel; the crash kernel has the firmware's runtime services."""
    return _with_efi(vm, follow_hotplug_with_kernel)


def _with_efi(vm: Machine, story: Callable[[Machine], Shown]) -> Shown:
    planned = json.loads(vm.guest.run("kdumphpd plan --json"))
    assert planned["efi"] == {"handed_over": True, "because": None}
    seen = story(vm)
    crash_kernel = vm.console.text().split("Linux version ")[-1]
    assert "elfcorehdr=" in crash_kernel
    assert re.search(r"efi: EFI v\S+ by EDK II", crash_kernel)
    # Said only where runtime services are in use (drivers/firmware/efi/efi.c, efisubsys_init).
    assert "Registered efivars operations" in crash_kernel
    assert not re.search(r"efi: .*(fail|[Cc]ould not|WARNING)", crash_kernel)
    return seen


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


def follow_dax_memory(vm: Machine, *, by_kernel: bool = False) -> Shown:
    """A dax device becomes memory, a device, and memory again; the vmcore is complete.

    Args:
        vm: the machine.
        by_kernel: the kernel updates the header too; only what it leaves is surely ours.
    """
    dax = _take_and_give_dax_memory(vm)
    updates = Journal(vm.guest).records("updated")
    changes = [one["KDUMPHPD_CHANGE"] for one in updates]
    if by_kernel:
        changes = [one for one in changes if one.endswith("removed")]
    memory = f"memory {dax.start:#x}-{dax.end:#x}, 1 GiB, {len(blocks(vm, dax))} blocks"
    expected = ("removed",) if by_kernel else ("added", "removed", "added")
    assert changes == [f"{memory} {how}" for how in expected]
    assert {one["KDUMPHPD_BACKEND"] for one in updates} == {"delta"}
    seen = shown(vm, updates, by_kernel=by_kernel)
    crash_is_complete(vm, dax, cpus=1)
    return seen


def follow_dax_memory_with_kernel(vm: Machine) -> Shown:
    """As follow_dax_memory, where the kernel updates the header: what it leaves is repaired."""
    return follow_dax_memory(vm, by_kernel=True)


def _take_and_give_dax_memory(vm: Machine) -> Dimm:
    """Have a dax device's memory come, go and come again; complete after each.

    Needs memory that the firmware calls "soft reserved". Newer kernels take it for
    RAM by themselves.
    """
    vm.guest.wait_for_unit("kdumphpd.service")
    drivers = "/sys/bus/dax/drivers"
    take = f"echo dax0.0 >{drivers}/device_dax/unbind && echo dax0.0 >{drivers}/kmem/new_id"
    vm.guest.run(f"modprobe kmem && {{ [ -e {drivers}/kmem/dax0.0 ] || {{ {take}; }}; }}")
    ((start, end),) = _resources(vm, r"System RAM \(kmem\)")
    dax = Dimm("dax0.0", start, end)
    vm.wait_for_memory(dax)
    wait_until_complete(vm)
    numbers = " ".join(map(str, blocks(vm, dax)))
    offline = (
        f"for i in {numbers}; do echo offline >/sys/devices/system/memory/memory$i/state; done"
    )
    vm.guest.run(f"{offline}; echo dax0.0 >{drivers}/kmem/unbind")
    wait_until_complete(vm)
    vm.guest.run(f"echo dax0.0 >{drivers}/kmem/bind")
    vm.wait_for_memory(dax)
    settle(vm)
    return dax


def follow_hotplug_in_pieces(vm: Machine) -> Shown:
    """As follow_hotplug_with_kernel, with RAM in more pieces than an e820 table has entries."""
    _is_in_pieces(vm)
    seen = follow_hotplug_with_kernel(vm)
    _is_extended(vm)
    return seen


def outgrow_room(vm: Machine) -> Shown:
    """RAM outgrows the control pad, and then the header its reserve: each is one full load.

    Until then, and again afterwards, a DIMM costs a delta load; the vmcore is complete.
    """
    vm.guest.wait_for_unit("kdumphpd.service")
    dimms = (_add_dimm(vm, start) for start in range(5 * GIB, 60 * GIB, GIB))

    plan = _is_in_pieces(vm)
    tight = (plan["control_pad"]["pages_needed"] + 2) * _PAGE
    _load_with_room(vm, tight, plan["reserve"]["size"])
    updates = _grow(vm, dimms, "delta: memory has outgrown the control pad: ")
    assert len(updates) == 4, "two have room"

    plan = _plan(vm)
    tight = -(-plan["reserve"]["used"] // _PAGE) * _PAGE
    _load_with_room(vm, plan["control_pad"]["size"], tight)
    updates += _grow(vm, dimms, "delta: the elfcorehdr has outgrown its reserve: ")

    settle(vm)
    seen = shown(vm, updates)
    crash_is_complete(vm, next(dimms), cpus=1)
    _is_extended(vm)
    return seen


def _is_in_pieces(vm: Machine) -> dict[str, Any]:
    plan = _plan(vm)
    assert len(plan["memory"]) > _E820_MAX_ENTRIES_ZEROPAGE
    assert len(plan["e820"]) > _E820_MAX_ENTRIES_ZEROPAGE
    assert any(start % _PAGE for start, _ in plan["memory"])
    return plan


def _is_extended(vm: Machine) -> None:
    """The capture kernel says that it was given more entries than boot_params hold."""
    assert "] extended physical RAM map:" in vm.console.path.read_text(errors="replace")


def _plan(vm: Machine) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(vm.guest.run("kdumphpd plan --json"))
    return plan


def _load_with_room(vm: Machine, pad: int, elfcorehdr: int) -> None:
    """Replace the loaded image by one with this much room, in bytes, which is then adopted."""
    vm.guest.write("/run/load-with-room", _LOAD_WITH_ROOM)
    vm.guest.run("systemctl stop kdumphpd")
    vm.guest.run(f"python3 /run/load-with-room {pad} {elfcorehdr}")
    count = len(Journal(vm.guest).records("adopted"))
    vm.guest.run("systemctl start kdumphpd", timeout=120)
    assert len(Journal(vm.guest).records("adopted")) == count + 1


def _add_dimm(vm: Machine, start: int) -> Dimm:
    """Add a small DIMM; the image is complete, and has its digest, before the next one comes."""
    dimm = vm.hot_add_dimm(128 * MIB, address=start)
    vm.wait_for_memory(dimm)
    wait_until_complete(vm)
    return dimm


def _grow(vm: Machine, dimms: Iterator[Dimm], why: str) -> list[dict[str, Any]]:
    """Add DIMMs until one leads to a full load, and one more.

    Returns:
        The records of the loads.
    """
    journal = Journal(vm.guest)
    known, said = len(journal.records("updated")), len(journal.records("fallback"))
    for count, _ in enumerate(dimms, 1):
        updates = journal.records("updated")[known:]
        assert len(updates) == count, "one load for each DIMM"
        if updates[-1]["KDUMPHPD_BACKEND"] == "full":
            break
    next(dimms)
    updates = journal.records("updated")[known:]
    backends = [one["KDUMPHPD_BACKEND"] for one in updates]
    assert backends == [*["delta"] * (count - 1), "full", "delta"]
    assert count > 1
    (reason,) = journal.records("fallback")[said:]
    assert reason["MESSAGE"].startswith(why), reason["MESSAGE"]
    assert reason["KDUMPHPD_ARMED"] == "1"
    return updates


def shrink_reservation(vm: Machine) -> Shown:
    """The reservation is shrunk: another image is loaded into what is left; the vmcore is complete.

    What was given back is RAM, and belongs into the vmcore.
    """
    journal = Journal(vm.guest)
    vm.guest.wait_for_unit("kdumphpd.service")
    ((start, end),) = _reserved(vm)
    size = (end + 1 - start) * 3 // 4
    file = "/sys/kernel/kexec_crash_size"  # since 7.0 a link to kexec/crash_size
    shrink = f"echo {size} >{file}"
    assert vm.guest.try_run(shrink)[0] != 0, "what is loaded cannot be cut off"
    vm.guest.run(f"kexec -p -u && {shrink}")
    assert _reserved(vm) == [(start, start + size - 1)]
    vm.guest.run(KEXEC_FILE_LOAD)
    found = audit(vm)
    assert found["verdict"] == "complete", found
    assert found["managed_by"] != "kdumphpd"

    vm.guest.run("systemctl reload kdumphpd", timeout=120)
    (loaded,) = journal.wait_for(1, "updated")
    assert loaded["KDUMPHPD_BACKEND"] == "full"
    found = audit(vm)
    assert (found["verdict"], found["managed_by"]) == ("complete", "kdumphpd"), found
    assert any(low <= start + size and end <= high for low, high in found["header"]["memory"])
    dimm = vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(dimm)
    settle(vm)
    updates = journal.records("updated")
    by_kernel = "kernel" in [one.get("KDUMPHPD_BACKEND") for one in journal.records("fallback")]
    seen = shown(vm, updates, by_kernel=by_kernel)
    crash_is_complete(vm, dimm, cpus=1)
    return seen


def _reserved(vm: Machine) -> list[tuple[int, int]]:
    """The crash kernel's reservations, from low to high."""
    return _resources(vm, "Crash kernel")


def _resources(vm: Machine, name: str) -> list[tuple[int, int]]:
    """Addresses, both ends included, of lines of /proc/iomem whose name matches ``name``."""
    found = re.findall(f"^ *([0-9a-f]+)-([0-9a-f]+) : {name}$", vm.guest.read("/proc/iomem"), re.M)
    return [(int(start, 16), int(end, 16)) for start, end in found]
