from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.image.e820 import E820Entry, E820Type, capture_map
from kdumphpd.machine.iomem import Resource, crash_kernel, parse
from kdumphpd.machine.ranges import Range, total

IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
0009fc00-0009ffff : Reserved
000a0000-000bffff : PCI Bus 0000:00
000c0000-000c99ff : Video ROM
000f0000-000fffff : Reserved
  000f0000-000fffff : System ROM
00100000-7ffdbfff : System RAM
  24000000-24efffff : Kernel code
  6e000000-7dffffff : Crash kernel
7ffdc000-7ffdffff : ACPI Tables
7ffe0000-7fffffff : ACPI Non-volatile Storage
b0000000-bfffffff : PCI ECAM 0000 [bus 00-ff]
  b0000000-bfffffff : Reserved
c0000000-febfffff : PCI Bus 0000:00
  fd000000-fdffffff : 0000:00:01.0
feffc000-feffffff : Reserved
100000000-17fffffff : System RAM
  170000000-17fffffff : Crash kernel
180000000-1ffffffff : Persistent Memory
  180000000-1ffffffff : System RAM (kmem)
"""
HEADER = Range(0x170100000, 0x1701FFFFF)
RAM, RESERVED, ACPI, NVS = E820Type.RAM, E820Type.RESERVED, E820Type.ACPI, E820Type.NVS


def test_the_map_of_a_machine_with_two_reservations() -> None:
    resources = parse(IOMEM)
    # As crash_setup_memmap_entries makes it for this machine, but sorted.
    assert capture_map(resources, crash_kernel(resources), HEADER) == (
        E820Entry(0, 0x1000, RESERVED),
        E820Entry(0x1000, 0x9EC00, RAM),
        E820Entry(0x9FC00, 0x400, RESERVED),
        E820Entry(0xF0000, 0x10000, RESERVED),
        E820Entry(0x6E000000, 0x10000000, RAM),
        E820Entry(0x7FFDC000, 0x4000, ACPI),
        E820Entry(0x7FFE0000, 0x20000, NVS),
        E820Entry(0xB0000000, 0x10000000, RESERVED),
        E820Entry(0xFEFFC000, 0x4000, RESERVED),
        E820Entry(0x170000000, 0x100000, RAM),
        E820Entry(0x170200000, 0xFE00000, RAM),
    )


def test_a_header_at_the_reservations_edge_leaves_no_empty_entry() -> None:
    crash = Range(0x10000000, 0x1FFFFFFF)
    start = capture_map((), [crash], Range(0x10000000, 0x100FFFFF))
    assert start == (E820Entry(0x10100000, 0xFF00000, RAM),)
    end = capture_map((), [crash], Range(0x1FF00000, 0x1FFFFFFF))
    assert end == (E820Entry(0x10000000, 0xFF00000, RAM),)
    assert capture_map((), [crash], crash) == ()


def test_a_piece_of_ram_smaller_than_a_page_is_left_out() -> None:
    resources = (Resource(Range(0x1000, 0x1FFE), "System RAM"),)
    assert capture_map(resources, [], HEADER) == ()


def test_ram_across_the_first_mib_is_cut_there() -> None:
    resources = (Resource(Range(0x1000, 0x3FFFFFFF), "System RAM"),)
    assert capture_map(resources, [], HEADER) == (E820Entry(0x1000, 0xFF000, RAM),)


def test_names_of_older_kernels() -> None:
    resources = (Resource(Range(0x80000000, 0x8000FFFF), "reserved"),)
    assert capture_map(resources, [], HEADER) == (E820Entry(0x80000000, 0x10000, RESERVED),)


def test_where_two_resources_claim_an_address_the_stricter_one_wins() -> None:
    resources = (
        Resource(Range(0x1000, 0x9FFFF), "System RAM"),
        Resource(Range(0x8000, 0x8FFF), "Reserved", 1),
        Resource(Range(0x20000, 0x2FFFF), "Reserved"),
        Resource(Range(0x28000, 0x37FFF), "ACPI Tables"),
    )
    assert capture_map(resources, [], HEADER) == (
        E820Entry(0x1000, 0x7000, RAM),
        E820Entry(0x8000, 0x1000, RESERVED),
        E820Entry(0x9000, 0x17000, RAM),
        E820Entry(0x20000, 0x8000, RESERVED),
        E820Entry(0x28000, 0x10000, ACPI),
        E820Entry(0x38000, 0x68000, RAM),
    )


def test_an_entry_says_what_it_is() -> None:
    assert str(E820Entry(0x1000, 0x9EC00, RAM)) == "0x1000-0x9fbff RAM"
    assert str(E820Entry(0x1000, 0x1000, 7)) == "0x1000-0x1fff type 7"


ranges = st.tuples(st.integers(0, 0x400000), st.integers(1, 0x100000)).map(
    lambda pair: Range(pair[0], pair[0] + pair[1] - 1)
)
names = st.sampled_from(
    [
        "System RAM",
        "System RAM (kmem)",
        "ACPI Tables",
        "ACPI Non-volatile Storage",
        "Reserved",
        "reserved",
        "Soft Reserved",
        "PCI Bus 0000:00",
        "",
    ]
)
resource_lists = st.lists(st.builds(Resource, ranges, names, st.integers(0, 3)), max_size=20)


@given(resource_lists, st.lists(ranges, max_size=3), ranges)
def test_no_overlap_no_header_no_foreign_ram(
    resources: list[Resource], crash: list[Range], header: Range
) -> None:
    entries = capture_map(resources, crash, header)
    assert list(entries) == sorted(entries)
    for one, other in zip(entries, entries[1:]):
        assert one.range.end < other.start
    claimed = [one.range for one in resources if one.name.startswith("System RAM")]
    for entry in entries:
        if entry.type != RAM:
            continue
        assert entry.size >= 4096
        in_crash = [one for one in crash if one.overlaps(entry.range)]
        if in_crash:
            assert not any(
                entry.range.overlaps(header) and one.overlaps(header) for one in in_crash
            )
        else:
            assert entry.range.end <= 0xFFFFF
            assert any(one.overlaps(entry.range) for one in claimed)


@given(resource_lists, ranges, ranges)
def test_all_of_the_reservation_but_the_header_and_slivers_is_ram(
    resources: list[Resource], crash: Range, header: Range
) -> None:
    entries = capture_map(resources, [crash], header)
    inside = [one.range for one in entries if crash.contains(one.range)]
    assert all(one.type == RAM for one in entries if crash.contains(one.range))
    hidden = min(crash.end, header.end) - max(crash.start, header.start) + 1
    expected = crash.size - max(hidden, 0)
    # One sliver on each side of the header at the most.
    assert expected - 2 * 4096 < total(inside) <= expected
