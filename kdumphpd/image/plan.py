"""From a kernel, an initrd and a command line to a crash image: plan it, then build it.

The plan is a value that can be shown before anything is loaded; building adds
the contents and seals them with the digest that the purgatory checks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kdumphpd.errors import ImageError
from kdumphpd.image import boot_params, e820, parameter_block
from kdumphpd.image import efi as efi_info
from kdumphpd.image.bzimage import ENTRY_64BIT, BzImage
from kdumphpd.image.e820 import E820Entry
from kdumphpd.image.layout import KernelNeeds, Layout, Room, capacity_gib, page_up, plan
from kdumphpd.image.parameter_block import ParameterBlock
from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.load.segments import Segment
from kdumphpd.machine.efi import Efi
from kdumphpd.machine.iomem import Resource
from kdumphpd.machine.ranges import Range
from kdumphpd.machine.reservation import Reservation

#: What the digest covers, in the order of the parameter block's region table.
REGION_NAMES = ("kernel", "initrd", "boot_params", "purgatory")

#: I/O bases of ttyS0 to ttyS3 (arch/x86/include/asm/serial.h).
_SERIAL_PORTS = (0x3F8, 0x2F8, 0x3E8, 0x2E8)


@dataclass(frozen=True)
class ImageParts:
    """What the configuration names, read: the kernel's header, sizes, the command line."""

    kernel: BzImage
    initrd_size: int
    command_line: str


@dataclass(frozen=True)
class ImagePlan:
    """Everything about an image but the bytes of its kernel and initrd.

    Attributes:
        command_line: as the crash kernel gets it, with elfcorehdr=.
        memory_map: the crash kernel's e820 map.
        boot_params: the content of that segment.
        efi: what it says of EFI, or why it does not.
    """

    parts: ImageParts
    layout: Layout
    room: Room
    command_line: str
    memory_map: tuple[E820Entry, ...]
    boot_params: bytes
    efi: Efi

    @property
    def entry(self) -> int:
        """Where the dying kernel jumps to: the purgatory's first byte."""
        return self.layout.purgatory.start

    @property
    def capacity_gib(self) -> int:
        """GiB of RAM that the control pad has room for."""
        return capacity_gib(self.layout.pad.size)

    def block(self, nonce: bytes) -> ParameterBlock:
        """The parameter block, not sealed yet."""
        layout, parts = self.layout, self.parts
        regions = (
            Range(layout.kernel.start, layout.kernel.start + parts.kernel.size - 1),
            Range(layout.initrd.start, layout.initrd.start + parts.initrd_size - 1),
            layout.boot_params,
            Range(self.entry, self.entry + parameter_block.purgatory_code_size() - 1),
        )
        return ParameterBlock(
            nonce=nonce,
            kernel_entry=layout.kernel.start + ENTRY_64BIT,
            boot_params=layout.boot_params.start,
            elfcorehdr=layout.elfcorehdr,
            control_pad=layout.pad,
            serial_port=serial_port(self.command_line),
            regions=regions,
        )


def make_plan(
    parts: ImageParts,
    reservation: Reservation,
    room: Room,
    resources: Sequence[Resource],
    cma: Sequence[Range],
    running_boot_params: bytes,
    firmware: Efi,
) -> ImagePlan:
    """Plan an image.

    Args:
        parts: what to load.
        reservation: where.
        room: how much to keep free for growth.
        resources: all of ``/proc/iomem``.
        cma: RAM beside the reservation that the crash kernel may use.
        running_boot_params: ``/sys/kernel/boot_params/data``.
        firmware: EFI as the running kernel has set it up.

    Raises:
        ImageError: the command line cannot be used; see `complete_command_line`.
        MachineError: the reservation is too small.
    """
    kernel = parts.kernel
    needs = KernelNeeds(kernel.memory_size, kernel.kernel_alignment, kernel.pref_address)
    # The elfcorehdr's place does not depend on the sizes behind it.
    header = Range(
        reservation.main.start + room.pad, reservation.main.start + room.pad + room.elfcorehdr - 1
    )
    command_line = complete_command_line(parts.command_line, header.start)
    memory_map = e820.capture_map(resources, (*reservation.ranges, *cma), header)
    encoded = command_line.encode()
    efi = efi_info.usable(firmware, kernel, command_line)
    layout = plan(
        reservation.main,
        room,
        needs,
        parts.initrd_size,
        boot_params.segment_size(encoded, memory_map, efi.state),
        parameter_block.purgatory_size(),
    )
    content = boot_params.build(
        running_boot_params,
        kernel,
        layout.boot_params.start,
        encoded,
        Range(layout.initrd.start, layout.initrd.start + parts.initrd_size - 1),
        memory_map,
        efi.state,
    )
    return ImagePlan(
        parts=parts,
        layout=layout,
        room=room,
        command_line=command_line,
        memory_map=memory_map,
        boot_params=content.ljust(layout.boot_params.size, b"\0"),
        efi=efi,
    )


