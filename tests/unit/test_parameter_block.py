from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.image import parameter_block
from kdumphpd.image.parameter_block import (
    DIGEST_OFFSET,
    PAGE_SIZE,
    ParameterBlock,
    digest_of,
    parse,
    seal,
)
from kdumphpd.machine.ranges import Range

SOURCES = Path(__file__).resolve().parents[2] / "kdumphpd" / "image" / "purgatory"
PAD = Range(0x20000000, 0x200FFFFF)
HEADER = Range(0x20100000, 0x201FFFFF)


def block_of(*regions: Range) -> ParameterBlock:
    return ParameterBlock(
        nonce=bytes(range(16)),
        kernel_entry=0x21000200,
        boot_params=0x2FF00000,
        elfcorehdr=HEADER,
        control_pad=PAD,
        serial_port=0x3F8,
        regions=regions,
    )


addresses = st.integers(HEADER.end + 1, (1 << 64) - 1)
region_tables = st.lists(
    st.tuples(addresses, addresses).map(lambda pair: Range(min(pair), max(pair))), max_size=16
).map(tuple)
blocks = st.builds(
    ParameterBlock,
    nonce=st.binary(min_size=16, max_size=16),
    kernel_entry=st.integers(0, (1 << 64) - 1),
    boot_params=st.integers(0, (1 << 64) - 1),
    elfcorehdr=st.just(HEADER),
    control_pad=st.just(PAD),
    serial_port=st.integers(0, 0xFFFF),
    regions=region_tables,
    digest=st.binary(min_size=32, max_size=32),
)


@given(blocks)
def test_parse_reads_what_pack_wrote(block: ParameterBlock) -> None:
    page = block.pack()
    assert len(page) == PAGE_SIZE
    assert parse(page) == block
    assert parse(page + b"more") == block


@given(st.binary(max_size=500))
def test_other_bytes_are_not_ours(data: bytes) -> None:
    assert parse(data) is None
    assert parse(data.ljust(PAGE_SIZE, b"\xff")) is None


@given(blocks, st.integers(0, PAGE_SIZE - 1), st.integers(1, 255))
def test_a_changed_byte_is_never_read_as_the_same_block(
    block: ParameterBlock, offset: int, change: int
) -> None:
    page = bytearray(block.pack())
    page[offset] ^= change
    found = parse(bytes(page))
    assert found != block
    assert found is None or found.pack() == page


@given(blocks, st.binary(min_size=DIGEST_OFFSET - 16, max_size=DIGEST_OFFSET - 16))
def test_garbage_behind_the_magic(block: ParameterBlock, garbage: bytes) -> None:
    page = block.pack()[:16] + garbage + block.pack()[DIGEST_OFFSET:]
    found = parse(page)
    assert found is None or found.pack() == page


def test_a_truncated_page_is_not_ours() -> None:
    page = block_of().pack()
    assert parse(page[:-1]) is None
    assert parse(b"") is None


def test_the_digest_is_sha256_of_block_and_regions() -> None:
    block = block_of(Range(0x21000000, 0x21000003), Range(0x22000000, 0x22000001))
    expected = hashlib.sha256(block.pack()[:DIGEST_OFFSET] + b"abcdef").digest()
    assert digest_of(block, [b"abcd", b"ef"]) == expected
    assert digest_of(block, [b"ab", b"cdef"]) == expected, "pieces may be of any size"
    assert seal(block, [b"abcd", memoryview(b"ef")]).digest == expected


@pytest.mark.parametrize("contents", [[], [b"abc"], [b"abcde"]])
def test_content_must_be_as_long_as_the_regions(contents: list[bytes]) -> None:
    with pytest.raises(ValueError, match="regions of 4 bytes"):
        digest_of(block_of(Range(0x21000000, 0x21000003)), contents)


def test_what_the_purgatory_would_refuse_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="before the control pad"):
        block_of(Range(PAD.start - 1, PAD.start + 1))
    with pytest.raises(ValueError, match="elfcorehdr"):
        block_of(Range(HEADER.end, HEADER.end + 1))
    with pytest.raises(ValueError, match="the table holds 16"):
        block_of(*(Range(0x21000000, 0x21000000),) * 17)
    with pytest.raises(ValueError, match="64 bits"):
        block_of(Range(0x21000000, 1 << 64))
    with pytest.raises(ValueError, match="16 bytes"):
        replace(block_of(), nonce=b"short")
    with pytest.raises(ValueError, match="I/O port"):
        replace(block_of(), serial_port=0x10000)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_c_declaration_has_the_same_offsets(tmp_path: Path) -> None:
    # The docstring is the Python side's declaration: it must say what the compiler says.
    stated = {
        name: int(offset)
        for name, offset in re.findall(
            r"(\w+)(?:\[\d+\])?;\s*/\*\s*(\d+) \*/", parameter_block.__doc__ or ""
        )
    }
    assert len(stated) == 14
    prints = "".join(
        f'printf("{name} %zu\\n", offsetof(struct parameter_block, {name}));' for name in stated
    )
    source = tmp_path / "offsets.c"
    source.write_text(
        f'#include <stdio.h>\n#include "parameter_block.h"\nint main(void) {{ {prints}'
        'printf("BLOCK_SIZE %d\\n", BLOCK_SIZE); fwrite(BLOCK_MAGIC, 1, 16, stdout);'
        'printf("\\n%d %d\\n", BLOCK_VERSION, BLOCK_REGIONS); }\n'
    )
    subprocess.run(
        ["cc", "-I", str(SOURCES), "-o", str(tmp_path / "offsets"), str(source)],
        check=True,
        timeout=60,
    )
    output = subprocess.run(
        [str(tmp_path / "offsets")], check=True, capture_output=True, timeout=60
    ).stdout
    *offsets, size, magic, limits = output.splitlines()
    assert {line.split()[0].decode(): int(line.split()[1]) for line in offsets} == stated
    assert size.split()[1] == b"%d" % PAGE_SIZE
    assert magic == parameter_block.MAGIC
    assert limits == b"%d %d" % (parameter_block.VERSION, parameter_block.MAX_REGIONS)


def test_each_packed_field_lies_at_its_offset() -> None:
    page = replace(block_of(Range(0x21000000, 0x21000FFF)), digest=b"D" * 32).pack()
    assert page[:16] == parameter_block.MAGIC
    words = [int.from_bytes(page[at : at + 8], "little") for at in range(40, 112, 8)]
    header, pad = (HEADER.start, HEADER.size), (PAD.start, PAD.size)
    assert words == [0x21000200, 0x2FF00000, *header, *pad, 0x3F8, 0x21000000, 0x1000]
    assert page[16:24] == bytes((1, 0, 0, 0, 1, 0, 0, 0))
    assert page[24:40] == bytes(range(16))
    assert page[352:384] == b"D" * 32
    assert not any(page[384:])
