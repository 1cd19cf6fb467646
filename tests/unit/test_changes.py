"""Two states of the machine, and the words for their difference."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.events.changes import Change, cpu_list, difference, size_text
from kdumphpd.machine.ranges import Range

GIB = 1 << 30
MIB = 1 << 20
BLOCK = 128 * MIB
LOW = Range(0x1000, 0x7FFFFFFF)


def text(
    before: list[Range], after: list[Range], cpus: tuple[set[int], set[int]] = (set(), set())
) -> str:
    return str(difference(before, after, *cpus, block_size=BLOCK))


def test_dimm_that_came() -> None:
    dimm = Range(0x100000000, 0x8FFFFFFFF)
    assert text([LOW], [LOW, dimm]) == "memory 0x100000000-0x8ffffffff, 32 GiB, 256 blocks added"


def test_blocks_that_touch_are_one_change() -> None:
    blocks = [Range(start, start + BLOCK - 1) for start in range(4 * GIB, 6 * GIB, BLOCK)]
    assert text([LOW], [LOW, *reversed(blocks)]) == (
        "memory 0x100000000-0x17fffffff, 2 GiB, 16 blocks added"
    )


def test_dimm_beside_known_memory_is_the_only_change() -> None:
    before, after = [Range(4 * GIB, 6 * GIB - 1)], [Range(4 * GIB, 8 * GIB - 1)]
    assert text(before, after) == "memory 0x180000000-0x1ffffffff, 2 GiB, 16 blocks added"
    assert text(after, before) == "memory 0x180000000-0x1ffffffff, 2 GiB, 16 blocks removed"


def test_same_memory_cut_differently_is_no_change() -> None:
    parts = [Range(0, MIB - 1), Range(MIB, GIB - 1)]
    change = difference(parts, [Range(0, GIB - 1)], {0}, {0})
    assert change.empty
    assert str(change) == "no change"


def test_everything_at_once() -> None:
    gone = Range(4 * GIB, 4 * GIB + BLOCK - 1)
    assert text([LOW, gone], [LOW], ({0, 4, 5, 6, 7}, {0, 3})) == (
        "memory 0x100000000-0x107ffffff, 128 MiB, 1 block removed; cpu 3 added; cpus 4-7 removed"
    )


def test_blocks_are_not_counted_where_they_are_not_whole() -> None:
    assert text([], [Range(0x1000, 0x9FFFF)]) == "memory 0x1000-0x9ffff, 636 KiB added"
    whole = Range(4 * GIB, 4 * GIB + BLOCK - 1)
    assert "block" not in str(difference([], [whole], (), (), block_size=0))


def test_many_ranges_stay_readable() -> None:
    ranges = [Range(n * GIB, n * GIB + BLOCK - 1) for n in range(0, 200, 2)]
    line = text([], ranges)
    assert line.endswith("; 94 more memory ranges, 11.8 GiB added")
    assert len(line) < 600


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (32 * GIB, "32 GiB"),
        (GIB + 512 * MIB, "1.5 GiB"),
        (639 << 10, "639 KiB"),
        (1, "1 byte"),
        (1000, "1000 bytes"),
        (MIB + 1, "1.0 MiB"),
        (3 * MIB + MIB // 2 + 7, "3.5 MiB"),
        (1782579200, "1.7 GiB"),
        (GIB - 4096, "1.0 GiB"),
        (12 << 40, "12 TiB"),
    ],
)
def test_sizes(size: int, wanted: str) -> None:
    assert size_text(size) == wanted


UNITS = {"TiB": 1 << 40, "GiB": GIB, "MiB": MIB, "KiB": 1 << 10, "bytes": 1, "byte": 1}


@given(st.integers(1, 1 << 46))
def test_size_never_misleads(size: int) -> None:
    match = re.fullmatch(r"([0-9.]+) (TiB|GiB|MiB|KiB|bytes?)", size_text(size))
    assert match
    number, unit = float(match[1]), UNITS[match[2]]
    assert abs(number * unit - size) <= 0.051 * unit
    assert "." in match[1] or number * unit == size, "without a point it is exact"
    assert number < 1024


@given(st.sets(st.integers(0, 600)))
def test_cpu_list_reads_back(cpus: set[int]) -> None:
    read = set()
    for part in filter(None, cpu_list(cpus).split(",")):
        first, _, last = part.partition("-")
        read |= set(range(int(first), int(last or first) + 1))
    assert read == cpus


PIECES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 8)).map(lambda p: Range(p[0], p[0] + p[1] - 1)),
    max_size=8,
)


def addresses(ranges: tuple[Range, ...] | list[Range]) -> set[int]:
    return {address for one in ranges for address in range(one.start, one.end + 1)}


@given(PIECES, PIECES, st.frozensets(st.integers(0, 9)), st.frozensets(st.integers(0, 9)))
def test_difference_is_that_of_the_sets(
    before: list[Range], after: list[Range], cpus: frozenset[int], later: frozenset[int]
) -> None:
    change = difference(before, after, cpus, later)
    assert addresses(change.memory_added) == addresses(after) - addresses(before)
    assert addresses(change.memory_removed) == addresses(before) - addresses(after)
    assert set(change.cpus_added) == later - cpus
    assert set(change.cpus_removed) == cpus - later
    assert change.empty == (addresses(before) == addresses(after) and cpus == later)
    assert change == difference(list(reversed(before)), after, cpus, later)
    assert not change.empty or change == Change()
