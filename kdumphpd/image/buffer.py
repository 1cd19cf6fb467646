"""The types that hold a file's or a segment's bytes without a copy."""

from __future__ import annotations

import mmap
from typing import Union

Buffer = Union[bytes, bytearray, memoryview, mmap.mmap]
