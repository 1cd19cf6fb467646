"""Who holds a flock(2): one that another user took must not stop us.

Whoever may read a file may lock it, too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from kdumphpd.errors import KdumphpdError
from kdumphpd.machine.files import Root


@dataclass(frozen=True)
class Holder:
    """The process that took a lock, and the user that it really is; None if it has ended."""

    pid: int
    uid: int | None

    @property
    def is_another_user(self) -> bool:
        """Whether neither root nor whoever runs this took it.

        Of a process that has ended nothing is known: flock(1) takes kdump's lock for its
        caller, and ends.
        """
        return is_another_user(self.uid)


def is_another_user(uid: int | None) -> bool:
    """Whether that is neither root nor who runs this; of None nothing is known."""
    return uid not in (None, 0, os.getuid())


def holder(fd: int, root: Root) -> Holder | None:
    """Who holds the lock on an open file; None if that is not known.

    ``/proc/locks`` says: "1: FLOCK ADVISORY WRITE pid maj:min:inode start end", the device in
    hexadecimal (fs/locks.c, lock_get_status).
    """
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = root.read_text("/proc/locks").splitlines()
    except KdumphpdError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK" or not fields[4].isdecimal():
            continue
        if fields[5] == device:
            pid = int(fields[4])
            return Holder(pid, real_user(pid, root))
    return None


def real_user(pid: int, root: Root) -> int | None:
    """Who runs a process, whatever program it runs; None if it has ended."""
    # Not the owner of /proc/<pid>: that is root for a process that cannot be dumped,
    # which is for each process to choose (fs/proc/base.c, task_dump_owner).
    try:
        lines = root.read_text(f"/proc/{pid}/status").splitlines()
    except KdumphpdError:
        return None
    # "Uid:", real, effective, saved, file system
    return next((int(line.split()[1]) for line in lines if line.startswith("Uid:")), None)
