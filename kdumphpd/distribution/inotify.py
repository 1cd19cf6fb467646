"""inotify(7), and nothing else: constants, the structure, thin wrappers.

Python's standard library has no binding; three calls are not worth a dependency.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# include/uapi/linux/inotify.h
IN_CLOSE_WRITE = 0x00000008
IN_OPEN = 0x00000020
IN_MOVED_TO = 0x00000080
IN_CREATE = 0x00000100
IN_Q_OVERFLOW = 0x00004000
IN_IGNORED = 0x00008000
IN_ONLYDIR = 0x01000000
IN_MASK_ADD = 0x20000000

# struct inotify_event { __s32 wd; __u32 mask; __u32 cookie; __u32 len; char name[]; };
_EVENT = struct.Struct("=iIII")


@dataclass(frozen=True)
class Event:
    """One event: watch descriptor, IN_* bits, and the name in the watched directory."""

    wd: int
    mask: int
    name: str


class Inotify:
    """An inotify instance, non-blocking."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
        self._libc.inotify_rm_watch.argtypes = [ctypes.c_int, ctypes.c_int]
        self._fd = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """Descriptor to select on."""
        return self._fd

    def add(self, path: str, mask: int) -> int:
        """Watch ``path`` and return its watch descriptor; OSError as inotify_add_watch(2)."""
        return self._checked(self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask))

    def remove(self, wd: int) -> None:
        """Watch no longer; OSError as inotify_rm_watch(2)."""
        self._checked(self._libc.inotify_rm_watch(self._fd, wd))

    def read(self, size: int = 1 << 16) -> tuple[Event, ...]:
        """The events that wait; none if none does."""
        try:
            return tuple(parse(os.read(self._fd, size)))
        except BlockingIOError:
            return ()

    def close(self) -> None:
        """Give up the descriptor."""
        os.close(self._fd)

    def _checked(self, result: int) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result


def parse(data: bytes) -> Iterator[Event]:
    """Take the events apart that one read(2) gave; what is cut short is left out."""
    offset = 0
    while offset + _EVENT.size <= len(data):
        wd, mask, _, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        if offset + length > len(data):
            return
        name = data[offset : offset + length].partition(b"\0")[0]
        offset += length
        yield Event(wd, mask, os.fsdecode(name))
