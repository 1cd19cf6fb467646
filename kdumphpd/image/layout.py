"""Where each part of the image goes in the reservation, and how much room is kept.

From low to high::

    control pad    empty: the kernel takes its control pages from the lowest hole
    elfcorehdr     reserved for growth, rewritten by delta loads, not in the digest
    kernel         aligned, init_size bytes
    (free)         RAM for the crash kernel
    initrd
    boot_params    with the command line
    purgatory      its parameter block in the very last page

The pad must come first: a delta load names the elfcorehdr alone, and the
kernel would take its control pages from a hole inside the parts it does not
know of (``kernel/kexec_core.c``, kimage_alloc_crash_control_pages).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kdumphpd.errors import MachineError
from kdumphpd.machine.ranges import Range

PAGE = 4096
GIB = 1 << 30
_MIB = 1 << 20
_PUD_SPAN = 512 * GIB
#: Control code (2), the vmcoreinfo copy (1), the page tables' root (1), a P4D with
#: 5-level paging (1), the transition page table (4, arch/x86/kernel/machine_kexec_64.c,
#: init_transition_pgtable), low memory's and the image's own PUD and PMD (4), and
#: 3 lost to the alignment of the control code pages.
_FIXED_PAGES = 16
#: The smallest pad maps 1 TiB even where the CPU lacks 1 GiB pages.
_LEAST_CAPACITY_GIB = 1024
#: What a crash kernel needs beside its image to unpack the initrd and save the dump.
_WORKING_MEMORY = 128 * _MIB


def page_up(size: int) -> int:
    """``size`` rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def control_pages(mapped: Iterable[Range]) -> int:
    """Pages the kernel may take in one load to map ``mapped``, at the worst.

    One page (PMD) for each GiB touched, as if there were no 1 GiB pages, and two for each
    512 GiB touched (PUD, and a P4D that 4-level paging takes and does not use;
    ``arch/x86/mm/ident_map.c``, kernel_ident_mapping_init).
    """
    ranges = sorted(mapped)
    return _FIXED_PAGES + _touched(ranges, GIB) + 2 * _touched(ranges, _PUD_SPAN)


def _touched(ranges: Iterable[Range], span: int) -> int:
    """How many aligned pieces of ``span`` bytes sorted ``ranges`` reach into."""
    count, last = 0, -1
    for one in ranges:
        first, end = max(one.start // span, last + 1), one.end // span
        if first <= end:
            count += end - first + 1
            last = end
    return count


def capacity_gib(pad_size: int) -> int:
    """GiB of RAM that a pad of ``pad_size`` bytes has page tables for, at the worst."""
    pages = pad_size // PAGE - _FIXED_PAGES
    return max(0, pages * 512 // 514 - 2)


@dataclass(frozen=True)
class Room:
    """Bytes kept free for growth: the control pad and the elfcorehdr reserve."""

    pad: int
    elfcorehdr: int

    def outgrown(self, pages: int, header_size: int) -> str:
        """Why a load does not fit that takes ``pages`` control pages; empty if it does."""
        if pages * PAGE > self.pad:
            return f"memory has outgrown the control pad: {pages} of {self.pad // PAGE} pages"
        if header_size > self.elfcorehdr:
            needed = f"{header_size} of {self.elfcorehdr} bytes"
            return f"the elfcorehdr has outgrown its reserve: {needed}"
        return ""


def room_for(
    ram: Iterable[Range], mapped: Iterable[Range], elfcorehdr_reserve: int, overrun: int = 0
) -> Room:
    """Room for four times the RAM of now, for twice of all that is mapped, and for a TiB.

    Args:
        ram: System RAM.
        mapped: what the page tables reach; RAM too.
        elfcorehdr_reserve: bytes for the header.
        overrun: a pad of so many bytes was not enough.
    """
    least = _FIXED_PAGES + 4 + _LEAST_CAPACITY_GIB + 4
    pages = max(4 * control_pages(ram), 2 * control_pages(mapped), least, 2 * overrun // PAGE)
    return Room(_mib(pages * PAGE) * _MIB, page_up(elfcorehdr_reserve))


def least_room(mapped: Iterable[Range], elfcorehdr_reserve: int, overrun: int = 0) -> Room:
    """Room for what is mapped now; arguments as `room_for`."""
    pad = max(control_pages(mapped) * PAGE, overrun + 1)
    return Room(_mib(pad) * _MIB, page_up(elfcorehdr_reserve))


@dataclass(frozen=True)
class KernelNeeds:
    """What the kernel's setup header asks of its place (Documentation/arch/x86/boot.rst)."""

    size: int  # init_size, bytes
    alignment: int
    pref_address: int


@dataclass(frozen=True)
class Layout:
    """Place of every part; each starts and ends at a page boundary."""

    reservation: Range
    pad: Range
    elfcorehdr: Range
    kernel: Range
    initrd: Range
    boot_params: Range
    purgatory: Range

    def parts(self) -> tuple[tuple[str, Range], ...]:
        """Names and places from low to high."""
        return (
            ("control pad", self.pad),
            ("elfcorehdr", self.elfcorehdr),
            ("kernel", self.kernel),
            ("initrd", self.initrd),
            ("boot_params", self.boot_params),
            ("purgatory", self.purgatory),
        )


def plan(
    reservation: Range,
    room: Room,
    kernel: KernelNeeds,
    initrd_size: int,
    boot_params_size: int,
    purgatory_size: int,
) -> Layout:
    """Place the parts in ``reservation``; sizes in bytes.

    Raises:
        MachineError: they do not fit; says what crashkernel= would do.
    """
    pad = _span(reservation.start, room.pad)
    elfcorehdr = _span(pad.end + 1, room.elfcorehdr)
    # Below pref_address the decompressor would move the kernel up to it and out of the
    # reservation (arch/x86/boot/compressed/head_64.S compares with LOAD_PHYSICAL_ADDR).
    lowest = max(elfcorehdr.end + 1, kernel.pref_address)
    start = -(-lowest // kernel.alignment) * kernel.alignment
    image = _span(start, page_up(kernel.size))

    top = (reservation.end + 1) // PAGE * PAGE
    parts: list[Range] = []
    for size in (purgatory_size, boot_params_size, initrd_size):
        top -= page_up(size)
        parts.append(_span(max(top, 0), page_up(size)))
    purgatory, boot_params, initrd = parts
    if top <= image.end:
        missing = image.end + 1 - top
        raise MachineError(
            f"the crash kernel's reservation {reservation} is {_mib(reservation.size)} MiB and "
            f"the image needs {_mib(reservation.size + missing)} MiB to lie in it",
            f"boot with crashkernel={advised_mib(reservation.size + missing)}M",
        )
    return Layout(reservation, pad, elfcorehdr, image, initrd, boot_params, purgatory)


def _span(start: int, size: int) -> Range:
    return Range(start, start + size - 1)


def _mib(size: int) -> int:
    return -(-size // _MIB)


def advised_mib(size: int) -> int:
    """MiB for crashkernel=: the image and memory to work in, a multiple of 64."""
    return -(-(size + _WORKING_MEMORY) // (64 * _MIB)) * 64
