"""Ranges of physical addresses, inclusive at both ends as ``/proc/iomem`` prints them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Range:
    """Physical addresses ``start`` to ``end``, both included."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"not a range: {self.start:#x}-{self.end:#x}")

    @property
    def size(self) -> int:
        """Length in bytes, at least 1."""
        return self.end - self.start + 1

    def contains(self, other: Range) -> bool:
        """Whether all of ``other`` lies in this range."""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, other: Range) -> bool:
        """Whether the two share an address."""
        return self.start <= other.end and other.start <= self.end

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end:#x}"


def merge(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Sort ``ranges`` and join those that overlap or touch."""
    merged: list[Range] = []
    for one in sorted(ranges):
        if merged and one.start <= merged[-1].end + 1:
            merged[-1] = Range(merged[-1].start, max(merged[-1].end, one.end))
        else:
            merged.append(one)
    return tuple(merged)


def subtract(ranges: Iterable[Range], holes: Iterable[Range]) -> tuple[Range, ...]:
    """Merge ``ranges``, then leave out every address in ``holes``.

    One pass over both: two headers of thousands of ranges are compared at every look.
    """
    left: list[Range] = []
    gaps = merge(holes)
    index = 0
    for one in merge(ranges):
        start = one.start
        while index < len(gaps) and gaps[index].start <= one.end:
            gap = gaps[index]
            if start < gap.start:
                left.append(Range(start, gap.start - 1))
            start = max(start, gap.end + 1)
            if gap.end > one.end:
                break  # it may reach into the next range too
            index += 1
        if start <= one.end:
            left.append(Range(start, one.end))
    return tuple(left)


def total(ranges: Iterable[Range]) -> int:
    """Bytes in ``ranges`` together; they must not overlap."""
    return sum(one.size for one in ranges)
