"""The model of kexec_file_load's placement against one that searches page by page."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kdumphpd.image.layout import PAGE
from kdumphpd.load.file_placement import Buffer, FileNeeds, misfit, place
from kdumphpd.machine.ranges import Range
from tests.unit import fake_file_load
from tests.unit.fake_file_load import Search, Ways

MIB = 1 << 20
RAM = 1 << 40
START = 0x6B000000

# Small, so that the fake can search all of it page by page; ends that are no page's too.
reservations = st.builds(
    lambda start, pages, odd: Range(start * PAGE, (start + pages) * PAGE - 1 - odd),
    st.integers(0, 64),
    st.integers(3, 120),
    st.sampled_from((0, 0, 0, 1, PAGE - 1)),
)
buffers = st.builds(
    Buffer,
    st.sampled_from("abcdef"),
    st.integers(1, 40 * PAGE),
    st.sampled_from((PAGE, PAGE, PAGE, 4 * PAGE, 16 * PAGE)),
    st.integers(0, 80).map(lambda page: page * PAGE),
    st.booleans(),
)


def search(one: Buffer) -> Search:
    return Search(
        one.name, one.size, one.content, one.alignment, one.lowest, top_down=not one.upwards
    )


@given(reservations, st.lists(buffers, max_size=6))
def test_every_buffer_comes_where_the_kernel_puts_it(
    reservation: Range, asked: list[Buffer]
) -> None:
    found = place(reservation, asked)
    try:
        places = fake_file_load.add_buffers(reservation, list(map(search, asked)), Ways())
    except OSError:
        assert isinstance(found, Buffer)
        return
    assert not isinstance(found, Buffer)
    assert [(one.start, one.size) for one in found] == [(one.mem, one.memsz) for one in places]


def needs_of(
    header: int,
    others: list[Buffer],
    *,
    measurements: int = 0,
    keys: int = 0,
    control_pages: int = 3,
) -> FileNeeds:
    return FileNeeds(
        Buffer("elfcorehdr", header, upwards=True),
        tuple(others),
        Buffer("IMA measurements", measurements + PAGE // 2) if measurements else None,
        keys,
        control_pages,
    )


downwards = st.lists(buffers.map(lambda one: replace(one, upwards=False)), min_size=1, max_size=4)


@given(
    reservations,
    st.builds(
        needs_of,
        st.integers(1, 20 * PAGE),
        downwards,
        measurements=st.sampled_from((0, 0, 1, 5 * PAGE)),
        keys=st.sampled_from((0, 0, 0, 400, 4 * PAGE)),
        control_pages=st.integers(3, 30),
    ),
    st.booleans(),
    st.booleans(),
    st.integers(0, 65000),
)
def test_what_fits_is_loaded_by_every_kernel(
    reservation: Range, needs: FileNeeds, short: bool, measured: bool, keys_at: int
) -> None:
    assume(misfit(reservation, needs, RAM) is None)
    # The random start of the keys, up to 64 KiB on, may lie too near the end, which nobody
    # can know beforehand (kernel/kexec_file.c, kexec_random_range_start).
    nearer = reservation.end - (1 << 16)
    assume(
        not needs.keys
        or (
            nearer > reservation.start
            and misfit(Range(reservation.start, nearer), needs, RAM) is None
        )
    )
    asked = [search(one) for one in needs.buffers()]
    if needs.measurements and not measured:
        asked.pop(0)
    if needs.keys:
        header = [one.name for one in asked].index("elfcorehdr")
        keys = Search("keys", needs.keys, needs.keys, top_down=False, random=keys_at)
        asked.insert(header + 1, keys)
    ways = Ways(short_of_end=short)
    # The root of the page tables, the control code and the vmcoreinfo copy are no tables.
    tables = needs.control_pages - 3
    assert fake_file_load.load_errno(reservation, asked, ways, RAM // PAGE, tables) == 0


@given(reservations, st.integers(1, 20 * PAGE), downwards, st.integers(3, 30))
def test_what_is_refused_some_kernel_cannot_load(
    reservation: Range, header: int, others: list[Buffer], control_pages: int
) -> None:
    needs = needs_of(header, others, control_pages=control_pages)
    assume(misfit(reservation, needs, RAM) is not None)
    asked = [search(one) for one in needs.buffers()]
    codes = [
        fake_file_load.load_errno(
            reservation, asked, Ways(short_of_end=short), RAM // PAGE, control_pages - 3
        )
        for short in (False, True)
    ]
    # One byte less is a page less for the upward search too, which old kernels do right.
    assert any(codes) or reservation.size - sum(one.memory for one in needs.buffers()) <= PAGE


def sizes(kernel: int = 53 * MIB, initrd: int = 30 * MIB, keys: int = 0) -> FileNeeds:
    others = [
        Buffer("purgatory", 5 * PAGE),
        Buffer("boot_params", 4700),
        Buffer("kernel", kernel, 2 * MIB, 16 * MIB, content=8 * MIB),
        Buffer("initrd", initrd, PAGE, 16 * MIB),
    ]
    return needs_of(900 << 10, others, keys=keys, control_pages=40)


def test_a_refusal_names_sizes_and_what_would_do() -> None:
    found = misfit(Range(START, START + 80 * MIB - 1), sizes(), RAM)
    assert found is not None
    assert found.problem == (
        "the crash kernel's reservation 0x6b000000-0x6fffffff has 80 MiB and no room for initrd"
        " (elfcorehdr 900 KiB, purgatory 20 KiB, boot_params 8 KiB, kernel 53 MiB, initrd 30 MiB,"
        " control pages 160 KiB)"
    )
    assert found.remedy == "boot with crashkernel=256M"
    assert misfit(Range(START, START + 256 * MIB - 1), sizes(), RAM) is None


def test_alignment_counts() -> None:
    # 84 MiB are enough for the sum, but the kernel is moved down to a multiple of 2 MiB.
    needs = sizes(kernel=53 * MIB + PAGE, initrd=29 * MIB + 900 * 1024)
    assert sum(one.memory for one in needs.buffers()) + 40 * PAGE < 84 * MIB + 512 * 1024
    found = misfit(Range(START, START + 84 * MIB + 512 * 1024 - 1), needs, RAM)
    assert found is not None
    assert "no room for initrd" in found.problem


@pytest.mark.parametrize(("start", "lacking"), [(0, "kernel"), (2 * MIB, "kernel"), (START, None)])
def test_a_reservation_below_the_preferred_address(start: int, lacking: str | None) -> None:
    found = misfit(Range(start, start + 60 * MIB - 1), sizes(initrd=MIB), RAM)
    assert (found is None) == (lacking is None)
    if found and lacking:
        assert f"no room for {lacking}" in found.problem


def test_control_pages_are_lacking_when_all_else_fits() -> None:
    needs = replace(sizes(), control_pages=1000)
    place_ = Range(START, START + 86 * MIB - 1)
    assert misfit(place_, replace(needs, control_pages=40), RAM) is None
    found = misfit(place_, needs, RAM)
    assert found is not None
    assert "no room for control pages" in found.problem


def test_half_of_the_memory_is_the_limit() -> None:
    place_ = Range(START, START + 256 * MIB - 1)
    assert misfit(place_, sizes(), 256 * MIB) is None
    found = misfit(place_, sizes(), 160 * MIB)
    assert found is not None
    assert "allows half of its 160 MiB" in found.problem


def test_a_kernel_file_that_is_larger_than_its_memory() -> None:
    needs = sizes()
    kernel = replace(needs.others[2], content=needs.others[2].size + PAGE + 1)
    found = misfit(
        Range(START, START + 256 * MIB - 1),
        replace(needs, others=(*needs.others[:2], kernel, needs.others[3])),
        RAM,
    )
    assert found is not None
    assert "kernel has" in found.problem


def test_keys_may_lie_in_the_middle() -> None:
    place_ = Range(START, START + 100 * MIB - 1)
    assert misfit(place_, sizes(), RAM) is None
    found = misfit(place_, sizes(keys=400), RAM)
    assert found is not None
    assert "dm-crypt keys 4 KiB" in found.problem
    advised = int(found.remedy.split("=")[1][:-1]) * MIB
    assert misfit(Range(START, START + advised - 1), sizes(keys=400), RAM) is None
    asked = [search(one) for one in sizes().buffers()]
    asked.insert(1, Search("keys", 400, 400, top_down=False, random=32767))
    code = fake_file_load.load_errno(place_, asked, Ways(), RAM // PAGE, 3)
    assert code, "a kernel that puts them there has no room"


@given(
    st.integers(1 << 20, 100 << 20),
    st.integers(1, 200 << 20),
    st.sampled_from((0, 400, 50000)),
    st.integers(0, 1 << 20).map(lambda page: page * PAGE),
)
def test_what_is_advised_is_enough(kernel: int, initrd: int, keys: int, start: int) -> None:
    needs = sizes(max(kernel, 8 * MIB), initrd, keys)
    found = misfit(Range(start, start + MIB - 1), needs, RAM)
    assert found is not None
    advised = int(found.remedy.split("=")[1][:-1]) * MIB
    assert misfit(Range(start, start + advised - 1), needs, RAM) is None
