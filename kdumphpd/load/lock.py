"""One kdumphpd at a time: the lock that the daemon and manual loads share."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from kdumphpd.errors import BusyError, PermissionMissingError
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
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise PermissionMissingError(f"{path}: {error.strerror}", "run kdumphpd as root") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 16, 0).decode("ascii", "replace").strip() or "unknown"
            raise BusyError(
                f"another kdumphpd is running (pid {holder})",
                "let it do the work: systemctl reload kdumphpd, or stop it first",
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
