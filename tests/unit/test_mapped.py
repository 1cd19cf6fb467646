"""Control pages are taken for all that was ever mapped: more than System RAM, and never less."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.errors import MachineError
from kdumphpd.image.layout import PAGE
from kdumphpd.load.keeper import Keeper, State
from kdumphpd.machine import mapped
from kdumphpd.machine.kcore import START_KERNEL_MAP, AddressMap, Mapping, PhysicalMemory
from kdumphpd.machine.ranges import Range, merge
from kdumphpd.machine.snapshot import MachineReader
from tests.unit.fake_kernel import MIB, FakeKernel
from tests.unit.host_fixture import DIMM, GIB, OTHER_DIMM, FakeHost

#: More than a pad for a TiB of RAM has page tables for.
LARGE = Range(1 << 42, (1 << 42) + 3000 * GIB - 1)
SMALLER = Range(1 << 42, (1 << 42) + 1400 * GIB - 1)
TEXT = Mapping(0x1000000, START_KERNEL_MAP + 0x1000000, 1 << 20)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def updated(host: FakeHost, keeper: Keeper) -> list[tuple[str, ...]]:
    """Follow two DIMMs; the segments of each load that took."""
    before = len(host.kernel.calls)
    for one in (DIMM, OTHER_DIMM):
        host.kernel.hot_add_memory(one)
        assert keeper.mend(keeper.look()).loaded
        host.assert_complete()
        assert keeper.look().state is State.CURRENT
    return [call.names for call in host.kernel.calls[before:]]


def test_the_fake_s_list_only_grows(host: FakeHost) -> None:
    """arch/x86/mm/init.c, add_pfn_range_mapped, has no counterpart; mm/memremap.c adds to it."""
    before = host.kernel.pfn_mapped
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    host.kernel.map_device_memory(OTHER_DIMM)
    host.kernel.unplug_device_memory(OTHER_DIMM)
    assert host.kernel.pfn_mapped == merge([*before, DIMM, OTHER_DIMM])
    host.load()
    low = Range(0, 0x7FFFFFFF)
    gibs = {one // GIB for span in (low, DIMM, OTHER_DIMM) for one in (span.start, span.end)}
    assert len(host.kernel.control_pages) >= 3 + 1 + len(gibs)


@pytest.mark.parametrize("shown", [True, False])
def test_persistent_memory_has_its_place_in_the_pad(host: FakeHost, shown: bool) -> None:
    host.kernel.map_device_memory(LARGE)
    if shown:
        host.kernel.show_mapped()
    parts = host.load()
    assert updated(host, parts.keeper) == [("elfcorehdr",)] * 2
    pad = host.live_block().control_pad
    assert max(host.kernel.control_pages) + PAGE - 1 <= pad.end


@pytest.mark.parametrize("shown", [True, False])
def test_memory_that_came_and_went_keeps_its_place(host: FakeHost, shown: bool) -> None:
    if shown:
        host.kernel.show_mapped()
    parts = host.load()
    host.kernel.hot_add_memory(LARGE)
    mended = parts.keeper.mend(parts.keeper.look())
    assert mended.loaded is not None
    assert mended.loaded.backend == "full"
    host.kernel.hot_remove_memory(LARGE)
    assert parts.keeper.mend(parts.keeper.look()).loaded
    host.kernel.unload()
    assert parts.keeper.load(parts.reader.snapshot()).loaded
    assert updated(host, parts.keeper) == [("elfcorehdr",)] * 2


def test_memory_that_came_and_went_before_we_did_is_known_to_the_kernel(host: FakeHost) -> None:
    host.kernel.hot_add_memory(LARGE)
    host.kernel.hot_remove_memory(LARGE)
    host.kernel.show_mapped()
    parts = host.load()
    assert updated(host, parts.keeper) == [("elfcorehdr",)] * 2


def test_a_remedy_that_was_needed_is_not_needed_again(host: FakeHost) -> None:
    """A PCI BAR for peer-to-peer DMA, with the kernel's list hidden: nothing tells of it."""
    host.kernel.map_device_memory(LARGE, "0000:03:00.0")
    parts = host.load()
    small = host.live_block().control_pad
    assert updated(host, parts.keeper)[-1] == ("elfcorehdr",)
    assert host.live_block().control_pad.size > small.size
    host.kernel.hot_remove_memory(DIMM)
    assert parts.keeper.mend(parts.keeper.look()).loaded
    assert host.kernel.calls[-1].names == ("elfcorehdr",)
    # And after a restart: the room is the image's own.
    again = host.open()
    look = again.keeper.look()
    assert again.keeper.matches(look)
    host.kernel.hot_add_memory(DIMM)
    assert again.keeper.mend(again.keeper.look()).loaded
    assert host.kernel.calls[-1].names == ("elfcorehdr",)
    host.assert_complete()


