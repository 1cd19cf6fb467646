"""What kind of machine to run, and the QEMU command line for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .firmware import Firmware

MIB = 1 << 20
GIB = 1 << 30

CAPTURE_COMMAND_LINE = "console=ttyS0 nr_cpus=1 reset_devices panic=-1 acpi_no_memhotplug"
"""What the capture kernel needs on its command line to report, to end and to dump.

Without acpi_no_memhotplug its ACPI driver finds the hot-added DIMMs, takes them for its
own RAM (drivers/acpi/acpi_memhotplug.c), and /proc/vmcore can no longer map them:
"ioremap on RAM". RHEL has it in KDUMP_COMMANDLINE_APPEND.
"""


@dataclass(frozen=True)
class MachineOptions:
    """The virtual hardware and the first kernel's command line.

    Attributes:
        machine: QEMU machine type, ``q35`` or ``pc``, with options if need be.
        cpu: CPU model.
        cpus: CPUs at boot.
        max_cpus: CPU sockets.
        memory: bytes of RAM at boot.
        max_memory: bytes of RAM with all DIMMs.
        slots: DIMM slots.
        firmware: what starts the machine.
        virtio_mem: whether there is a virtio-mem device, empty at boot.
        crashkernel: value of the kernel parameter.
        kernel_arguments: more kernel parameters.
        qemu_arguments: more QEMU arguments.
    """

    machine: str = "q35"
    # Software emulation does "rep movsb" byte by byte: without ERMS the guest clears and
    # copies pages by larger steps, and a dump takes a third less time.
    cpu: str = "max,-erms,-fsrm"
    cpus: int = 1
    max_cpus: int = 4
    memory: int = 2 * GIB
    max_memory: int = 16 * GIB
    slots: int = 8
    firmware: Firmware = Firmware.SEABIOS
    virtio_mem: bool = False
    crashkernel: str = "256M"
    kernel_arguments: tuple[str, ...] = ()
    qemu_arguments: tuple[str, ...] = ()

    def kernel_command_line(self) -> str:
        # online_movable: only memory in ZONE_MOVABLE can be unplugged again.
        fixed = ("console=ttyS0", "panic=-1", "memhp_default_state=online_movable")
        return " ".join((*fixed, f"crashkernel={self.crashkernel}", *self.kernel_arguments))


def disguised(options: MachineOptions) -> MachineOptions:
    """The same machine, taken for one of VMware's.

    Kernels >= 6.9 plug in a CPU only under a hypervisor that they know, and software
    emulation is none (topology_register_apic, arch/x86/kernel/cpu/topology.c). VMware is
    known by its serial number and its I/O port (arch/x86/kernel/cpu/vmware.c), which it
    asks for even without the CPU's "hypervisor" flag.
    """
    return replace(
        options,
        machine=f"{options.machine},vmport=on",
        cpu=f"{options.cpu},-hypervisor",
        qemu_arguments=(*options.qemu_arguments, "-smbios", "type=1,serial=VMware-56 4d"),
    )


@dataclass(frozen=True)
class Sockets:
    """Unix sockets of a machine, in a directory with a short name (sun_path is 108 bytes)."""

    directory: Path

    @property
    def monitor(self) -> Path:
        return self.directory / "qmp"

    @property
    def agent(self) -> Path:
        return self.directory / "agent"

    @property
    def gdb(self) -> Path:
        return self.directory / "gdb"


VIRTIO_MEM_SIZE = 2 * GIB
_VIRTIO_MEM = (
    *("-object", f"memory-backend-ram,id=virtio-mem-ram,size={VIRTIO_MEM_SIZE}"),
    *("-device", "virtio-mem-pci,id=virtio-mem,memdev=virtio-mem-ram,requested-size=0"),
)


def qemu_command(
    options: MachineOptions,
    accelerator: str,
    kernel: Path,
    initrd: Path,
    disk: Path,
    console: Path,
    share: Path,
    sockets: Sockets,
) -> list[str]:
    """Command line of QEMU; it gets SIGKILL when the thread that starts it ends."""
    memory = f"{options.memory // MIB}M,slots={options.slots},maxmem={options.max_memory // MIB}M"
    topology = f"sockets={options.max_cpus},cores=1,threads=1"
    return [
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("qemu-system-x86_64", "-machine", options.machine, "-accel", accelerator),
        *("-cpu", options.cpu, "-m", memory),
        *("-smp", f"{options.cpus},maxcpus={options.max_cpus},{topology}"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(kernel), "-initrd", str(initrd)),
        *("-append", options.kernel_command_line()),
        *("-drive", f"file={disk},if=none,id=disk,format=raw,snapshot=on"),
        *("-device", "virtio-blk-pci,drive=disk"),
        *("-fsdev", f"local,id=share,path={share},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=share,mount_tag=capture"),
        *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=agent,path={sockets.agent},server=on,wait=off"),
        *("-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-qmp", f"unix:{sockets.monitor},server=on,wait=off"),
        *("-gdb", f"unix:{sockets.gdb},server=on,wait=off"),
        *(_VIRTIO_MEM if options.virtio_mem else ()),
        *options.qemu_arguments,
    ]
