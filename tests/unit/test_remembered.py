"""Images that were loaded for us are known again, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.errors import LoadError
from kdumphpd.load import remembered
from kdumphpd.load.remembered import Remembered
from kdumphpd.machine.files import Root
from kdumphpd.machine.ranges import Range

BOOT = "6f6c1ab0-5f0a-4f5c-8a7e-000000000001"
IMAGE = Remembered(BOOT, "file", 0x6F000000, 0x80000, "ab" * 32, "cd" * 32)
MIB = 1 << 20
PLACE = Range(0x6F000000, 0x6F3FFFFF)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    boot_id(tmp_path, BOOT)
    return Root(tmp_path)


def boot_id(directory: Path, text: str) -> None:
    path = directory / "proc/sys/kernel/random/boot_id"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_what_is_stored_is_recalled_until_forgotten(root: Root) -> None:
    assert remembered.recall(root) is None
    remembered.store(root, IMAGE)
    assert remembered.recall(root) == IMAGE
    remembered.forget(root)
    remembered.forget(root)
    assert remembered.recall(root) is None


def test_another_boot_has_other_images(root: Root) -> None:
    remembered.store(root, IMAGE)
    boot_id(root.directory, BOOT.replace("1", "2"))
    assert remembered.recall(root) is None


def test_a_directory_that_cannot_be_written_is_said(root: Root) -> None:
    root.path("/run").write_text("in the way")
    with pytest.raises(LoadError, match=r"image\.json"):
        remembered.store(root, IMAGE)


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.open("w").truncate(1 << 40),
    ],
    ids=["FIFO", "directory", "link", "1 TiB"],
)
def test_what_is_no_small_file_is_no_image(root: Root, make: Callable[[Path], None]) -> None:
    """A FIFO there blocked the daemon for ever."""
    path = root.path(remembered.STATE)
    path.parent.mkdir(parents=True)
    make(path)
    assert remembered.recall(root) is None


def test_what_others_can_write_is_no_image(root: Root) -> None:
    remembered.store(root, IMAGE)
    root.path(remembered.STATE).chmod(0o666)
    assert remembered.recall(root) is None


@given(st.binary(max_size=6000))
def test_garbage_is_no_image(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    assert remembered._parse(content) is None


@given(
    st.sampled_from(sorted(IMAGE.__dict__)),
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()),
)
def test_a_damaged_field_is_no_image_or_one_of_the_right_types(name: str, value: object) -> None:
    table = {**IMAGE.__dict__, name: value}
    found = remembered._parse(json.dumps(table).encode())
    if found is not None:
        assert type(value) is type(getattr(IMAGE, name))
        assert 0 <= found.header < 1 << 63
        assert 0 < found.header_size < 1 << 32


def test_a_field_more_or_less_is_no_image() -> None:
    table = dict(IMAGE.__dict__)
    assert remembered._parse(json.dumps({**table, "more": 1}).encode()) is None
    del table["image"]
    assert remembered._parse(json.dumps(table).encode()) is None


class Memory:
    """A reservation of zeros and what is written there."""

    def __init__(self) -> None:
        self.content = bytearray(PLACE.size)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.content[address - PLACE.start :][:size])


def known(memory: Memory, header: Range) -> Remembered:
    seen = remembered.witness(memory, PLACE, header)
    return replace(IMAGE, header=header.start, header_size=header.size, witness=seen)


@given(st.integers(0, PLACE.size - 1))
def test_whatever_changes_at_the_end_is_another_image_but_not_the_header(offset: int) -> None:
    memory = Memory()
    header = Range(PLACE.end + 1 - MIB // 2, PLACE.end - MIB // 4)
    image = known(memory, header)
    assert image.is_loaded(memory, PLACE)
    memory.content[offset] ^= 1
    address = PLACE.start + offset
    matters = address > PLACE.end - MIB and not header.start <= address <= header.end
    assert image.is_loaded(memory, PLACE) is not matters


def test_a_header_outside_a_shrunk_reservation_is_not_there() -> None:
    memory = Memory()
    image = known(memory, Range(PLACE.start, PLACE.start + 0xFFF))
    assert not image.is_loaded(memory, Range(PLACE.start + MIB, PLACE.end))
