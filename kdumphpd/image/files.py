"""The kernel and initrd on disk: opened once, kept open, known by their digest."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from kdumphpd.errors import ImageError, InputError, PermissionMissingError
from kdumphpd.load.buffers import LockedBuffer


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

    @classmethod
    def open(cls, role: str, path: Path) -> ImageFile:
        """Open ``path``; ``role`` is "kernel" or "initrd".

        Raises:
            InputError: it is missing or cannot be read.
            PermissionMissingError: this user may not read it.
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

    def content(self) -> LockedBuffer:
        """The whole file as it is now.

        Not a mapping of it: reading one that shrinks kills the process (SIGBUS).

        Raises:
            ImageError: it is empty or shrinks while it is read.
        """
        return LockedBuffer.read(self.fd, 0, self.size(), f"{self.role} {self.path}")

    def read(self) -> LockedBuffer:
        """The whole file, as it was when it was read the first time.

        If it was overwritten in place since, what is loaded cannot be had again:
        then the path is opened anew and what it names now is read.

        Raises:
            ImageError: it is empty or shrinks while it is read.
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
        # A FIFO in the file's place must not stop the daemon.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        problem = f"{role} {path}: {error.strerror}"
        raise PermissionMissingError(problem, "run kdumphpd as root") from error
    except OSError as error:
        raise InputError(f"{role} {path}: {error.strerror}", remedy) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InputError(f"{role} {path} is not a regular file", remedy)
    return fd


def _digest(content: LockedBuffer) -> bytes:
    with content.view() as view:
        return hashlib.sha256(view).digest()
