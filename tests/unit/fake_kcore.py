"""``proc/kcore`` of a fake kernel: a sparse file of headers and physical memory behind them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 20


class KcoreFile:
    """Physical address 0 lies where the headers end; holes of the file are memory of zeros."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._base = 0
        path.write_bytes(b"")

    def show(self, head: bytes, end: int) -> None:
        """Put ``head`` before memory that ends at ``end``; moves the memory if it must."""
        with open(self._path, "r+b") as kcore:
            fd = kcore.fileno()
            if self._base and self._base != len(head):
                _move(fd, self._base, len(head))
            self._base = len(head)
            os.pwrite(fd, head, 0)
            os.ftruncate(fd, max(os.fstat(fd).st_size, self._base + end))

    def read(self, address: int, size: int) -> bytes:
        with open(self._path, "rb") as kcore:
            return os.pread(kcore.fileno(), size, self._base + address)

    def write(self, address: int, data: bytes) -> None:
        with open(self._path, "r+b") as kcore:
            os.pwrite(kcore.fileno(), data, self._base + address)

    def clear(self, address: int, size: int) -> None:
        """Fill with zeros, touching only what is not a hole of the file already."""
        begin = self._base + address
        with open(self._path, "r+b") as kcore:
            for start, stop in _extents(kcore.fileno(), begin, begin + size):
                os.pwrite(kcore.fileno(), bytes(stop - start), start)


def _extents(fd: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Parts of a sparse file that hold data, in pieces of at most 1 MiB."""
    while begin < end:
        try:
            begin = os.lseek(fd, begin, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        hole = min(os.lseek(fd, begin, os.SEEK_HOLE), end)
        for start in range(begin, hole, _CHUNK):
            yield start, min(start + _CHUNK, hole)
        begin = hole


def _move(fd: int, old: int, new: int) -> None:
    """Move all memory in kcore from offset ``old`` to ``new``."""
    size = os.fstat(fd).st_size
    kept = [(start, os.pread(fd, stop - start, start)) for start, stop in _extents(fd, old, size)]
    for start, data in kept:
        os.pwrite(fd, bytes(len(data)), start)
    for start, data in kept:
        os.pwrite(fd, data, start - old + new)