def complete_command_line(configured: str, elfcorehdr: int | None) -> str:
    """The configured command line with what the crash kernel cannot do without.

    ``acpi_no_memhotplug``: else its ACPI driver finds the hot-added DIMMs, takes
    them for its own RAM (drivers/acpi/acpi_memhotplug.c), and /proc/vmcore cannot map
    what they held. RHEL has it in KDUMP_COMMANDLINE_APPEND, Debian has not.

    Args:
        configured: the configuration's command line.
        elfcorehdr: physical address of the header, a multiple of 1024; None if the
            kernel adds it (kexec_file_load).

    Raises:
        ImageError: ``configured`` has an elfcorehdr= of its own.
    """
    if re.search(r"(^|\s)elfcorehdr=", configured):
        raise ImageError(
            "the command line names elfcorehdr= itself",
            "take it out of [image] command_line; kdumphpd adds it",
        )
    added = [] if elfcorehdr is None else [f"elfcorehdr={elfcorehdr >> 10}K"]
    if "acpi_no_memhotplug" not in configured.split():
        added.insert(0, "acpi_no_memhotplug")
    return " ".join((configured.strip(), *added)).strip()


def serial_port(command_line: str) -> int:
    """I/O base of the serial console that ``command_line`` names last; 0 for none.

    The purgatory says there why it does not start a damaged image.
    """
    found = re.findall(r"(?:^|\s)console=ttyS([0-3])(?:,\S*)?(?=\s|$)", command_line)
    return _SERIAL_PORTS[int(found[-1])] if found else 0


@dataclass(frozen=True)
class CrashImage:
    """An image with its contents, ready to load; close it to give the memory back."""

    plan: ImagePlan
    block: ParameterBlock
    static: tuple[Segment, ...]

    @classmethod
    def build(
        cls, plan: ImagePlan, nonce: bytes, kernel: LockedBuffer, initrd: LockedBuffer
    ) -> CrashImage:
        """Put the contents together and seal them; takes over ``kernel`` and ``initrd``.

        Args:
            plan: the plan, made from the same kernel and initrd.
            nonce: 16 random bytes.
            kernel: the protected-mode part of the bzImage.
            initrd: the whole initrd.
        """
        layout = plan.layout
        params = LockedBuffer.of(plan.boot_params)
        code = parameter_block.purgatory_binary()[: parameter_block.purgatory_code_size()]
        with kernel.view() as one, initrd.view() as other:
            block = parameter_block.seal(plan.block(nonce), [one, other, plan.boot_params, code])
        purgatory = LockedBuffer.of(parameter_block.purgatory_segment(block))
        static = (
            Segment("kernel", kernel, layout.kernel),
            Segment("initrd", initrd, layout.initrd),
            Segment("boot_params", params, layout.boot_params),
            Segment("purgatory", purgatory, layout.purgatory),
        )
        return cls(plan, block, static)

    def close(self) -> None:
        """Give the memory of all parts back."""
        for one in self.static:
            one.content.close()


def header_segment(reserve: Range, content: LockedBuffer) -> Segment:
    """The elfcorehdr segment, only as long as ``content``: each page copied is time not armed."""
    place = Range(reserve.start, reserve.start + page_up(len(content)) - 1)
    return Segment("elfcorehdr", content, place)
