"""Whether kexec_file_load(2) finds a place for everything in the reservation, as the kernel looks.

The kernel drops the loaded image before it looks for places (kernel/kexec_file.c): one that
is missing (EADDRNOTAVAIL, ENOMEM, EINVAL) leaves nothing loaded. So it is looked for here
first. Each buffer gets the first place that its search finds, and is never moved again
(kexec_add_buffer), in this order::

    IMA's measurement list  downwards, on kernels that hand it to crash kernels too
                            (ima_add_kexec_buffer before kimage_file_prepare_segments' loader)
    elfcorehdr              upwards (crash_load_segments, arch/x86/kernel/crash.c)
    dm-crypt keys           upwards from a random address (crash_load_dm_crypt_keys)
    purgatory               downwards (bzImage64_load, arch/x86/kernel/kexec-bzimage64.c)
    boot_params             downwards, with the command line, EFI's map and setup_data
    kernel                  downwards, init_size bytes, aligned, not below pref_address
    initrd                  downwards

Control pages come last, from the lowest holes (kimage_alloc_crash_control_pages,
kernel/kexec_core.c).

Kernels differ, and do not say in what: before commit 816d334afa85 the downward search stopped
a page short of the end, and IMA's list went to reboots only from 6.14 on. All of it must fit
in each way. What a size is not known of is taken at its largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kdumphpd.image.layout import PAGE, advised_mib, page_up
from kdumphpd.machine.ranges import Range

_CONTROL_CODE = 2 * PAGE  # KEXEC_CONTROL_PAGE_SIZE, arch/x86/include/asm/kexec.h
#: Pages that are lost in holes too small for the control code, or not aligned to it.
_HOLES = 16
_MIB = 1 << 20


@dataclass(frozen=True)
class Buffer:
    """A struct kexec_buf: bytes, and what is asked of its place.

    Attributes:
        content: bytes that are copied there, 0 where that is not to be checked.
    """

    name: str
    size: int
    alignment: int = PAGE
    lowest: int = 0
    upwards: bool = False
    content: int = 0

    @property
    def memory(self) -> int:
        """Bytes of whole pages that it takes (kexec_add_buffer)."""
        return page_up(self.size)


@dataclass(frozen=True)
class FileNeeds:
    """What one load has to place.

    Attributes:
        header: the elfcorehdr.
        others: the buffers after it, in the kernel's order.
        measurements: IMA's list; None for none.
        keys: bytes of dm-crypt keys, 0 for none.
        control_pages: pages for the identity map and the like, at most.
        arguments: bytes that the kernel adds to the command line, its final zero too.
    """

    header: Buffer
    others: tuple[Buffer, ...]
    measurements: Buffer | None
    keys: int
    control_pages: int
    arguments: int = 0

    def buffers(self) -> tuple[Buffer, ...]:
        """All that may have to be placed, in the kernel's order, but the keys."""
        first = () if self.measurements is None else (self.measurements,)
        return (*first, self.header, *self.others)


@dataclass(frozen=True)
class Misfit:
    """Why a load would find no place; what to do about it."""

    problem: str
    remedy: str


def misfit(reservation: Range, needs: FileNeeds, total_ram: int) -> Misfit | None:
    """Why not everything fits, or None.

    Args:
        reservation: crashk_res.
        needs: what is to be placed.
        total_ram: bytes of RAM as the kernel counts it (MemTotal); more than half of it
            is EINVAL (sanity_check_segment_list).
    """
    buffers = needs.buffers()
    for one in buffers:
        if one.content > one.memory:
            return Misfit(
                f"{one.name} has {one.content} bytes and asks for {one.memory} bytes of memory",
                "reinstall the kernel package",
            )
    taken = sum(one.memory for one in buffers) + page_up(needs.keys)
    if taken > total_ram // 2:
        return Misfit(
            f"the image takes {_mib(taken)} MiB, and the kernel allows half of its "
            f"{_mib(total_ram)} MiB of RAM",
            "use a smaller kernel or initrd, or more RAM",
        )
    lacking = _lacking(reservation, needs)
    if not lacking:
        return None
    sizes = ", ".join(f"{one.name} {_size(one.memory)}" for one in _told(needs))
    return Misfit(
        f"the crash kernel's reservation {reservation} has {_size(reservation.size)} and no room"
        f" for {lacking} ({sizes})",
        f"boot with crashkernel={advised_mib(_generous(reservation, needs))}M",
    )


