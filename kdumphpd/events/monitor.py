"""Uevents of the kernel, for CPUs and memory blocks, as they arrive.

The edge to netlink and nothing more: what an event means is decided in
:mod:`kdumphpd.events.burst`.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from typing import Protocol

import pyudev

SUBSYSTEMS = ("cpu", "memory")

# A DIMM of 32 GiB sends 512 uevents of under 1 KiB each within milliseconds;
# the kernel charges about twice that to the buffer. Room for 1 TiB in one go.
RECEIVE_BUFFER_BYTES = 32 << 20

# A storm must not keep the daemon from its watchdog: what is left after so
# many events stays readable and comes with the next drain().
MAX_UEVENTS_PER_DRAIN = 4096


@dataclass(frozen=True)
class Uevent:
    """One uevent: ``add``, ``remove``, ``online`` ... of ``cpu3`` or ``memory64``."""

    action: str
    subsystem: str
    name: str
    seqnum: int


@dataclass(frozen=True)
class Drained:
    """What was waiting, oldest first; ``lost`` if the kernel dropped some."""

    uevents: tuple[Uevent, ...]
    lost: bool


class Device(Protocol):
    """The part of ``pyudev.Device`` that is read."""

    @property
    def action(self) -> str | None: ...  # noqa: D102
    @property
    def subsystem(self) -> str | None: ...  # noqa: D102
    @property
    def sys_name(self) -> str: ...  # noqa: D102
    @property
    def sequence_number(self) -> int: ...  # noqa: D102


class Monitor(Protocol):
    """The part of ``pyudev.Monitor`` that is used."""

    def fileno(self) -> int: ...  # noqa: D102
    def poll(self, timeout: float | None = None) -> Device | None: ...  # noqa: D102


class UeventSource(Protocol):
    """What the daemon needs: a descriptor to select on, and what waits there."""

    def fileno(self) -> int: ...  # noqa: D102
    def drain(self) -> Drained: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


def kernel_monitor(receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES) -> Monitor:
    """Open a started monitor of the kernel's own uevents (not udevd's relay).

    Args:
        receive_buffer_bytes: wished size of the socket's receive buffer.

    Raises:
        OSError: the netlink socket cannot be opened.
    """
    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
    for subsystem in SUBSYSTEMS:
        monitor.filter_by(subsystem)
    _enlarge(monitor, receive_buffer_bytes)
    monitor.start()
    return monitor  # type: ignore[no-any-return]


def _enlarge(monitor: pyudev.Monitor, size: int) -> None:
    """Set the receive buffer, or as much of it as net.core.rmem_max allows.

    More than rmem_max takes CAP_NET_ADMIN, which the service does not ask
    for: a smaller buffer loses events sooner, and lost events are noticed.
    """
    try:
        monitor.set_receive_buffer_size(size)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        with socket.socket(fileno=os.dup(monitor.fileno())) as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


class UeventMonitor:
    """Reads a monitor until it is empty, and knows whether events were lost.

    Args:
        monitor: a started monitor, :func:`kernel_monitor` in production.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._socket = socket.socket(fileno=os.dup(monitor.fileno()))

    def fileno(self) -> int:
        """Descriptor to select on for reading; do not read from it."""
        return self._monitor.fileno()

    def close(self) -> None:
        """Give up the descriptors; libudev's goes with the last reference."""
        self._socket.close()
        del self._monitor

    def drain(self) -> Drained:
        """Take what is waiting, without blocking.

        A dropped event shows as ENOBUFS once, after which the kernel drops
        more until the queue has been empty (``NETLINK_S_CONGESTED``,
        net/netlink/af_netlink.c). So whoever sees ``lost`` has to look at the
        machine itself, after this call and not before.

        Raises:
            OSError: anything but ENOBUFS; the socket is of no more use.
        """
        uevents: list[Uevent] = []
        lost = False
        for _ in range(MAX_UEVENTS_PER_DRAIN):
            # pyudev's poll() raises an OSError without errno on POLLERR and
            # leaves the error in place, so it would raise for ever: reading
            # SO_ERROR first both names the error and clears it.
            lost |= self._take_socket_error()
            try:
                device = self._monitor.poll(0)
            except OSError as error:
                overrun = error.errno == errno.ENOBUFS or (
                    error.errno is None and self._take_socket_error()
                )
                if not overrun:
                    raise
                lost = True
                continue
            if device is None:
                break
            uevents.append(_uevent(device))
        return Drained(tuple(uevents), lost)

    def _take_socket_error(self) -> bool:
        """Read and clear the socket's pending error; True for ENOBUFS."""
        pending = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if pending not in (0, errno.ENOBUFS):
            raise OSError(pending, f"uevent socket: {os.strerror(pending)}")
        return pending == errno.ENOBUFS


def _uevent(device: Device) -> Uevent:
    return Uevent(
        action=device.action or "",
        subsystem=device.subsystem or "",
        name=device.sys_name,
        seqnum=device.sequence_number,
    )
