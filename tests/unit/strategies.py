"""Hypothesis strategies that several test files share."""

from __future__ import annotations

from hypothesis import strategies as st

from kdumphpd.machine.ranges import Range

PAGE = 4096


@st.composite
def ranges(draw: st.DrawFn, *, top: int = 1 << 46, align: int = PAGE) -> Range:
    """One range whose ends are multiples of ``align``."""
    start = draw(st.integers(0, top // align - 2))
    size = draw(st.integers(1, min(top // align - start - 1, 1 << 24)))
    return Range(start * align, (start + size) * align - 1)


@st.composite
def separate_ranges(
    draw: st.DrawFn, *, min_size: int = 0, max_size: int = 12, align: int = PAGE, first: int = 0
) -> tuple[Range, ...]:
    """Sorted ranges with a gap between any two, so that merging changes nothing."""
    found = []
    position = first
    for _ in range(draw(st.integers(min_size, max_size))):
        position += draw(st.integers(1, 1 << 20)) * align
        size = draw(st.integers(1, 1 << 20)) * align
        found.append(Range(position, position + size - 1))
        position += size
    return tuple(found)
