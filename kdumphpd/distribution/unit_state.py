"""What state kdump's service is in, asked of systemctl(1).

Only where that decides something (`kdumphpd.distribution.adoption`): nothing is loaded,
or an image of which it cannot be told whose it is. For root, systemctl needs no message
bus: it talks to the manager's own socket.
"""

from __future__ import annotations

import enum

from kdumphpd import processes

_LIMIT_SECONDS = 10


class UnitState(enum.Enum):
    """The state of a unit, as far as it matters here."""

    ACTIVE = "active"  # it has started, so its image ought to be loaded
    CHANGING = "changing"  # it starts or stops just now
    STOPPED = "stopped"  # somebody stopped it, or it was never started
    FAILED = "failed"
    UNKNOWN = "unknown"  # systemctl does not say


# ActiveState of a unit: org.freedesktop.systemd1(5). A reload is ended by kdumpctl's lock.
_STATES = {
    "active": UnitState.ACTIVE,
    "reloading": UnitState.ACTIVE,
    "activating": UnitState.CHANGING,
    "deactivating": UnitState.CHANGING,
    "inactive": UnitState.STOPPED,
    "failed": UnitState.FAILED,
}


def unit_state(unit: str) -> UnitState:
    """The state of ``unit``."""
    try:
        done = processes.run(("systemctl", "is-active", unit), _LIMIT_SECONDS)
    except OSError:
        return UnitState.UNKNOWN
    return _STATES.get(done.output.strip(), UnitState.UNKNOWN)
