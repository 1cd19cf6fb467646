"""The types that hold a file's or a segment's bytes without a copy, or give some of them."""

from __future__ import annotations

import mmap
from typing import Protocol, Union

Buffer = Union[bytes, bytearray, memoryview, mmap.mmap]


class Sliceable(Protocol):
    """Bytes that can be had in parts: a buffer, or a file of which no more is read."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, key: slice, /) -> bytes | bytearray | memoryview:
        """Those of a slice without a step."""
