"""The kernel and initrd on disk: opened once, kept open, known by their digest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kdumphpd.errors import ImageError
from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.machine import trust
from kdumphpd.machine.ranges import Range


class FilePart:
    """Some bytes of an open file, of which no more is read than is asked for.

    Args:
        fd: the file.
        place: which of its bytes; None if there are none.
        name: for errors.
    """

    def __init__(self, fd: int, place: Range | None, name: str) -> None:
        self._fd = fd
        self._place = place
        self._name = name

    def __len__(self) -> int:
        return 0 if self._place is None else self._place.size

    def __getitem__(self, key: slice) -> bytes:
        first, end, _ = key.indices(len(self))
        if self._place is None or first >= end:
            return b""
        start = self._place.start + first
        part = LockedBuffer.read(self._fd, start, end - first, self._name)
        with part, part.view() as view:
            return bytes(view)

    def part(self, place: Range) -> FilePart:
        """The bytes at ``place`` of these."""
        start = self._place.start if self._place else 0
        return FilePart(self._fd, Range(start + place.start, start + place.end), self._name)


class ImageFile:
    """An open file of the image.

    It is kept open because a package upgrade unlinks the old kernel while it is
    still the one that is loaded.
    """

    def __init__(self, role: str, path: Path, fd: int) -> None:
        self.role = role
        self.path = path
        self.fd = fd
        self._digest: bytes | None = None
        self._limit: int | None = None

    @classmethod
    def open(cls, role: str, path: Path) -> ImageFile:
        """Open ``path``; ``role`` is "kernel" or "initrd".

        Raises:
            InputError, PermissionMissingError: it is missing or cannot be read.
        """
        return cls(role, path, _open(role, path))

    def size(self) -> int:
        """Bytes in the file now.

        Raises:
            ImageError: it is empty.
        """
        size = os.fstat(self.fd).st_size
        if size == 0:
            raise ImageError(
                f"{self.role} {self.path} is empty", f"rebuild it or set [image] {self.role}"
            )
        return size

    def bound(self, limit: int) -> None:
        """From here on refuse to read it whole if it has more than ``limit`` bytes."""
        self._limit = limit

    def check_owner(self) -> None:
        """Raise ImageError if others can write it: it is what a panic runs as root."""
        try:
            trust.trusted_hands(self.path, os.fstat(self.fd))
        except trust.DistrustError as error:
            raise ImageError(f"{self.role} {error.problem}", error.remedy) from error

    def whole(self) -> FilePart:
        """The file as it is now, to look at parts of it."""
        size = self.size()
        return FilePart(self.fd, Range(0, size - 1), f"{self.role} {self.path}")

    def content(self) -> LockedBuffer:
        """The whole file as it is now.

        Not a mapping of it: reading one that shrinks kills the process (SIGBUS).

        Raises:
            ImageError: it is empty, too large, others can write it, or it shrinks
                while it is read.
        """
        self.check_owner()
        size = self.size()
        if self._limit is not None and size > self._limit:
            raise ImageError(
                f"{self.role} {self.path} has {size} bytes, more than the reservation"
                f" ({self._limit})",
                f"enlarge crashkernel=, or set [image] {self.role} to a smaller file",
            )
        return LockedBuffer.read(self.fd, 0, size, f"{self.role} {self.path}")

    def read(self) -> LockedBuffer:
        """The whole file, as it was when it was read the first time.

        If it was overwritten in place since, what is loaded cannot be had again:
        then the path is opened anew and what it names now is read.

        Raises:
            ImageError: as `content`.
            InputError: the path cannot be opened anew.
        """
        content = self.content()
        digest = _digest(content)
        if self._digest not in (None, digest):
            content.close()
            fresh = _open(self.role, self.path)
            os.close(self.fd)
            self.fd = fresh
            content = self.content()
            digest = _digest(content)
        self._digest = digest
        return content

    def digest(self) -> bytes:
        """SHA-256 of the whole file; reads it, with the care of `read`."""
        with self.read():
            assert self._digest is not None  # read() has just set it
            return self._digest

    @property
    def digest_as_read(self) -> bytes | None:
        """`digest` of the last `read`, without reading again; None before the first."""
        return self._digest

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.fd)


def _open(role: str, path: Path) -> int:
    remedy = f"set [image] {role} to a file that is there"
    try:
        return trust.open_regular(path)
    except OSError as error:
        raise trust.unreadable(f"{role} {path}", error, remedy) from error


def _digest(content: LockedBuffer) -> bytes:
    with content.view() as view:
        return hashlib.sha256(view).digest()
