"""Why a verdict is not complete, where that takes another look, and what to do about it.

Whoever runs the audit has one host in front of them: the lines name its own commands.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from kdumphpd.audit.compare import Verdict
from kdumphpd.distribution import auto
from kdumphpd.distribution.auto import Kdump
from kdumphpd.distribution.unit_state import UnitState
from kdumphpd.errors import KdumphpdError
from kdumphpd.load import duty
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.files import Root

#: A reason, and what to do about it.
Advice = tuple[str, str]
StateOf = Callable[[str], UnitState]

_CRASHKERNEL = re.compile(r"(?:^|\s)(crashkernel=\S+)")
_LOAD = "systemctl restart kdumphpd, or kdumphpd load without the service"


def unknown_state(unit: str) -> UnitState:
    """Nobody is asked."""
    return UnitState.UNKNOWN


def unloaded(root: Root, state_of: StateOf) -> Advice:
    """Why nothing is loaded, as far as the host shows it, and what loads something.

    Args:
        root: the host.
        state_of: gives the state of a unit.
    """
    try:
        return _unloaded(root, state_of)
    except KdumphpdError as error:
        return (f"why is not known: {error.problem}", of_error(error))


def of_error(error: KdumphpdError) -> str:
    """What to do where the host cannot be read."""
    return error.remedy or "see what the kernel says (dmesg), and try again"


def encrypted() -> str:
    """What to do where memory reads back as noise."""
    return "try with a crash of this host what kdump saves; SME alone ends with mem_encrypt=off"


def load_again(root: Root, manager: str | None, verdict: Verdict) -> tuple[str, ...]:
    """What to do about an image that is stale or damaged, or that cannot be told.

    Args:
        root: the host.
        manager: who keeps it.
        verdict: what is the matter.
    """
    kdump = _kdump(root)
    again = kdump.restart if kdump else "load it again with the program that loaded it"
    if manager == "kdumphpd" and verdict is Verdict.STALE:
        return (
            "kdumphpd update, where its service does not run",
            "systemctl status kdumphpd, where it does: it mends this, or says why it cannot",
        )
    if manager == "kdumphpd":
        return (
            _LOAD,
            "if it comes again, find what writes to the memory of the crash kernel",
        )
    if verdict is Verdict.STALE:
        return (again, "systemctl enable --now kdumphpd keeps it current from then on")
    return (again,)


def _unloaded(root: Root, state_of: StateOf) -> Advice:
    if not reservations.can_load(root):
        return (
            "the running kernel cannot load one: it has no kexec_crash_loaded in sysfs",
            "boot a kernel with CONFIG_CRASH_DUMP, and CONFIG_KEXEC or CONFIG_KEXEC_FILE",
        )
    if reservations.size(root) == 0:
        return _unreserved(root)
    if duty.load_is_owed(root):
        return (
            "a load by kdumphpd failed or was cut off",
            f"{_LOAD}; journalctl -t kdumphpd -b says what failed",
        )
    kdump = _kdump(root)
    if kdump is None:
        return ("this host has no kdump that would load one", _LOAD)
    if duty.stop_was_seen(root):
        return (f"{kdump.name} was told to unload it", kdump.restart)
    return _of_unit(kdump, state_of(kdump.unit))


def _of_unit(kdump: Kdump, state: UnitState) -> Advice:
    unit, log = kdump.unit, f"journalctl -b -u {kdump.unit}"
    return {
        UnitState.FAILED: (f"{unit} has failed", f"{log} says why; then {kdump.restart}"),
        UnitState.STOPPED: (f"{unit} is not started", f"systemctl start {unit}"),
        UnitState.CHANGING: (f"{unit} starts or stops just now", "look again when it has"),
    }.get(
        state,
        (f"{unit} has loaded none, or somebody unloaded it", f"{kdump.restart}; {log}"),
    )


def _unreserved(root: Root) -> Advice:
    given = root.read_text("/proc/cmdline") if root.exists("/proc/cmdline") else ""
    found = _CRASHKERNEL.search(given)
    if found:
        return (
            f"{found[1][:60]} on the kernel command line reserved no memory",
            "journalctl -k -b -g crashkernel says why; ask for less, or for another place",
        )
    return (
        "no memory is reserved for a crash kernel",
        "add crashkernel=256M to the kernel command line and reboot",
    )


def _kdump(root: Root) -> Kdump | None:
    try:
        return auto.find(root)
    except KdumphpdError:
        return None
