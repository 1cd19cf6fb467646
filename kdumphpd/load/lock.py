"""One kdumphpd at a time: the lock that the daemon and manual loads share."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from kdumphpd.errors import BusyError, PermissionMissingError
from kdumphpd.machine import flocks
from kdumphpd.machine.files import Root

LOCK = "/run/kdumphpd/lock"


@contextlib.contextmanager
def single_instance(root: Root) -> Iterator[None]:
    """Hold the lock; the kernel drops it when the process ends, however it ends.

    Raises:
        BusyError: another instance holds it.
        PermissionMissingError: the lock file cannot be made.
    """
    path = root.path(LOCK)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = _locked(path, root)
    except OSError as error:
        raise PermissionMissingError(f"{path}: {error.strerror}", "run kdumphpd as root") from error
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _locked(path: Path, root: Root) -> int:
    """The open lock file, locked.

    Raises:
        BusyError: another instance holds it.
        OSError: it cannot be made.
    """
    fd = _open(path)
    try:
        if _try_lock(fd):
            return fd
        holder = flocks.holder(fd, root)
        if holder is None or not (holder.is_another_user or holder.uid is None):
            pid = os.pread(fd, 16, 0).decode("ascii", "replace").strip() or "unknown"
            raise BusyError(
                f"another kdumphpd is running (pid {pid})",
                "let it do the work: systemctl reload kdumphpd, or stop it first",
            )
    except BaseException:
        os.close(fd)
        raise
    # Another user got hold of it while it was readable for all: ours lives as long as it
    # holds the lock. What is made anew nobody else has open.
    os.close(fd)
    path.unlink()
    fd = _open(path)
    _try_lock(fd)
    return fd


def _open(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if os.fstat(fd).st_uid == os.geteuid():
        # Whoever can read it can lock it.
        os.fchmod(fd, 0o600)
    return fd


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
