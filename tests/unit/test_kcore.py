from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.errors import InputError, MachineError, PermissionMissingError
from kdumphpd.header import elf
from kdumphpd.machine import kcore
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.ranges import Range
from tests.unit import fake_files
from tests.unit.fake_kernel import FakeKernel
from tests.unit.strategies import separate_ranges

_TEXT = Range(0x1000000, 0x37FFFFF)
_HEAD = fake_files.kcore_head(
    fake_files.kcore_loads(
        _TEXT, [Range(0x1000, 0x9FBFF), Range(0x100000, 0x7FFDEFFF)], fake_files.PAGE_OFFSET
    )
)


def test_the_map_of_a_real_layout() -> None:
    found = kcore.parse(_HEAD)
    assert (found.text.paddr, found.text.size) == (_TEXT.start, _TEXT.size)
    assert found.text.vaddr == 0xFFFFFFFF9B000000
    assert found.page_offset == fake_files.PAGE_OFFSET
    assert [(one.paddr, one.size) for one in found.ram] == [
        (0x1000, 0x9E000),
        (0x100000, 0x7FEDF000),
    ]
    assert not found.five_level


@given(
    separate_ranges(min_size=1),
    st.integers(0xFFFF888000000000 >> 30, 0xFFFFA00000000000 >> 30).map(lambda n: n << 30),
)
def test_any_layout_gives_its_ram_back(ram: tuple[Range, ...], page_offset: int) -> None:
    head = fake_files.kcore_head(fake_files.kcore_loads(_TEXT, ram, page_offset))
    found = kcore.parse(head)
    assert found.page_offset == page_offset
    assert [Range(one.paddr, one.paddr + one.size - 1) for one in found.ram] == list(ram)
    assert {one.offset - one.paddr for one in found.ram} == {len(head)}


def test_five_level_paging_shows() -> None:
    ram = [Range(0x100000, 0x7FFDEFFF)]
    loads = fake_files.kcore_loads(_TEXT, ram, 0xFF11000000000000)
    assert kcore.parse(fake_files.kcore_head(loads)).five_level


@given(st.integers(0, len(_HEAD)))
def test_a_truncated_header_is_refused(size: int) -> None:
    table = 64 + 56 * int.from_bytes(_HEAD[56:58], "little")
    if size < table:
        with pytest.raises(MachineError, match="kcore"):
            kcore.parse(_HEAD[:size])
    else:
        assert kcore.parse(_HEAD[:size]) == kcore.parse(_HEAD)


@given(
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=30),
    st.integers(0, 1 << 18),
)
def test_hostile_headers_are_parsed_or_refused(edits: list[tuple[int, int]], more: int) -> None:
    data = bytearray(_HEAD)
    for position, value in edits:
        data[position] = value
    with contextlib.suppress(MachineError):
        assert kcore.parse(bytes(data) + bytes(more)).ram


@given(st.binary())
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MachineError):
        kcore.parse(data)


def test_two_direct_maps_are_refused() -> None:
    ram = [Range(0x100000, 0x7FFDEFFF)]
    loads = fake_files.kcore_loads(_TEXT, ram, fake_files.PAGE_OFFSET)
    loads.append(fake_files.Load(0xFFFF888000000000, 0, 0x1000))
    with pytest.raises(MachineError, match="more than one direct map"):
        kcore.parse(fake_files.kcore_head(loads))


@pytest.mark.parametrize(("kept", "what"), [("ram", "kernel text"), ("text", "direct map")])
def test_a_missing_mapping_is_named(kept: str, what: str) -> None:
    loads = fake_files.kcore_loads(_TEXT, [Range(0x100000, 0x1FFFFF)], fake_files.PAGE_OFFSET)
    loads = loads[:1] if kept == "text" else loads[1:]
    with pytest.raises(MachineError, match=f"no {what}"):
        kcore.parse(fake_files.kcore_head(loads))


def test_physical_memory_is_read_where_it_lies(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path, memory=4 << 30)
    kernel.write_memory(kernel.reservation.start + 5, b"crash kernel")
    kernel.write_memory((6 << 30) - 4, b"last")
    with PhysicalMemory(kernel.root) as memory:
        assert memory.read(kernel.reservation.start, 20) == bytes(5) + b"crash kernel" + bytes(3)
        assert memory.read((6 << 30) - 4, 4) == b"last"
        for address, size in [((6 << 30) - 4, 5), (0x7FFFF000, 1), (0xA0000, 1), (1 << 45, 1)]:
            with pytest.raises(MachineError, match=f"{address:#x}"):
                memory.read(address, size)


def test_hotplug_moves_offsets_under_an_open_kcore(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    place = kernel.reservation.start
    kernel.write_memory(place, b"unmoved")
    with PhysicalMemory(kernel.root) as memory:
        before = memory.address_map().ram[0]
        for number in range(60):
            start = (4 << 30) + (number << 28)
            kernel.hot_add_memory(Range(start, start + (1 << 27) - 1))
        assert memory.address_map().ram[0].offset != before.offset
        assert memory.read(place, 7) == b"unmoved"


def test_hot_removed_memory_cannot_be_read(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path, memory=4 << 30)
    with PhysicalMemory(kernel.root) as memory:
        assert memory.read(4 << 30, 1) == b"\0"
        kernel.hot_remove_memory(Range(4 << 30, (6 << 30) - 1))
        with pytest.raises(MachineError):
            memory.read(4 << 30, 1)


def test_a_missing_kcore_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CONFIG_PROC_KCORE"):
        PhysicalMemory(Root(tmp_path))


def test_an_unreadable_kcore_names_the_capability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeKernel.q35(tmp_path)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    # Root may open every file, and lockdown cannot be had in a test.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionMissingError, match="CAP_SYS_RAWIO"):
        PhysicalMemory(kernel.root)


def hostile(tmp_path: Path, offset: int, size: int) -> PhysicalMemory:
    """A kcore whose headers promise ``size`` bytes of memory at ``offset``."""
    text = elf.ProgramHeader(
        elf.PT_LOAD, 7, 0x1000, kcore.START_KERNEL_MAP + (1 << 24), 1 << 24, 1 << 20, 1 << 20
    )
    ram = elf.ProgramHeader(elf.PT_LOAD, 7, offset, fake_files.PAGE_OFFSET, 0, size, size)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/kcore").write_bytes(elf.pack_core([text, ram]))
    return PhysicalMemory(Root(tmp_path))


@pytest.mark.parametrize("offset", [(1 << 63) - 1, (1 << 64) - 4096])
def test_an_offset_that_no_file_has_is_an_error(tmp_path: Path, offset: int) -> None:
    """pread(2) takes a signed one; Python's raises OverflowError for more."""
    with hostile(tmp_path, offset, 1 << 40) as memory, pytest.raises(MachineError, match="kcore"):
        memory.read(1 << 20, 4096)


def test_more_than_there_is_memory_is_not_set_aside(tmp_path: Path) -> None:
    """MemoryError: the buffer of a read is made before anything is read."""
    memory = hostile(tmp_path, 0x1000, 1 << 46)
    with memory, pytest.raises(MachineError, match="does not give"):
        memory.read(0, 1 << 46)


def test_a_fifo_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    os.mkfifo(tmp_path / "proc/kcore")
    with pytest.raises(InputError, match="not a regular file"):
        PhysicalMemory(Root(tmp_path))
