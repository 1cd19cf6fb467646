"""The segments of a ``kexec_load(2)`` call, and every check the kernel makes on them.

The kernel frees the loaded image *before* it looks at the segments
(``kernel/kexec.c``, do_kexec_load), so a list that it refuses leaves the host
without a crash kernel. Nothing is passed to it that did not pass here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdumphpd.errors import LoadError
from kdumphpd.image.layout import PAGE
from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.machine.ranges import Range

#: KEXEC_SEGMENT_MAX, include/linux/kexec.h.
MAX_SEGMENTS = 16


@dataclass(frozen=True)
class Segment:
    """``content`` goes to ``place.start``; the kernel fills the rest of ``place`` with zeros."""

    name: str
    content: LockedBuffer
    place: Range

    @property
    def size(self) -> int:
        """Bytes of content."""
        return len(self.content)


def check(segments: Sequence[Segment], entry: int, reservation: Range, total_ram: int) -> None:
    """Check what ``kernel/kexec_core.c``, sanity_check_segment_list, and its callers check.

    Args:
        segments: in any order.
        entry: where the kernel jumps to.
        reservation: crashk_res.
        total_ram: bytes of RAM as the kernel counts it (MemTotal); a list that would take
            half of it is refused.

    Raises:
        LoadError: the kernel would refuse the list, having dropped the image it holds.
    """
    needed = sum(one.place.size for one in segments)
    if needed > total_ram // 2:
        raise LoadError(
            f"not loading: the image takes {needed >> 20} MiB, and the kernel allows half of "
            f"its {total_ram >> 20} MiB of RAM",
            "use a smaller kernel or initrd, a smaller crashkernel=, or more RAM",
        )
    problem = _problem(segments, entry, reservation)
    if problem:
        raise LoadError(f"not loading: {problem}", "this is a bug in kdumphpd, please report it")


def _problem(segments: Sequence[Segment], entry: int, reservation: Range) -> str | None:
    # No segments at all would be an unload.
    if not 1 <= len(segments) <= MAX_SEGMENTS:
        return f"{len(segments)} segments; the kernel takes 1 to {MAX_SEGMENTS}"
    if not reservation.start <= entry <= reservation.end:
        return f"the entry {entry:#x} lies outside the reservation {reservation}"
    for one in segments:
        problem = _misplaced(one, reservation)
        if problem:
            return f"{one.name} {problem}"
    ordered = sorted(segments, key=lambda one: one.place)
    for low, high in zip(ordered, ordered[1:]):
        if low.place.overlaps(high.place):
            return f"{low.name} at {low.place} overlaps {high.name} at {high.place}"
    return None


def _misplaced(one: Segment, reservation: Range) -> str | None:
    if one.place.start % PAGE or (one.place.end + 1) % PAGE:
        return f"at {one.place} does not fill whole pages"
    if not reservation.contains(one.place):
        return f"at {one.place} lies outside the reservation {reservation}"
    if one.size > one.place.size:
        return f"has {one.size} bytes for a place of {one.place.size}"
    return None
