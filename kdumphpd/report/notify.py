"""What the service manager is told: sd_notify(3) and its watchdog."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping


def _systemd_notify(state: str) -> bool:
    from systemd.daemon import notify  # noqa: PLC0415

    return bool(notify(state))


def _monotonic_usec() -> int:
    return time.monotonic_ns() // 1000


class Notifier:
    """Sends states to NOTIFY_SOCKET; does nothing where there is none.

    Args:
        send: takes a state, ``systemd.daemon.notify`` in production.
        environ: where WATCHDOG_USEC and WATCHDOG_PID are.
        clock: microseconds of CLOCK_MONOTONIC.
    """

    def __init__(
        self,
        send: Callable[[str], bool] = _systemd_notify,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], int] = _monotonic_usec,
    ) -> None:
        self._send = send
        self._clock = clock
        self._shown = ""
        limit = watchdog_usec(environ, os.getpid())
        self._watchdog_interval = None if limit is None else limit / 1e6

    @property
    def watchdog_interval(self) -> float | None:
        """The watchdog's time limit in seconds, None without one; ping at half of it."""
        return self._watchdog_interval

    def ready(self) -> bool:
        """Start-up or reload is complete."""
        return self._notify("READY=1")

    def status(self, status: str) -> bool:
        """Set the line that ``systemctl status`` shows; sent only when it changes."""
        # A newline would begin another assignment.
        line = " ".join(status.split())
        if line == self._shown:
            return True
        sent = self._notify(f"STATUS={line}")
        if sent:
            self._shown = line
        return sent

    def reloading(self) -> bool:
        """A reload begins.

        Type=notify-reload wants the time with it, to tell this reload's
        READY=1 from an earlier one (systemd 253).
        """
        return self._notify("RELOADING=1", f"MONOTONIC_USEC={self._clock()}")

    def stopping(self) -> bool:
        """The daemon ends."""
        return self._notify("STOPPING=1")

    def watchdog(self) -> bool:
        """The daemon is alive."""
        return self._notify("WATCHDOG=1")

    def _notify(self, *states: str) -> bool:
        try:
            return self._send("\n".join(states))
        except OSError:
            # The manager is being re-executed, or gone. Whether the image is
            # current does not depend on it.
            return False


def watchdog_usec(environ: Mapping[str, str], pid: int) -> int | None:
    """Give the watchdog's time limit in microseconds; ping at half of it.

    As sd_watchdog_enabled(3): None without WATCHDOG_USEC, or if WATCHDOG_PID
    is another process.
    """
    limit = _positive(environ.get("WATCHDOG_USEC", ""))
    meant_for = environ.get("WATCHDOG_PID")
    if meant_for is not None and _positive(meant_for) != pid:
        return None
    return limit


def _positive(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        return None
    return int(text) or None
