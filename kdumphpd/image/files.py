"""The kernel and initrd on disk: opened once, kept open, known by their digest."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from kdumphpd.errors import ImageError, InputError
from kdumphpd.load.buffers import LockedBuffer


@dataclass
class ImageFile:
    """An open file of the image.

    It is kept open because a package upgrade unlinks the old kernel while it is
    still the one that is loaded. ``digest`` is that of the bytes last loaded from it.
    """

    role: str
    path: Path
    fd: int
    digest: bytes | None = field(default=None)

    @classmethod
    def open(cls, role: str, path: Path) -> ImageFile:
        """Open ``path``; ``role`` is "kernel" or "initrd".

        Raises:
            InputError: it is missing or cannot be read.
        """
        try:
            return cls(role, path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise InputError(
                f"{role} {path}: {error.strerror}", f"set [image] {role} to a file that is there"
            ) from error

    def read(self) -> LockedBuffer:
        """The whole file as it is now.

        Raises:
            ImageError: it is empty, or not a file that has a size.
        """
        size = os.fstat(self.fd).st_size
        if size == 0:
            raise ImageError(
                f"{self.role} {self.path} is empty", f"rebuild it or set [image] {self.role}"
            )
        return LockedBuffer.read(self.fd, 0, size, f"{self.role} {self.path}")

    def changed(self, content: LockedBuffer) -> bool:
        """Note the digest of ``content``; whether the file held something else before."""
        with content.view() as view:
            digest = hashlib.sha256(view).digest()
        before, self.digest = self.digest, digest
        return before not in (None, digest)

    def replaced(self) -> bool:
        """Whether ``path`` is another file by now, or gone."""
        try:
            now = os.stat(self.path)
        except OSError:
            return True
        mine = os.fstat(self.fd)
        return (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.fd)
