"""Reading images back: whose is armed, where its header is, whether it has its digest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdumphpd.audit import read_back
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.ranges import Range
from tests.unit import fake_files
from tests.unit.fake_kernel import MIB
from tests.unit.host_fixture import DIMM, PAGE, FakeHost

PLACE = Range(0x40000000, 0x407FFFFF)
HEADER = fake_files.elfcorehdr([(0x1000, 368)], [fake_files.Load(1 << 47, 1 << 20, 1 << 20)])


class Bytes:
    """Physical memory at PLACE, zeros but for what was written; reads nothing outside."""

    def __init__(self, *written: tuple[int, bytes]) -> None:
        self._content = bytearray(PLACE.size)
        for offset, data in written:
            self._content[offset : offset + len(data)] = data
        assert len(self._content) == PLACE.size

    def read(self, address: int, size: int) -> bytes:
        assert size > 0
        assert PLACE.start <= address <= address + size - 1 <= PLACE.end
        return bytes(self._content[address - PLACE.start :][:size])


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.load()
    return host


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> FakeHost:
    """One loaded host for all examples; each leaves it as it was."""
    host = FakeHost(tmp_path_factory.mktemp("host"))
    host.load()
    return host


@pytest.fixture
def memory(host: FakeHost) -> Iterator[PhysicalMemory]:
    with PhysicalMemory(host.root) as memory:
        yield memory


def test_our_own_image_is_known_by_the_last_page(host: FakeHost, memory: PhysicalMemory) -> None:
    block = read_back.find_own(memory, host.kernel.reservation)
    assert block == host.block()
    assert block is not None
    assert read_back.entry(block) == host.kernel.entry
    assert read_back.intact(memory, block)


@pytest.mark.parametrize("style", ["kexec_load", "kexec_file_load"])
def test_another_loader_takes_that_page(host: FakeHost, memory: PhysicalMemory, style: str) -> None:
    host.kernel.foreign_load(style)
    assert read_back.find_own(memory, host.kernel.reservation) is None


@pytest.mark.parametrize("style", ["kexec_load", "kexec_file_load"])
def test_another_loader_leaves_too_little_to_look_like_damage(
    host: FakeHost, memory: PhysicalMemory, style: str
) -> None:
    assert not read_back.is_torn(memory, Range(0x1000, 0x1FFF))
    host.kernel.foreign_load(style)
    assert not read_back.is_torn(memory, host.kernel.reservation)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_to_the_mark_leaves_it_ours(shared: FakeHost, data: st.DataObject) -> None:
    end = shared.kernel.reservation.end + 1
    known = st.integers(end - PAGE, end - 1) | st.integers(end - 2 * PAGE, end - 2 * PAGE + 31)
    with PhysicalMemory(shared.root) as memory:
        address = data.draw(known)
        shared.flip(address)
        found = read_back.find_own(memory, shared.kernel.reservation)
        torn = found is None and read_back.is_torn(memory, shared.kernel.reservation)
        damaged = found is not None and not read_back.intact(memory, found)
        shared.flip(address)
    assert torn or damaged


def test_a_block_of_another_reservation_is_not_ours(host: FakeHost, memory: PhysicalMemory) -> None:
    place = host.kernel.reservation
    for other in (
        Range(place.start + PAGE, place.end),
        Range(place.start, place.end - PAGE),
        Range(place.start - PAGE, place.end),
    ):
        assert read_back.find_own(memory, other) is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_flipped_bit_anywhere_in_the_digest_is_found(
    shared: FakeHost, data: st.DataObject
) -> None:
    host, block = shared, shared.live_block()
    region = data.draw(st.sampled_from(block.regions))
    address = data.draw(st.integers(region.start, region.end))
    with PhysicalMemory(host.root) as memory:
        assert read_back.intact(memory, block)
        host.flip(address)
        assert not read_back.intact(memory, block)
        host.flip(address)


def test_the_trailer_tells_our_old_header_from_a_live_one(
    host: FakeHost, memory: PhysicalMemory
) -> None:
    """Nothing between the first and the last MiB is overwritten by another loader."""
    ours = host.live_block().elfcorehdr.start
    foreign = host.kernel.foreign_load()
    # An administrator who copied our command line: both addresses are named.
    named = f" elfcorehdr={ours >> 10}K".encode() + b"\0"
    host.kernel.write_memory(foreign.command_line + len(foreign.text), named)
    found = read_back.find_foreign(memory, host.kernel.reservation)
    assert [one.address for one in found] == [foreign.elfcorehdr]


@pytest.mark.parametrize(
    "argument",
    [
        b" elfcorehdr=1048592K\0",
        b" elfcorehdr=0x40004000 ",
        b"\0elfcorehdr=1073758208\n",
        b" elfcorehdr=1048592K elfcorehdr=7K ",
    ],
)
def test_a_header_is_found_where_a_command_line_says(argument: bytes) -> None:
    memory = Bytes((0x4000, HEADER), (0x600000, argument))
    (found,) = read_back.find_foreign(memory, PLACE)
    assert (found.address, found.content) == (PLACE.start + 0x4000, HEADER)


@pytest.mark.parametrize(
    "argument",
    [
        b"elfcorehdr=1048592K\0",  # behind the x
        b" myelfcorehdr=1048592K\0",
        b" elfcorehdr=1048592G\0",
        b" elfcorehdr=1048592Kx\0",
        b" elfcorehdr=01048592K\0",  # octal to the kernel
        b" elfcorehdr=\0",
        b" elfcorehdr=99999999999999999999M\0",
    ],
)
def test_what_is_no_such_argument_names_nothing(argument: bytes) -> None:
    memory = Bytes((0x4000, HEADER), (0x5FFFFF, b"x" + argument))
    assert read_back.find_foreign(memory, PLACE) == ()


@pytest.mark.parametrize("at", [-64, -30, -10, -1, 0, 1])
def test_an_argument_across_two_reads_is_found(at: int) -> None:
    for boundary in (4 * MIB, 4 * MIB - 64):
        memory = Bytes((0x4000, HEADER), (boundary + at, b" elfcorehdr=1048592K "))
        assert len(read_back.find_foreign(memory, PLACE)) == 1


def test_a_header_that_is_cut_off_by_the_end_is_none() -> None:
    offset = PLACE.size - 1024
    huge = fake_files.elf_header(40)
    argument = f" elfcorehdr={(PLACE.start + offset) >> 10}K ".encode()
    memory = Bytes((offset, huge), (0x1000, argument))
    assert read_back.find_foreign(memory, PLACE) == ()


@given(st.integers(0, 4096))
def test_a_header_never_exceeds_its_limit(limit: int) -> None:
    content = read_back.read_header(Bytes((0, HEADER)), PLACE.start, limit)
    assert content == (HEADER if limit >= len(HEADER) else None)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, PLACE.size - 512),
            st.one_of(
                st.binary(max_size=256),
                st.just(HEADER[:100]),
                st.integers(0, 1 << 70).map(lambda value: b" elfcorehdr=%dK " % value),
                st.integers(0, 1 << 70).map(lambda value: b" elfcorehdr=0x%x\0" % value),
            ),
        ),
        max_size=8,
    )
)
def test_hostile_memory_is_read_within_the_reservation(written: list[tuple[int, bytes]]) -> None:
    memory = Bytes(*written)
    for found in read_back.find_foreign(memory, PLACE):
        assert PLACE.contains(Range(found.address, found.address + len(found.content) - 1))
    assert read_back.find_own(memory, PLACE) is None


def test_the_header_of_a_delta_load_is_all_there(host: FakeHost, memory: PhysicalMemory) -> None:
    keeper = host.open().keeper
    block = host.live_block()
    long = read_back.read_header(memory, block.elfcorehdr.start, block.elfcorehdr.size)
    host.kernel.hot_add_memory(DIMM)
    keeper.mend(keeper.look())
    now = read_back.read_header(memory, block.elfcorehdr.start, block.elfcorehdr.size)
    assert long is not None
    assert now is not None
    assert len(now) == len(long) + 56
