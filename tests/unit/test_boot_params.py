from __future__ import annotations

import contextlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.errors import ExitCode, ImageError, MachineError
from kdumphpd.image import boot_params, bzimage
from kdumphpd.image.boot_params import BOOT_PARAMS_SIZE, build, parse, segment_size
from kdumphpd.image.e820 import E820Entry, E820Type
from kdumphpd.machine.ranges import Range
from tests.unit.synthetic import SyntheticBzImage

KERNEL = bzimage.parse(SyntheticBzImage().image())
ADDRESS = 0x1_7FE0_0000
INITRD = Range(0x1_7000_0000, 0x1_71FF_FFFF)
MAP = (E820Entry(0x1000, 0x9EC00, E820Type.RAM), E820Entry(0x9FC00, 0x400, E820Type.RESERVED))
COMMAND_LINE = b"console=ttyS0 elfcorehdr=6029312K"
#: No byte of it is 0: what is 0 afterwards was cleared, what is kept can be told.
BASE = bytes(offset % 255 + 1 for offset in range(4096))


def made(command_line: bytes = COMMAND_LINE, e820: tuple[E820Entry, ...] = MAP) -> bytes:
    return build(BASE, KERNEL, ADDRESS, command_line, INITRD, e820)


def many(count: int) -> tuple[E820Entry, ...]:
    kinds = (E820Type.RESERVED, E820Type.RESERVED, E820Type.RAM)
    return tuple(E820Entry(n << 20, 1 << 16, kinds[n % 3]) for n in range(count))


def test_every_field_where_bootparam_h_has_it() -> None:
    segment = made()
    header = SyntheticBzImage().header()
    expected = bytearray(BASE)
    for start, end in (
        (0x002, 0x004), (0x040, 0x054), (0x058, 0x060), (0x080, 0x0A0), (0x1C0, 0x1E9),
        (0x1EF, 0x1F0), (0x1F1, 0x290), (0x2D0, 0xCD0),
    ):  # fmt: skip
        expected[start:end] = bytes(end - start)
    expected[0x1F1:0x26C] = header[0x1F1:0x26C]
    expected[0x210] = 0xD0
    struct.pack_into("<II", expected, 0x218, 0x7000_0000, 0x0200_0000)
    struct.pack_into("<I", expected, 0x228, 0x7FE0_1000)
    expected[0x23C:0x240] = BASE[0x23C:0x240]
    struct.pack_into("<III", expected, 0x0C0, 1, 0, 1)
    expected[0x1E8] = 2
    struct.pack_into("<QQIQQI", expected, 0x2D0, 0x1000, 0x9EC00, 1, 0x9FC00, 0x400, 2)
    assert segment[:BOOT_PARAMS_SIZE] == expected
    assert segment[BOOT_PARAMS_SIZE:] == COMMAND_LINE + b"\0"


def test_an_initrd_of_more_than_4_gib() -> None:
    initrd = Range(0x1_0000_0000, 0x2_0000_0FFF)
    segment = build(BASE, KERNEL, ADDRESS, b"", initrd, ())
    assert struct.unpack_from("<II", segment, 0x218) == (0, 0x1000)
    assert struct.unpack_from("<II", segment, 0x0C0) == (1, 1)


def test_no_initrd() -> None:
    segment = build(BASE, KERNEL, ADDRESS, b"", None, ())
    assert parse(segment, ADDRESS).initrd is None
    assert not any(segment[0x218:0x220] + segment[0x0C0:0x0C8])


def test_128_entries_need_no_setup_data() -> None:
    segment = made(e820=many(128))
    assert len(segment) == BOOT_PARAMS_SIZE + len(COMMAND_LINE) + 1
    assert segment[0x1E8] == 128
    assert struct.unpack_from("<Q", segment, 0x250) == (0,)
    assert parse(segment, ADDRESS).e820 == many(128)


def test_more_entries_go_into_setup_data_and_ram_comes_first() -> None:
    segment = made(e820=many(300))
    (node,) = struct.unpack_from("<Q", segment, 0x250)
    offset = node - ADDRESS
    assert node % 8 == 0
    assert offset > BOOT_PARAMS_SIZE + len(COMMAND_LINE)
    assert struct.unpack_from("<QII", segment, offset) == (0, 1, (300 - 128) * 20)
    assert len(segment) == offset + 16 + (300 - 128) * 20
    found = parse(segment, ADDRESS)
    assert sorted(found.e820) == sorted(many(300))
    assert all(one.type == E820Type.RAM for one in found.e820[:100])
    assert found.command_line == COMMAND_LINE


