"""Opening files that somebody else may have put there: never waiting, and knowing whose they are.

A FIFO would block whoever opens it, a device may act on it, and a file that others can
write is theirs to choose. So a file is looked at (O_PATH, which opens nothing) before it is
opened, and what was looked at is what gets opened.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from kdumphpd.errors import InputError, KdumphpdError, PermissionMissingError

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class NotRegularError(OSError):
    """What a name stands for is not a regular file."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "not a regular file", str(path))


class DistrustError(Exception):
    """Somebody other than root decides what a file holds.

    ``remedy`` is the command that changes it.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


def open_regular(path: Path, *, follow: bool = True, check_owner: bool = False) -> int:
    """Open a regular file for reading; the caller closes it.

    Args:
        path: its name.
        follow: whether the name may be a symbolic link.
        check_owner: whether it must be in `trusted_hands`.

    Raises:
        OSError: as open(2); NotRegularError for anything but a file.
        DistrustError: others can write it.
    """
    found = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(path)
        if check_owner:
            trusted_hands(path, status)
        # O_NONBLOCK: whoever may write it can hold a lease on it (fcntl(2), F_SETLEASE).
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(found)


def trusted_hands(path: Path, status: os.stat_result) -> None:
    """Raise DistrustError unless root, or who runs this, owns it and nobody else can write it."""
    if status.st_uid not in (0, os.geteuid()):
        owner = f"user {status.st_uid}, not to root"
        raise DistrustError(f"{path} belongs to {owner}", f"chown 0 {path}")
    if status.st_mode & _WRITABLE_BY_OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        raise DistrustError(f"{path} is writable by others (mode {mode:04o})", f"chmod go-w {path}")


def trusted_parents(path: Path) -> None:
    """Raise DistrustError if others could put another file in the place of ``path``.

    Both ways there count: by its name, and by where its links lead. In a directory with the
    sticky bit only the owner of a file, or of the directory, can rename or remove it.

    Raises:
        OSError: a directory cannot be looked at.
    """
    absolute = Path(os.path.abspath(path))
    for directory in {*absolute.parents, *Path(os.path.realpath(path)).parents}:
        status = directory.stat()
        if status.st_uid not in (0, os.geteuid()) or not status.st_mode & stat.S_ISVTX:
            trusted_hands(directory, status)


def read_limited(fd: int, limit: int) -> bytes:
    """What an open file holds; one byte more than ``limit`` if it is larger than that."""
    parts = []
    left = limit + 1
    while left > 0:
        part = os.read(fd, min(left, 1 << 16))
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def unreadable(what: str, error: OSError, remedy: str) -> KdumphpdError:
    """The error to raise for a file that could not be opened or read.

    Args:
        what: the file, as errors call it.
        error: what happened.
        remedy: for a file that is not there or is none.
    """
    if isinstance(error, PermissionError):
        return PermissionMissingError(
            f"{what}: {error.strerror}", "run kdumphpd as root, who must be able to read it"
        )
    if isinstance(error, NotRegularError):
        return InputError(f"{what} is {error.strerror}", remedy)
    return InputError(f"{what}: {error.strerror}", remedy)
