"""What records say about a look and about an audit."""

from __future__ import annotations

from dataclasses import replace

from kdumphpd.audit.audit import Audit
from kdumphpd.load.keeper import Look, State
from kdumphpd.machine.ranges import total
from kdumphpd.report.fields import Details
from kdumphpd.report.text import machine_summary


def look_details(look: Look) -> Details:
    """What every record about a look says."""
    machine = look.machine
    return Details(
        armed=look.state is not State.UNLOADED,
        cpus=len(machine.cpus),
        memory_bytes=total(machine.ram),
        ranges=len(machine.ram),
        change=str(look.change) if look.change and not look.change.empty else None,
    )


def audit_details(found: Audit) -> Details:
    """What every record about an audit says."""
    details = Details(armed=found.loaded, verdict=found.verdict.value)
    header = found.header
    if header is None:
        return details
    return replace(
        details,
        cpus=len(header.cpus),
        memory_bytes=total(header.memory),
        ranges=len(header.memory),
    )


def complete(look: Look) -> str:
    """The status of a host whose loaded header describes it."""
    return f"complete: {machine_summary(look.machine)}"


def counted(count: int, noun: str) -> str:
    """``1 uevent``, ``2 uevents``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def verdict_text(found: Audit) -> str:
    """An audit in a line: the verdict, and why."""
    return "; ".join((found.verdict.value, *found.reasons))
