from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kdumphpd.errors import MachineError
from kdumphpd.image import layout
from kdumphpd.image.layout import GIB, PAGE, KernelNeeds, Layout, Room
from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.load.segments import Segment
from kdumphpd.load.syscalls import KEXEC_ARCH_X86_64, KEXEC_ON_CRASH
from kdumphpd.machine.ranges import Range
from tests.unit import fake_kexec
from tests.unit.fake_kernel import FakeKernel
from tests.unit.strategies import separate_ranges

MIB = 1 << 20
_KERNEL = KernelNeeds(size=0x3B4F000, alignment=2 * MIB, pref_address=16 * MIB)
_FLAGS = KEXEC_ON_CRASH | KEXEC_ARCH_X86_64


@st.composite
def _asked(draw: st.DrawFn) -> tuple[Range, Room, KernelNeeds, int, int, int]:
    start = draw(st.integers(0, 1 << 12)) * 16 * MIB
    reservation = Range(start, start + draw(st.integers(1, 64)) * 16 * MIB - 1)
    room = Room(draw(st.integers(1, 64)) * MIB, draw(st.integers(1, 1024)) * PAGE)
    needs = KernelNeeds(
        draw(st.integers(1, 80 * MIB)),
        1 << draw(st.integers(12, 24)),
        draw(st.sampled_from([0, 16 * MIB])),
    )
    sizes = [draw(st.integers(1, most)) for most in (200 * MIB, 8 * PAGE, 16384)]
    return (reservation, room, needs, sizes[0], sizes[1], sizes[2])


@given(_asked())
def test_parts_lie_in_order_apart_and_inside(
    asked: tuple[Range, Room, KernelNeeds, int, int, int],
) -> None:
    reservation, room, needs, initrd, boot_params, purgatory = asked
    try:
        found = layout.plan(*asked)
    except MachineError:
        assume(False)
    places = [place for _, place in found.parts()]
    assert all(low.end < high.start for low, high in zip(places, places[1:]))
    assert all(reservation.contains(one) for one in places)
    assert all(one.start % PAGE == 0 and (one.end + 1) % PAGE == 0 for one in places)
    assert found.pad.start == reservation.start
    assert found.purgatory.end == reservation.end
    assert found.kernel.start % needs.alignment == 0
    assert found.kernel.start >= needs.pref_address
    asked_sizes = (room.pad, room.elfcorehdr, needs.size, initrd, boot_params, purgatory)
    assert [one.size for one in places] == [layout.page_up(size) for size in asked_sizes]


@given(_asked())
def test_the_advised_crashkernel_is_enough(
    asked: tuple[Range, Room, KernelNeeds, int, int, int],
) -> None:
    reservation = asked[0]
    try:
        layout.plan(*asked)
    except MachineError as error:
        advice = re.search(r"crashkernel=(\d+)M", str(error))
        assert advice is not None
        larger = Range(reservation.start, reservation.start + int(advice[1]) * MIB - 1)
        assert larger.size > reservation.size
        layout.plan(larger, *asked[1:])


def test_too_small_a_reservation_says_how_much_is_needed() -> None:
    reservation = Range(0x6F000000, 0x72FFFFFF)
    with pytest.raises(MachineError, match=r"is 64 MiB.*needs \d+ MiB.*crashkernel=\d+M"):
        layout.plan(reservation, Room(5 * MIB, MIB), _KERNEL, 32 * MIB, PAGE, 8192)


@given(separate_ranges(), st.booleans())
def test_control_pages_are_never_fewer_than_the_kernel_takes(
    ram: tuple[Range, ...], gbpages: bool
) -> None:
    taken = 3 + fake_kexec.page_tables(ram, gbpages)
    assert layout.control_pages(ram) >= taken


@given(separate_ranges(), st.integers(1, 4 << 20))
def test_the_room_holds_the_ram_of_now_and_growth(ram: tuple[Range, ...], reserve: int) -> None:
    room = layout.room_for(ram, ram, reserve)
    pages = layout.control_pages(ram)
    assert room.pad >= 4 * pages * PAGE
    assert room.pad % MIB == 0
    assert not room.outgrown(pages, reserve)
    assert "the control pad" in room.outgrown(room.pad // PAGE + 1, reserve)
    assert "its reserve" in room.outgrown(pages, room.elfcorehdr + 1)
    assert layout.capacity_gib(room.pad) >= 1024


@given(st.integers(0, 1 << 16).map(lambda pages: pages * PAGE))
@example(0)
def test_a_pad_holds_the_tables_of_its_capacity(pad: int) -> None:
    capacity = layout.capacity_gib(pad)
    assert capacity <= layout.capacity_gib(pad + PAGE)
    if capacity:
        assert layout.control_pages([Range(0, capacity * GIB - 1)]) * PAGE <= pad


def _segments(found: Layout, *names: str) -> list[Segment]:
    return [
        Segment(name, LockedBuffer.of(name.encode() * 64), place)
        for name, place in found.parts()
        if name in names
    ]


@pytest.mark.parametrize("gbpages", [False, True])
def test_a_delta_load_leaves_every_part_alone_up_to_the_capacity(
    tmp_path: Path, gbpages: bool
) -> None:
    kernel = FakeKernel.q35(tmp_path, memory=4 << 30, gbpages=gbpages)
    room = layout.room_for(kernel.ram, kernel.pfn_mapped, MIB)
    found = layout.plan(kernel.reservation, room, _KERNEL, 32 * MIB, PAGE, 8192)
    parts = [name for name, _ in found.parts() if name != "control pad"]
    kernel.kexec_load(found.purgatory.start, _segments(found, *parts), _FLAGS)
    # As much as the pad has page tables for, less the low 4 GiB.
    size = (layout.capacity_gib(room.pad) - 8) * GIB
    kernel.hot_add_memory(Range(6 * GIB, 6 * GIB + size - 1))
    kernel.kexec_load(found.purgatory.start, _segments(found, "elfcorehdr"), _FLAGS)
    assert max(kernel.control_pages) + PAGE - 1 <= found.pad.end
    for one in _segments(found, *parts):
        with one.content.view() as content:
            assert kernel.read_memory(one.place.start, one.size) == bytes(content)
