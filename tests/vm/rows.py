"""The matrix: which guest, in which shape of machine, has to show which scenario."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm import scenarios, scenarios_audit, scenarios_shape
from tests.vm.rig import (
    BOOKWORM,
    BULLSEYE,
    GIB,
    SID,
    TRIXIE,
    Firmware,
    Guest,
    Machine,
    MachineOptions,
    Overlay,
    add_kdump,
    add_product,
    build_or_reuse,
    secure_boot,
)
from tests.vm.rig.product import CONFIG
from tests.vm.scenarios import Shown

TREE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Row:
    """One machine and what it has to show.

    Attributes:
        name: the scenario, with what is particular about the machine.
        guest: what boots.
        tell: the scenario; it raises AssertionError where the product falls short.
        options: the machine.
        shape: a command that is true in the guest only if the machine is as meant.
        config: more of the configuration.
        drop_in: of the unit, in /etc/systemd/system/kdumphpd.service.d.
        kdump: whether the stand-in for kdump-utils is there and says what to load.
        starts: whether the unit starts at boot.
        in_test: whether ``make test`` runs it, not only ``make test-vm-matrix``.
    """

    name: str
    guest: Guest
    tell: Callable[[Machine], Shown]
    options: MachineOptions = field(default_factory=MachineOptions)
    shape: str = "true"
    config: str = ""
    drop_in: str = ""
    kdump: bool = False
    starts: bool = True
    in_test: bool = False

    @property
    def id(self) -> str:
        """The row in one word, for file names and test names."""
        words = f"{self.guest.name} {self.options.firmware.value} {self.name}"
        return "".join(one if one.isalnum() else "-" for one in words)


_NUMA = (
    *("-object", f"memory-backend-ram,id=ram0,size={GIB}"),
    *("-object", f"memory-backend-ram,id=ram1,size={GIB}"),
    *("-numa", "node,nodeid=0,memdev=ram0,cpus=0-1"),
    *("-numa", "node,nodeid=1,memdev=ram1,cpus=2-3"),
)

# A page every 4 MiB is reserved, and here and there a byte more, so that what follows
# starts inside a page.
_PIECES = "memmap=" + ",".join(
    f"{'4K' if number % 10 else 4097}${256 + 4 * number}M" for number in range(204)
)

# 2 GiB lie below 4 GiB; what lies above becomes E820_TYPE_SOFT_RESERVED.
_DAX = MachineOptions(memory=3 * GIB, kernel_arguments=("memmap=1G%4G-1+0xefffffff",))

# A kernel without CONFIG_KEXEC, as RHEL 10's.
_NO_KEXEC_LOAD = """\
[Service]
SystemCallFilter=~kexec_load
SystemCallErrorNumber=ENOSYS
"""

# Nor is kexec_file_load there: what is left is the host's own command.
_NO_KEXEC = """\
[Service]
SystemCallFilter=~kexec_load kexec_file_load
SystemCallErrorNumber=ENOSYS
"""

# A load of files takes seconds under emulation: a hundred times as long would be too long.
_HURRY = "[update]\nmax_disarmed_percent = 10\n"

_CPU = MachineOptions().cpu

# 2 GiB lie below 4 GiB; the kernel takes the memory from what lies above.
_CMA = MachineOptions(memory=3 * GIB, kernel_arguments=("crashkernel=128M,cma",))
_HAS_CMA = "[ -s /sys/kernel/kexec/crash_cma_ranges ]"

ROWS = (
    Row("hotplug and crash", BULLSEYE, scenarios.follow_hotplug, in_test=True),
    Row("CPU removal", BULLSEYE, scenarios.remove_cpu),
    Row("images of others", BULLSEYE, scenarios_audit.audit_images_of_others, starts=False),
    Row("hotplug and crash", BOOKWORM, scenarios.follow_hotplug),
    Row("lockdown=integrity", BOOKWORM, scenarios.stay_armed_in_lockdown),
    Row(
        "no kexec_load",
        BOOKWORM,
        scenarios.follow_hotplug_by_file,
        config=_HURRY,
        drop_in=_NO_KEXEC_LOAD,
    ),
    Row(
        "no kexec system calls",
        BOOKWORM,
        scenarios.follow_hotplug_by_command,
        config=_HURRY,
        drop_in=_NO_KEXEC,
        kdump=True,
        in_test=True,
    ),
    Row("CPU removal", BOOKWORM, scenarios.remove_cpu),
    Row("images of others", BOOKWORM, scenarios_audit.audit_images_of_others, starts=False),
    Row(
        "hotplug and crash",
        BOOKWORM,
        scenarios_shape.follow_hotplug_with_efi,
        MachineOptions(firmware=Firmware.OVMF),
        shape="test -d /sys/firmware/efi",
        in_test=True,
    ),
    Row(
        "crashkernel=,high",
        BOOKWORM,
        scenarios_shape.follow_hotplug_above_4g,
        # 2 GiB below 4 GiB, 1 GiB above.
        MachineOptions(memory=3 * GIB, crashkernel="256M,high"),
        shape="[ $(grep -c 'Crash kernel' /proc/iomem) = 2 ]",
    ),
    Row(
        "virtio-mem",
        BOOKWORM,
        scenarios_shape.follow_virtio_mem,
        MachineOptions(virtio_mem=True),
    ),
    Row(
        "dax memory",
        BOOKWORM,
        scenarios_shape.follow_dax_memory,
        _DAX,
        shape="[ -e /sys/bus/dax/devices/dax0.0 ]",
    ),
    Row(
        "RAM in 200 pieces",
        BOOKWORM,
        scenarios_shape.outgrow_room,
        # The pad is there for hosts without 1 GiB pages.
        MachineOptions(cpu=f"{_CPU},-pdpe1gb", slots=64, kernel_arguments=(_PIECES,)),
        shape="! grep -q pdpe1gb /proc/cpuinfo",
        config=_HURRY,
    ),
    Row(
        "crashkernel shrunk",
        BOOKWORM,
        scenarios_shape.shrink_reservation,
        shape="[ ! -e /sys/kernel/kexec ]",
        config=_HURRY,
    ),
    Row(
        "two NUMA nodes",
        BOOKWORM,
        scenarios_shape.follow_hotplug_on_node_1,
        # Balancing would move the pattern to the node of the process that holds it.
        MachineOptions(qemu_arguments=_NUMA, kernel_arguments=("numa_balancing=disable",)),
        shape='[ "$(cat /sys/devices/system/node/online)" = 0-1 ]',
    ),
    Row(
        "no 1 GiB pages",
        BOOKWORM,
        scenarios.follow_hotplug,
        MachineOptions(cpu=f"{_CPU},-pdpe1gb"),
        shape="! grep -q pdpe1gb /proc/cpuinfo",
    ),
    Row(
        "4-level paging",
        BOOKWORM,
        scenarios.follow_hotplug,
        MachineOptions(cpu=f"{_CPU},-la57"),
        shape="! grep -q la57 /proc/cpuinfo",
    ),
    Row(
        "hotplug and crash",  # with 5-level paging
        TRIXIE,
        scenarios.follow_hotplug_with_kernel,
        shape="grep -q la57 /proc/cpuinfo",
        in_test=True,
    ),
    Row("CPU removal", TRIXIE, scenarios.remove_cpu_with_kernel),
    Row("images of others", TRIXIE, scenarios_audit.audit_images_of_others, starts=False),
    Row("what the kernel leaves", TRIXIE, scenarios.mend_what_the_kernel_leaves, starts=False),
    Row(
        "hotplug and crash",
        TRIXIE,
        scenarios_shape.follow_hotplug_with_kernel_and_efi,
        MachineOptions(firmware=Firmware.OVMF),
        shape="test -d /sys/firmware/efi",
    ),
    Row(
        "RAM in 200 pieces",
        TRIXIE,
        scenarios_shape.follow_hotplug_in_pieces,
        MachineOptions(kernel_arguments=(_PIECES,)),
    ),
    Row(
        "lockdown=confidentiality",
        TRIXIE,
        scenarios_audit.know_nothing_in_confidentiality,
    ),
    Row(
        "Secure Boot",
        TRIXIE,
        scenarios.follow_hotplug_with_secure_boot,
        MachineOptions(firmware=Firmware.SECURE_BOOT),
        config=_HURRY,
    ),
    Row("hotplug and crash", SID, scenarios.follow_hotplug_with_kernel),
    Row("CPU removal", SID, scenarios.remove_cpu_with_kernel),
    Row("images of others", SID, scenarios_audit.audit_images_of_others, starts=False),
    Row("what the kernel leaves", SID, scenarios.mend_what_the_kernel_leaves, starts=False),
    Row(
        "dax memory",
        SID,
        scenarios_shape.follow_dax_memory_with_kernel,
        _DAX,
        shape="[ -e /sys/bus/dax/devices/dax0.0 ]",
    ),
    Row(
        "crashkernel=,cma",
        SID,
        scenarios_shape.follow_hotplug_with_cma,
        _CMA,
        shape=_HAS_CMA,
        starts=False,
    ),
    Row(
        "cma, no kexec_load",
        SID,
        scenarios_shape.follow_hotplug_with_cma_by_file,
        _CMA,
        shape=_HAS_CMA,
        config=_HURRY,
        drop_in=_NO_KEXEC_LOAD,
        starts=False,
    ),
    Row(
        "crashkernel shrunk",
        SID,
        scenarios_shape.shrink_reservation,
        shape="[ -e /sys/kernel/kexec/crash_size ]",
        config=_HURRY,
    ),
)


def run(row: Row, wheel: Path, directory: Path) -> Shown:
    """Boot the row's machine with the product in it, and have it show the scenario.

    Raises:
        AssertionError: it did not; a RigError if the machine itself went wrong.
    """
    image = build_or_reuse(row.guest, TREE / "build/vm")
    overlay = Overlay(directory / "overlay")
    config = row.config if row.kdump else CONFIG + row.config
    add_product(overlay, row.guest, wheel, TREE / "systemd", config)
    if row.kdump:
        add_kdump(overlay, image)
    if row.options.firmware is Firmware.SECURE_BOOT:
        overlay.copy(secure_boot.sign(image.kernel, directory), "/boot/vmlinuz")
    if row.drop_in:
        overlay.write("/etc/systemd/system/kdumphpd.service.d/row.conf", row.drop_in)
    if row.starts:
        overlay.enable("kdumphpd.service")
    with Machine(image, directory / "vm", overlay, row.options) as vm:
        vm.guest.run(row.shape)
        return row.tell(vm)
