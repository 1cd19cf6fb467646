from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.errors import ExitCode, ImageError
from kdumphpd.image.bzimage import SETUP_HEADER, SETUP_HEADER_LIMIT, BzImage, XLoadFlags, parse
from tests.unit.synthetic import SyntheticBzImage

GOOD = SyntheticBzImage()
REAL_KERNELS = sorted(
    path
    for directory in (os.environ.get("KDUMPHPD_TEST_KERNELS", "/boot"),)
    for path in Path(directory).glob("**/vmlinuz*")
    if path.is_file() and not path.is_symlink()
)


def test_fields_are_those_of_the_header() -> None:
    kernel = parse(GOOD.image())
    assert kernel == BzImage(
        setup_header=GOOD.header()[0x1F1:0x26C],
        protocol=0x20F,
        setup_sects=0x27,
        kernel_alignment=0x200000,
        pref_address=0x1000000,
        init_size=0x3377000,
        xloadflags=XLoadFlags(0x7F),
        cmdline_size=2047,
        initrd_addr_max=0x7FFFFFFF,
        payload_offset=0x2CC,
        payload_length=0x8000,
        offset=0x28 * 512,
        size=0x10000,
        file_size=0x28 * 512 + 0x10000,
    )
    assert kernel.memory_size == kernel.init_size


def test_no_setup_sectors_means_four() -> None:
    assert parse(replace(GOOD, setup_sects=0).image()).offset == 5 * 512


def test_a_signature_behind_the_kernel_is_no_part_of_it() -> None:
    signed, plain = parse(replace(GOOD, trailing=b"PKCS7" * 300).image()), parse(GOOD.image())
    assert signed == replace(plain, file_size=plain.file_size + 1500)


def test_any_buffer_will_do(tmp_path: Path) -> None:
    expected = parse(GOOD.image())
    assert parse(memoryview(GOOD.image())) == expected
    assert parse(bytearray(GOOD.image())) == expected
    file = tmp_path / "vmlinuz"
    file.write_bytes(GOOD.image())
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert parse(view) == expected


@pytest.mark.parametrize(
    ("image", "problem", "remedy"),
    [
        (b"", "is empty", "vmlinuz"),
        (b"\x7fELF" + bytes(2000), "ELF file", "vmlinuz"),
        (b"\x1f\x8b" + bytes(2000), "gzip", "vmlinuz"),
        (b"#!/bin/sh\n", "not a bzImage", "vmlinuz"),
        (replace(GOOD, magic=b"HdrX").image(), "not a bzImage", "vmlinuz"),
        (replace(GOOD, boot_flag=0).image(), "not a bzImage", "vmlinuz"),
        (replace(GOOD, protocol=0x20B).image(), "boot protocol 2.11 is older", "Linux 3.8"),
        (replace(GOOD, loadflags=0).image(), "zImage", "bzImage"),
        (replace(GOOD, xloadflags=0x7E).image(), "32-bit", "x86_64"),
        (replace(GOOD, xloadflags=0x7D).image(), "ABOVE_4G", "CONFIG_RELOCATABLE"),
        (replace(GOOD, relocatable_kernel=0).image(), "not relocatable", "CONFIG_RELOCATABLE"),
        (GOOD.image()[:-1], "truncated: 86015 bytes, its header says at least 86016", "reinstall"),
        (GOOD.image()[:0x290], "truncated", "reinstall"),
        (GOOD.image()[:0x280], "truncated", "reinstall"),
        (replace(GOOD, kernel_alignment=0).image(), "contradicts", "reinstall"),
        (replace(GOOD, kernel_alignment=0x300000).image(), "contradicts", "reinstall"),
        (replace(GOOD, init_size=0xFFFF).image(), "contradicts", "reinstall"),
        (replace(GOOD, payload_length=0xFFFF).image(), "contradicts", "reinstall"),
        (replace(GOOD, syssize=0).image(), "contradicts", "reinstall"),
        (replace(GOOD, header_end=0x250).image(), "contradicts", "reinstall"),
    ],
)
def test_what_cannot_be_loaded_is_refused(image: bytes, problem: str, remedy: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse(image, "/boot/vmlinuz")
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert "/boot/vmlinuz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.DATA


def test_five_level_paging_is_asked_for_only_where_it_is_in_use() -> None:
    image = replace(GOOD, xloadflags=0x1F).image()
    assert XLoadFlags.FIVE_LEVEL not in parse(image).xloadflags
    with pytest.raises(ImageError, match="XLF_5LEVEL"):
        parse(image, five_level_paging=True)
    assert parse(GOOD.image(), five_level_paging=True)


def parses_or_refuses(image: bytes) -> None:
    try:
        kernel = parse(image)
    except ImageError:
        return
    assert kernel.offset + kernel.size <= len(image)
    assert kernel.size <= kernel.memory_size
    assert len(kernel.setup_header) <= SETUP_HEADER_LIMIT - SETUP_HEADER


@given(st.binary(max_size=3000))
def test_arbitrary_bytes(data: bytes) -> None:
    parses_or_refuses(data)


@given(st.integers(0, len(GOOD.image())))
def test_cut_off_anywhere(size: int) -> None:
    with pytest.raises(ImageError):
        parse(GOOD.image()[:size][:-1])


@given(
    st.builds(
        SyntheticBzImage,
        setup_sects=st.integers(0, 255),
        syssize=st.integers(0, 0x400),
        protocol=st.integers(0x20C, 0xFFFF),
        header_end=st.integers(0x202, 0x301),
        kernel_alignment=st.integers(0, 0xFFFFFFFF),
        cmdline_size=st.integers(0, 0xFFFFFFFF),
        payload_offset=st.integers(0, 0xFFFFFFFF),
        payload_length=st.integers(0, 0xFFFFFFFF),
        pref_address=st.integers(0, (1 << 64) - 1),
        init_size=st.integers(0, 0xFFFFFFFF),
    )
)
def test_hostile_headers(image: SyntheticBzImage) -> None:
    parses_or_refuses(image.image())


@given(st.integers(0, 0xFFFFFFFF))
def test_a_huge_kernel_that_is_not_there(syssize: int) -> None:
    claims = replace(GOOD, init_size=0xFFFFFFFF, syssize=syssize).header()
    parses_or_refuses(claims + bytes(0x10000))


@given(st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), max_size=20))
def test_scribbled_headers(changes: list[tuple[int, int]]) -> None:
    image = bytearray(GOOD.image())
    for offset, value in changes:
        image[offset] = value
    parses_or_refuses(bytes(image))


@pytest.mark.skipif(not REAL_KERNELS, reason="no kernel in /boot or $KDUMPHPD_TEST_KERNELS")
@pytest.mark.parametrize("path", REAL_KERNELS, ids=lambda path: path.name)
def test_real_kernels(path: Path) -> None:
    image = path.read_bytes()
    kernel = parse(image, str(path), five_level_paging=True)
    assert kernel.pref_address % kernel.kernel_alignment == 0
    assert len(image) - kernel.offset - kernel.size < 65536, "a signature and no more"
    # The payload ends with its own size unpacked, which must fit into init_size.
    end = kernel.offset + kernel.payload_offset + kernel.payload_length
    unpacked = int.from_bytes(image[end - 4 : end], "little")
    assert len(image) < unpacked < kernel.init_size
    if shutil.which("file"):
        said = subprocess.run(
            ["file", "-b", str(path)], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        assert "bzImage" in said
