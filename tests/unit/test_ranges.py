from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.machine.ranges import Range, merge, subtract, total

_SMALL = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda p: Range(p[0], p[0] + p[1]))
_LISTS = st.lists(_SMALL, max_size=10)


def _numbers(ranges: list[Range] | tuple[Range, ...]) -> set[int]:
    return {number for one in ranges for number in range(one.start, one.end + 1)}


@given(_LISTS)
def test_merge_keeps_every_address_and_leaves_gaps(ranges: list[Range]) -> None:
    merged = merge(ranges)
    assert _numbers(merged) == _numbers(ranges)
    assert all(low.end + 1 < high.start for low, high in zip(merged, merged[1:]))
    assert total(merged) == len(_numbers(ranges))
    assert merge(merged) == merged


@given(_LISTS, _LISTS)
def test_subtract_is_set_difference(ranges: list[Range], holes: list[Range]) -> None:
    left = subtract(ranges, holes)
    assert _numbers(left) == _numbers(ranges) - _numbers(holes)
    assert merge(left) == left


@given(_SMALL, _SMALL)
def test_overlaps_and_contains_agree_with_sets(one: Range, other: Range) -> None:
    assert one.overlaps(other) == bool(_numbers([one]) & _numbers([other]))
    assert one.contains(other) == (_numbers([other]) <= _numbers([one]))
    assert one.size == len(_numbers([one]))


@pytest.mark.parametrize(("start", "end"), [(1, 0), (-1, 5), (-2, -1)])
def test_an_impossible_range_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not a range"):
        Range(start, end)


def test_a_range_shows_as_hexadecimal() -> None:
    assert str(Range(0x100000000, 0x8FFFFFFFF)) == "0x100000000-0x8ffffffff"