def place(reservation: Range, buffers: Iterable[Buffer]) -> tuple[Range, ...] | Buffer:
    """Where the kernel would put ``buffers``, in their order, or the first without a place."""
    places: list[Range] = []
    for one in buffers:
        found = _upwards(reservation, places, one) if one.upwards else None
        if not one.upwards:
            found = _downwards(reservation, places, one)
        if found is None:
            return one
        places.append(found)
    return tuple(places)


def _lacking(reservation: Range, needs: FileNeeds) -> str:
    """The name of what has no place in one way of looking or another; empty if all have."""
    if needs.keys:
        # They come to lie anywhere, and may cut any hole in two.
        fits = _generous(reservation, needs) <= reservation.size
        return "" if fits else "dm-crypt keys at any place between"
    lists = {needs.buffers(), (needs.header, *needs.others)}
    ends = (reservation, replace(reservation, end=reservation.end - 1))
    for buffers in sorted(lists, key=len):
        for one in ends:
            places = place(one, buffers)
            if isinstance(places, Buffer):
                return places.name
            if not _has_control_pages(reservation, places, needs.control_pages):
                return "control pages"
    return ""


def _upwards(reservation: Range, places: Sequence[Range], one: Buffer) -> Range | None:
    """locate_mem_hole_bottom_up."""
    starts = [max(reservation.start, one.lowest)]
    starts += [other.end + 1 for other in places if other.end >= starts[0]]
    for start in sorted(-(-start // one.alignment) * one.alignment for start in starts):
        found = Range(start, start + one.memory - 1)
        if found.end <= reservation.end and not _hits(places, found):
            return found
    return None


def _downwards(reservation: Range, places: Sequence[Range], one: Buffer) -> Range | None:
    """locate_mem_hole_top_down."""
    ends = [reservation.end, *(other.start - 1 for other in places)]
    starts = ((end + 1 - one.memory) // one.alignment * one.alignment for end in ends)
    for start in sorted(starts, reverse=True):
        if start < max(reservation.start, one.lowest):
            return None
        found = Range(start, start + one.memory - 1)
        if found.end <= reservation.end and not _hits(places, found):
            return found
    return None


def _hits(places: Iterable[Range], found: Range) -> bool:
    return any(one.overlaps(found) for one in places)


def _has_control_pages(reservation: Range, places: Iterable[Range], pages: int) -> bool:
    """Whether the holes have the control code's two pages, aligned, and ``pages`` in all.

    The search never goes back: what lies below the control code is lost.
    """
    start, found = reservation.start, 0
    for one in (*sorted(places), Range(reservation.end + 1, reservation.end + 1)):
        if not found:
            start = -(-start // _CONTROL_CODE) * _CONTROL_CODE
        size = one.start - start
        if size >= (PAGE if found else _CONTROL_CODE):
            found += size // PAGE
        start = one.end + 1
    return found >= pages


def _generous(reservation: Range, needs: FileNeeds) -> int:
    """Bytes of a reservation, beginning at the same address, that has room in whatever order.

    Of a buffer without a place, each side of the keys has less free than it asks for; so
    with once more of the largest there is none.
    """
    buffers = needs.buffers()
    asked = [one.memory + one.alignment for one in buffers]
    size = sum(asked) + page_up(needs.keys) + (needs.control_pages + _HOLES) * PAGE
    if needs.keys:
        size += max(asked)
    lowest = max(one.lowest for one in buffers)
    return size + max(lowest - reservation.start, 0)


def _told(needs: FileNeeds) -> tuple[Buffer, ...]:
    keys = (Buffer("dm-crypt keys", needs.keys),) if needs.keys else ()
    return (*needs.buffers(), *keys, Buffer("control pages", needs.control_pages * PAGE))


def _size(size: int) -> str:
    return f"{_mib(size)} MiB" if size >= _MIB else f"{-(-size // 1024)} KiB"


def _mib(size: int) -> int:
    return -(-size // _MIB)
