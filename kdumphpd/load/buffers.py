"""Memory that is filled, locked and handed to the kernel, and given back at once after."""

from __future__ import annotations

import ctypes
import mmap
import os
from types import TracebackType

from kdumphpd.errors import ImageError

_CHUNK = 1 << 24


class LockedBuffer:
    """An anonymous mapping; its pages are present once filled, and stay while locked.

    A page fault inside ``kexec_load(2)`` would stretch the time in which
    nothing is loaded. A mapping and not ``bytes``: closing it returns the memory,
    and the daemon idles at its usual size.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        try:
            self._map = mmap.mmap(-1, max(size, 1))
        except OSError as error:
            raise ImageError(
                f"no memory for {size} bytes of the image: {error.strerror}",
                "free some, or raise the service's MemoryMax=",
            ) from error

    @classmethod
    def of(cls, content: bytes | memoryview) -> LockedBuffer:
        """A buffer that holds ``content``."""
        buffer = cls(len(content))
        buffer._map[: len(content)] = content
        return buffer

    @classmethod
    def read(cls, fd: int, offset: int, size: int, name: str) -> LockedBuffer:
        """``size`` bytes of an open file from ``offset``.

        Raises:
            ImageError: the file ends before, or cannot be read.
        """
        buffer = cls(size)
        try:
            with buffer.view() as whole:
                _fill(whole, fd, offset, name)
        except OSError as error:
            buffer.close()
            raise ImageError(f"{name}: {error.strerror}", "check the file system") from error
        except BaseException:
            buffer.close()
            raise
        return buffer

    def __len__(self) -> int:
        return self._size

    @property
    def address(self) -> int:
        """Address in this process."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def view(self) -> memoryview:
        """The content, not copied; release it before `close`."""
        return memoryview(self._map)[: self._size]

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()

    def __enter__(self) -> LockedBuffer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _fill(whole: memoryview, fd: int, offset: int, name: str) -> None:
    done = 0
    while done < len(whole):
        with whole[done : done + _CHUNK] as part:
            count = os.preadv(fd, [part], offset + done)
        if count == 0:
            raise ImageError(f"{name} ends after {offset + done} bytes, it shrank just now")
        done += count
