"""A pyudev-like monitor that works on a real file descriptor.

``emit`` puts a uevent on one end of a socket pair, ``poll`` takes it from
the other, so that a selectors loop sees what it would see of netlink.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class FakeDevice:
    action: str | None
    subsystem: str | None
    sys_name: str
    sequence_number: int


class FakeMonitor:
    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reader.setblocking(False)
        self._seqnum = 0

    def emit(self, action: str, name: str, subsystem: str = "memory") -> None:
        self._seqnum += 1
        self._writer.send(json.dumps([action, subsystem, name, self._seqnum]).encode())

    def overrun(self) -> None:
        """Have the next poll fail as netlink does after it dropped a uevent."""
        self._writer.send(b"")

    def fileno(self) -> int:
        return self._reader.fileno()

    def poll(self, timeout: float | None = None) -> FakeDevice | None:
        assert timeout == 0, "the daemon must never block here"
        try:
            message = self._reader.recv(4096)
        except BlockingIOError:
            return None
        if not message:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return FakeDevice(*json.loads(message))

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