def test_room_for_growth_does_not_keep_an_image_out(tmp_path: Path) -> None:
    """Twice of what is mapped would not fit into the reservation, what is mapped does."""
    host = FakeHost(tmp_path, crashkernel=64 * MIB)
    host.kernel.map_device_memory(SMALLER)
    parts = host.load()
    assert parts.keeper.matches(parts.keeper.look())
    assert updated(host, parts.keeper) == [("elfcorehdr",)] * 2


def test_a_pad_that_cannot_be_doubled_is_made_as_large_as_it_can(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, crashkernel=64 * MIB)
    host.kernel.map_device_memory(SMALLER, "0000:03:00.0")
    parts = host.load()
    assert updated(host, parts.keeper)[-1] == ("elfcorehdr",)


@given(st.binary(max_size=96), st.integers(-(1 << 31), (1 << 31) - 1))
def test_any_list_is_in_order_or_none(data: bytes, count: int) -> None:
    class Memory:
        """The two variables, wherever they lie."""

        def address_map(self) -> AddressMap:
            return AddressMap(TEXT, 0xFFFF888000000000, ())

        def read(self, address: int, size: int) -> bytes:
            content = struct.pack("<i", count) if address == TEXT.paddr else data
            if size > len(content):
                raise MachineError("not there")
            return content[:size]

    found = mapped.of_kernel(
        cast("PhysicalMemory", Memory()),
        {"nr_pfn_mapped": TEXT.vaddr, "pfn_mapped": TEXT.vaddr + 64},
    )
    assert found == merge(found)
    assert not found or any(one.start <= TEXT.paddr <= one.end for one in found)


@pytest.mark.parametrize(
    ("count", "pairs"),
    [
        (0, []),
        (-1, []),
        (5000, []),
        (1, [(5, 5)]),
        (2, [(0, 1 << 20), (1 << 19, 1 << 21)]),
        (1, [(0, 1 << 41)]),
        (1, [(0, 1)]),  # without the kernel's text
    ],
)
def test_a_list_that_makes_no_sense_does_not_count(
    tmp_path: Path, count: int, pairs: list[tuple[int, int]]
) -> None:
    kernel = FakeKernel.q35(tmp_path)
    kernel.show_mapped()
    kernel.set_mapped_variables(count, pairs)
    assert MachineReader(kernel.root).mapped() == merge(kernel.ram)


def test_hidden_symbols_leave_what_was_seen(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    kernel.show_mapped()
    kernel.map_device_memory(OTHER_DIMM, "0000:03:00.0")
    assert MachineReader(kernel.root).mapped() == merge([*kernel.ram, *kernel.pfn_mapped])
    kernel.hide_symbols()
    reader = MachineReader(kernel.root)
    kernel.hot_add_memory(DIMM)
    reader.snapshot()
    kernel.hot_remove_memory(DIMM)
    assert reader.mapped() == merge([*kernel.ram, DIMM])
