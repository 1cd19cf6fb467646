"""kdump's own lock, held around each of our loads.

kdumpctl locks a file with flock(2) for as long as it runs (single_instance_lock),
so that no two of them load at once. While we hold it, kdumpctl waits, and the
other way round.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kdumphpd.errors import BusyError, KdumphpdError, PermissionMissingError
from kdumphpd.machine.files import Root

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
    """Open the lock; None if it is not there and cannot be made: nobody holds it then."""
    # For reading: whoever watches the file for a kdumpctl that ends, and closes
    # it after writing (us among them), is not woken by us.
    try:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        # No directory, or one that is read-only for us: kdump has never run here.
        if error.errno in (errno.ENOENT, errno.EROFS):
            return None
        raise PermissionMissingError(
            f"kdump's lock {path}: {error.strerror}",
            "kdumphpd must be able to open it, and to make it in that directory",
        ) from error


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
            left = end - clock()
            if left <= 0:
                break
            sleep(min(_STEP_SECONDS, left))
        else:
            return
    holder = _holder(fd, root)
    who = f"process {holder}" if holder else "another process"
    raise BusyError(
        f"kdump's lock {path} has been held by {who} for more than {limit_seconds:g} s",
        "wait until kdumpctl is through, or end that process if it hangs",
    )


def _holder(fd: int, root: Root) -> int | None:
    """Who holds the lock, as ``/proc/locks`` says: "1: FLOCK ADVISORY WRITE pid maj:min:ino"."""
    inode = os.fstat(fd).st_ino
    try:
        lines = root.read_text("/proc/locks").splitlines()
    except KdumphpdError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK" or not fields[4].isdecimal():
            continue
        if fields[5].rpartition(":")[2] == str(inode):
            return int(fields[4])
    return None
