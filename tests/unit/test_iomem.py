from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.errors import KdumphpdError, MachineError, PermissionMissingError
from kdumphpd.machine import iomem
from kdumphpd.machine.ranges import Range
from tests.unit import fake_files
from tests.unit.strategies import separate_ranges

_HOST = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
000a0000-000fffff : Reserved
00100000-7ffdefff : System RAM
  01000000-023fffff : Kernel code
  2f000000-32ffffff : Crash kernel
  50000000-53ffffff : GART
  6f000000-7effffff : Crash kernel
7ffdf000-7fffcfff : ACPI Tables
100000000-13fffffff : System RAM
140000000-17fffffff : System RAM
200000000-2ffffffff : Virtio device
  200000000-23fffffff : System RAM (virtio_mem)
300000000-3ffffffff : Persistent Memory
  300000000-33fffffff : dax0.0
    300000000-33fffffff : System RAM (kmem)
"""


def test_a_host_with_every_kind_of_ram() -> None:
    resources = iomem.parse(_HOST)
    assert iomem.system_ram(resources) == (
        Range(0x1000, 0x9FBFF),
        Range(0x100000, 0x7FFDEFFF),
        Range(0x100000000, 0x17FFFFFFF),  # neighbours are one
        Range(0x200000000, 0x23FFFFFFF),
        Range(0x300000000, 0x33FFFFFFF),
    )
    assert iomem.crash_kernel(resources) == (
        Range(0x2F000000, 0x32FFFFFF),
        Range(0x6F000000, 0x7EFFFFFF),
    )
    assert iomem.dumpable_ram(resources)[:5] == (
        Range(0x100000, 0x2EFFFFFF),
        Range(0x33000000, 0x4FFFFFFF),
        Range(0x54000000, 0x6EFFFFFF),
        Range(0x7F000000, 0x7FFDEFFF),
        Range(0x100000000, 0x17FFFFFFF),
    )
    assert [one.depth for one in resources[-3:]] == [0, 1, 2]


def test_zeros_are_an_error_and_never_an_empty_machine() -> None:
    lines = (
        f"{' ' * (len(line) - len(line.lstrip()))}00000000-00000000 : {line.split(' : ')[1]}\n"
        for line in _HOST.splitlines()
    )
    with pytest.raises(PermissionMissingError, match="CAP_SYS_ADMIN"):
        iomem.parse("".join(lines))


@pytest.mark.parametrize("text", ["", "\n", "00000000-00000fff : Reserved\n"])
def test_no_ram_is_an_error(text: str) -> None:
    with pytest.raises(MachineError, match="System RAM"):
        iomem.parse(text)


_LINE = st.builds(
    lambda depth, start, end, name: f"{'  ' * depth}{start:08x}-{end:08x} : {name}",
    st.integers(0, 6),
    st.integers(0, 1 << 64),
    st.integers(0, 1 << 64),
    st.one_of(st.just("System RAM"), st.just("Crash kernel"), st.text(max_size=20)),
)


@given(st.one_of(st.text(), st.lists(st.one_of(_LINE, st.text())).map("\n".join)))
def test_any_text_is_parsed_or_refused_in_our_own_words(text: str) -> None:
    with contextlib.suppress(KdumphpdError):
        resources = iomem.parse(text)
        iomem.dumpable_ram(resources)
        assert iomem.system_ram(resources)


@given(separate_ranges(min_size=1, first=0x100000))
def test_the_kernels_own_format_gives_the_ranges_back(ram: tuple[Range, ...]) -> None:
    text = fake_files.iomem([(one, "System RAM") for one in ram])
    resources = iomem.parse(text)
    assert iomem.system_ram(resources) == iomem.dumpable_ram(resources) == ram


@given(separate_ranges(min_size=1), st.data())
def test_dumpable_ram_is_all_but_low_memory_and_the_reservation(
    ram: tuple[Range, ...], data: st.DataObject
) -> None:
    host = data.draw(st.sampled_from(ram))
    start = data.draw(st.integers(host.start, host.end))
    crash = Range(start, data.draw(st.integers(start, host.end)))
    text = fake_files.iomem([(one, "System RAM") for one in ram] + [(crash, "Crash kernel")])
    found = iomem.dumpable_ram(iomem.parse(text))
    assert list(found) == fake_files.without(ram, [Range(0, 0xFFFFF), crash])
