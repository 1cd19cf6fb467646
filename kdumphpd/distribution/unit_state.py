"""Whether kdump's service runs, asked once in a while of systemctl(1).

Only where that decides something (`kdumphpd.distribution.adoption`): our own load
lost the image, or the kernel does not show what is armed. For root, systemctl needs
no message bus: it talks to the manager's own socket.
"""

from __future__ import annotations

import subprocess

_LIMIT_SECONDS = 10
_RUNNING = ("active", "activating", "reloading")
_STOPPED = ("inactive", "failed", "deactivating")


def is_running(unit: str) -> bool | None:
    """Whether ``unit`` is active; None if that cannot be found out."""
    try:
        done = subprocess.run(
            ("systemctl", "is-active", unit),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=_LIMIT_SECONDS,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    state = done.stdout.strip()
    if state in _RUNNING:
        return True
    return False if state in _STOPPED else None
