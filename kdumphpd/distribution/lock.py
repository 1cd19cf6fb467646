"""kdump's own lock, held around each of our loads.

kdumpctl locks a file with flock(2) for as long as it runs (single_instance_lock),
so that no two of them load at once. While we hold it, kdumpctl waits, and the
other way round.

Whoever may read a file may lock it, and the file may lie where everybody can make files
(/run/lock on Debian, /var/crash on Ubuntu). So only root's own regular file is a lock, it is
closed to others, and another user who got hold of it before is passed over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kdumphpd.errors import BusyError, KdumphpdError, PermissionMissingError
from kdumphpd.machine import flocks, trust
from kdumphpd.machine.files import Root
from kdumphpd.machine.trust import DistrustError, NotRegularError

#: ``kdumpctl status`` and ``reload`` are through by then; rebuilding an initrd takes
#: minutes, and the end of that wakes us (`kdumphpd.distribution.watch`).
LIMIT_SECONDS = 10.0
_STEP_SECONDS = 0.05


@contextlib.contextmanager
def hold(
    path: Path | None,
    root: Root,
    limit_seconds: float = LIMIT_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the lock on ``path``; None is no lock at all.

    Args:
        path: the lock file; it is made if it is not there.
        root: the host, to say who holds it.
        limit_seconds: how long to wait; 0 tries once.
        clock: seconds, for the limit.
        sleep: waits between two tries: flock(2) itself knows no time limit.

    Raises:
        BusyError: somebody else held it all the time.
        PermissionMissingError: the file cannot be opened.
    """
    if path is None:
        yield
        return
    fd = _open(path)
    if fd is None:
        yield
        return
    try:
        _take(fd, path, root, limit_seconds, clock, sleep)
        yield
    finally:
        os.close(fd)


class KdumpLock:
    """The lock of one host's kdump, as our loads take it.

    Args:
        path: the lock file; None is no lock at all.
        root: the host.
    """

    def __init__(self, path: Path | None, root: Root) -> None:
        self._path = path
        self._root = root
        self._held = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self, limit_seconds: float = LIMIT_SECONDS) -> Iterator[None]:
        """Hold it to the end of the block, or until `let_go`; errors as `hold`."""
        with self._held:
            self._held.enter_context(hold(self._path, self._root, limit_seconds))
            yield

    def let_go(self) -> None:
        """Give it up: kdump's own command, which we are about to run, takes it."""
        self._held.close()


def is_held(path: Path | None, root: Root) -> bool:
    """Whether somebody else holds the lock on ``path`` now."""
    try:
        with hold(path, root, limit_seconds=0):
            return False
    except BusyError:
        return True
    except KdumphpdError:
        return False


def _open(path: Path) -> int | None:
    """Open the lock; None if there is none: not there, not root's, or no file."""
    # For reading: whoever watches the file for a kdumpctl that ends, and closes
    # it after writing (us among them), is not woken by us.
    try:
        fd = _open_or_make(path)
    except (DistrustError, NotRegularError):
        return None
    except OSError as error:
        # No directory, or one that is read-only for us: kdump has never run here.
        if error.errno in (errno.ENOENT, errno.EROFS):
            return None
        raise PermissionMissingError(
            f"kdump's lock {path}: {error.strerror}",
            "kdumphpd must be able to open it, and to make it in that directory",
        ) from error
    status = os.fstat(fd)
    if stat.S_IMODE(status.st_mode) & 0o077 and status.st_uid == os.geteuid():
        with contextlib.suppress(OSError):
            os.fchmod(fd, 0o600)
    return fd


def _open_or_make(path: Path) -> int:
    # Not O_CREAT on one that is there: fs.protected_regular refuses that for another
    # user's file in a directory for all.
    try:
        return trust.open_regular(path, follow=False, check_owner=True)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _take(
    fd: int,
    path: Path,
    root: Root,
    limit_seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    end = clock() + limit_seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = flocks.holder(fd, root)
            if holder is not None and holder.is_another_user:
                return
            left = end - clock()
            if left <= 0:
                break
            sleep(min(_STEP_SECONDS, left))
        else:
            return
    who = f"process {holder.pid}" if holder else "another process"
    raise BusyError(
        f"kdump's lock {path} has been held by {who} for more than {limit_seconds:g} s",
        "wait until kdumpctl is through, or end that process if it hangs",
    )
