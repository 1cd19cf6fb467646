"""Unified kernel images: built by hand, by objcopy, and by chance."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.errors import ImageError
from kdumphpd.image import bzimage
from kdumphpd.image.uki import linux_section
from tests.unit.host_fixture import KERNEL as KERNEL_PATH
from tests.unit.host_fixture import FakeHost
from tests.unit.host_fixture import bzimage as bzimage_file
from tests.unit.synthetic import SyntheticBzImage, pe

KERNEL = b"K" * 1000


def test_kernel_is_found_without_its_padding() -> None:
    image = pe([(b".osrel", b"x"), (b".linux", KERNEL), (b".initrd", b"i" * 600)])
    place = linux_section(image, "uki")
    assert place is not None
    assert image[place.start : place.end + 1] == KERNEL


def test_first_kernel_counts() -> None:
    image = pe([(b".linux", KERNEL), (b".profile", b"p"), (b".linux", b"other")])
    place = linux_section(image, "uki")
    assert place is not None
    assert image[place.start : place.end + 1] == KERNEL


def test_bzimage_inside_can_be_parsed() -> None:
    kernel = SyntheticBzImage().image()
    image = pe([(b".text", b"stub"), (b".linux", kernel)])
    place = linux_section(image, "uki")
    assert place is not None
    parsed = bzimage.parse(memoryview(image)[place.start : place.end + 1])
    assert parsed == bzimage.parse(kernel)


def test_kernel_inside_is_what_gets_loaded(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.load()
    plain = host.static_bytes()[0]
    host.write(
        KERNEL_PATH,
        pe([(b".text", b"stub"), (b".linux", bzimage_file()), (b".initrd", b"i" * 700)]),
    )
    host.load()
    assert host.static_bytes()[0] == plain
    host.assert_complete()


@pytest.mark.parametrize(
    "content", [b"", b"MZ", b"\x7fELF" + bytes(100), pe([(b".text", b"stub")]), bytes(4096)]
)
def test_other_files_are_none(content: bytes) -> None:
    assert linux_section(content, "file") is None


def test_truncated_image_is_an_error() -> None:
    image = pe([(b".text", b"t" * 600), (b".linux", KERNEL)])
    with pytest.raises(ImageError, match=r"uki\.efi .*\.linux, 1000 bytes at"):
        linux_section(image[:-600], "uki.efi")


@given(st.data())
def test_hostile_headers_give_a_place_inside_or_nothing(data: st.DataObject) -> None:
    image = bytearray(pe([(b".osrel", b"x" * 20), (b".linux", KERNEL)]))
    for _ in range(data.draw(st.integers(1, 12))):
        image[data.draw(st.integers(0, 0x240))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(image)))
    content = bytes(image[:cut])
    try:
        place = linux_section(content, "uki")
    except ImageError:
        return
    assert place is None or place.end < len(content)


@given(st.binary(max_size=600))
def test_any_bytes(content: bytes) -> None:
    try:
        place = linux_section(content, "file")
    except ImageError:
        return
    assert place is None or place.end < len(content)


@pytest.mark.skipif(shutil.which("objcopy") is None, reason="needs binutils")
def test_objcopy_agrees(tmp_path: Path) -> None:
    """What binutils takes out of the file is what we take."""
    uki = tmp_path / "uki.efi"
    uki.write_bytes(pe([(b".osrel", b"x" * 20), (b".linux", KERNEL)]))
    out = tmp_path / "linux"
    done = subprocess.run(
        [
            "objcopy",
            "--input-target=pei-x86-64",
            "--output-target=binary",
            "--only-section=.linux",
            "--set-section-flags=.linux=alloc,load,contents,readonly",
            str(uki),
            str(out),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        pytest.skip(f"objcopy does not know this format: {done.stderr}")
    assert out.read_bytes().rstrip(b"\0") == KERNEL
