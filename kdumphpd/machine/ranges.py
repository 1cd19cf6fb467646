"""Ranges of physical addresses, inclusive at both ends as ``/proc/iomem`` prints them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    """Merge ``ranges``, then leave out every address in ``holes``."""
    left = merge(ranges)
    for hole in merge(holes):
        left = tuple(piece for one in left for piece in _without(one, hole))
    return left


def _without(one: Range, hole: Range) -> Iterator[Range]:
    if not one.overlaps(hole):
        yield one
        return
    if one.start < hole.start:
        yield Range(one.start, hole.start - 1)
    if hole.end < one.end:
        yield Range(hole.end + 1, one.end)


def total(ranges: Iterable[Range]) -> int:
    """Bytes in ``ranges`` together; they must not overlap."""
    return sum(one.size for one in ranges)
