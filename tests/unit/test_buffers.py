from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.errors import ImageError
from kdumphpd.load.buffers import LockedBuffer


@given(st.binary(max_size=10000))
def test_content_lies_at_the_address(content: bytes) -> None:
    with LockedBuffer.of(content) as buffer:
        assert len(buffer) == len(content)
        assert ctypes.string_at(buffer.address, len(buffer)) == content
        with buffer.view() as view:
            assert bytes(view) == content


def test_a_new_buffer_is_zeros() -> None:
    with LockedBuffer(5000) as buffer, buffer.view() as view:
        assert bytes(view) == bytes(5000)


def test_a_closed_buffer_is_gone() -> None:
    buffer = LockedBuffer.of(b"abc")
    assert buffer.address
    buffer.close()
    with pytest.raises(ValueError, match="closed"):
        buffer.view()


def test_a_view_in_use_keeps_the_memory() -> None:
    buffer = LockedBuffer.of(b"abc")
    view = buffer.view()
    with pytest.raises(BufferError):
        buffer.close()
    view.release()
    buffer.close()


@given(st.binary(min_size=1, max_size=5000), st.data())
def test_a_part_of_a_file(content: bytes, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(content)))
    size = data.draw(st.integers(0, len(content) - offset))
    fd = os.memfd_create("part")
    try:
        os.write(fd, content)
        with LockedBuffer.read(fd, offset, size, "initrd") as buffer, buffer.view() as view:
            assert bytes(view) == content[offset : offset + size]
    finally:
        os.close(fd)


def test_a_large_file_is_read_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    size = (1 << 24) + 4097
    with open(path, "wb") as file:
        file.truncate(size)
        file.seek((1 << 24) - 2)
        file.write(b"edge")
        file.seek(size - 3)
        file.write(b"end")
    with open(path, "rb") as source:
        buffer = LockedBuffer.read(source.fileno(), 0, size, "initrd")
    with buffer, buffer.view() as view:
        assert bytes(view[(1 << 24) - 2 : (1 << 24) + 2]) == b"edge"
        assert bytes(view[-3:]) == b"end"


@pytest.mark.parametrize("left", [0, 100])
def test_a_file_that_shrank_is_a_clear_error(tmp_path: Path, left: int) -> None:
    path = tmp_path / "initrd"
    path.write_bytes(bytes(left))
    with (
        open(path, "rb") as file,
        pytest.raises(ImageError, match=f"initrd .*initrd ends after {left} bytes"),
    ):
        LockedBuffer.read(file.fileno(), 0, 5000, f"initrd {path}")