def test_a_long_header_stays_out_of_the_edd_signatures() -> None:
    kernel = bzimage.parse(SyntheticBzImage(header_end=0x301).image())
    segment = build(BASE, kernel, ADDRESS, b"", None, ())
    assert segment[0x290:0x2D0] == BASE[0x290:0x2D0]


def test_the_command_line_is_never_cut_off() -> None:
    assert parse(made(b"x" * 2047), ADDRESS).command_line == b"x" * 2047
    with pytest.raises(ImageError) as caught:
        made(b"x" * 2050)
    assert str(caught.value) == (
        "the command line has 2050 bytes, the kernel takes 2047; shorten it by 3"
    )
    assert caught.value.exit_code == ExitCode.DATA
    with pytest.raises(ImageError, match="zero byte"):
        made(b"quiet\0panic=1")
    with pytest.raises(ImageError, match="takes 255"):
        build(BASE, replace(KERNEL, cmdline_size=255), ADDRESS, b"x" * 256, None, ())


@pytest.mark.parametrize("size", [0, 4095, 4097])
def test_a_base_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(MachineError, match=f"boot_params/data has {size} bytes"):
        build(bytes(size), KERNEL, ADDRESS, b"", None, ())


entry_lists = st.lists(
    st.builds(
        E820Entry,
        st.integers(0, (1 << 64) - 1),
        st.integers(0, (1 << 64) - 1),
        st.integers(0, (1 << 32) - 1),
    ),
    max_size=200,
).map(tuple)


@given(
    st.binary(max_size=64).map(lambda seed: ((seed + b"\x5a") * 4096)[:4096]),
    st.integers(0, (1 << 48) - 1).map(lambda unit: unit * 16),  # 52 bits, as x86_64 has
    st.binary(max_size=2047).map(lambda line: line.replace(b"\0", b" ")),
    st.none()
    | st.tuples(st.integers(0, 1 << 52), st.integers(1, 1 << 40)).map(
        lambda pair: Range(pair[0], pair[0] + pair[1] - 1)
    ),
    entry_lists,
)
def test_parse_reads_what_build_wrote(
    base: bytes, address: int, line: bytes, initrd: Range | None, e820: tuple[E820Entry, ...]
) -> None:
    segment = build(base, KERNEL, address, line, initrd, e820)
    assert len(segment) == segment_size(line, e820)
    found = parse(segment, address)
    assert found.command_line == line
    assert found.initrd == initrd
    assert sorted(found.e820) == sorted(e820)
    assert found.acpi_rsdp_addr == int.from_bytes(base[0x70:0x78], "little")
    assert found.type_of_loader == 0xD0
    padded = segment.ljust(-(-len(segment) // 4096) * 4096, b"\0")
    assert parse(padded, address) == found


@given(st.binary(max_size=6000), st.integers(0, (1 << 64) - 1))
def test_parse_of_arbitrary_bytes(data: bytes, address: int) -> None:
    with contextlib.suppress(ValueError):
        found = parse(data, address)
        assert found.command_line in data


@given(
    st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=30),
    st.integers(0, 8000),
)
def test_parse_of_a_damaged_segment(changes: list[tuple[int, int]], size: int) -> None:
    segment = bytearray(made(e820=many(140)))
    for offset, value in changes:
        segment[offset] = value
    try:
        found = parse(bytes(segment[:size]), ADDRESS)
    except ValueError:
        return
    assert len(found.command_line) <= len(segment)
    assert len(found.e820) <= 140 + boot_params.E820_MAX_ENTRIES_ZEROPAGE


@pytest.mark.parametrize("delta", [-0x10000, 0x10000, -1, 1 << 40])
def test_parse_at_the_wrong_address(delta: int) -> None:
    if delta == -1:
        assert parse(made(), ADDRESS + delta).command_line != COMMAND_LINE
    else:
        with pytest.raises(ValueError, match="out of the segment"):
            parse(made(), ADDRESS + delta)
