"""The fields of a record, as the journal and as a terminal show them.

The names are a contract (``KDUMPHPD_*``): monitoring filters by them, and
``kdumphpd status`` reads them back.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields

from kdumphpd.events.changes import size_text
from kdumphpd.printable import printable
from kdumphpd.report.records import Kind, Priority

WIDTH = 79

# Stands for a space at which no line is broken; printable, as what is not gets
# replaced, and in none of the phrases.
_GLUE = "\N{OPEN BOX}"

_LABELS = {
    Priority.CRIT: "CRITICAL: ",
    Priority.ERR: "error: ",
    Priority.WARNING: "warning: ",
}


@dataclass(frozen=True)
class Details:
    """What a record says besides its message; None where it says nothing.

    Attributes:
        backend: ``kernel``, ``delta``, ``full``, ``file`` or ``command``.
        generation: counts the headers that were loaded.
        armed: whether a crash kernel is loaded.
        verdict: the audit's, ``complete``, ``stale`` ...
        change: what hotplug changed, in words.
        cpus: CPUs that the header describes.
        memory_bytes: RAM that the header describes.
        ranges: RAM ranges in the header.
        uevents: uevents that led here.
        unarmed_usec: how long no crash kernel was loaded (the system call).
        latency_usec: first uevent to live header.
    """

    backend: str | None = None
    generation: int | None = None
    armed: bool | None = None
    verdict: str | None = None
    change: str | None = None
    cpus: int | None = None
    memory_bytes: int | None = None
    ranges: int | None = None
    uevents: int | None = None
    unarmed_usec: int | None = None
    latency_usec: int | None = None


def journal_fields(
    kind: Kind, message: str, priority: Priority, details: Details
) -> dict[str, str]:
    """Give the journal's fields; a flag is ``1`` or ``0`` as in sysfs."""
    named = {
        f"KDUMPHPD_{field.name.upper()}": _plain(value)
        for field in fields(details)
        if (value := getattr(details, field.name)) is not None
    }
    return {
        "MESSAGE": message,
        "MESSAGE_ID": kind.message_id,
        "PRIORITY": str(int(priority)),
        "SYSLOG_IDENTIFIER": "kdumphpd",
        "KDUMPHPD_EVENT": kind.event,
        **named,
    }


def details_of(entry: Mapping[str, str]) -> Details:
    """Read the fields of a journal entry back; what is malformed is left out."""
    return Details(
        backend=entry.get("KDUMPHPD_BACKEND"),
        generation=_number(entry, "GENERATION"),
        armed={"1": True, "0": False}.get(entry.get("KDUMPHPD_ARMED", "")),
        verdict=entry.get("KDUMPHPD_VERDICT"),
        change=entry.get("KDUMPHPD_CHANGE"),
        cpus=_number(entry, "CPUS"),
        memory_bytes=_number(entry, "MEMORY_BYTES"),
        ranges=_number(entry, "RANGES"),
        uevents=_number(entry, "UEVENTS"),
        unarmed_usec=_number(entry, "UNARMED_USEC"),
        latency_usec=_number(entry, "LATENCY_USEC"),
    )


def terminal_text(
    kind: Kind, message: str, priority: Priority, details: Details, time: str = ""
) -> str:
    """Lay a record out for 80 columns: the time, the message, then its details indented."""
    text = (
        f"{time}{' ' if time else ''}kdumphpd: {_LABELS.get(priority, '')}{kind.event}: {message}"
    )
    lines = _wrapped(text, "    ")
    # The message says the change already, or there is a line of its own for it.
    if details.change and details.change not in message:
        lines += _wrapped(f"    {details.change}", "    ")
    phrases = ", ".join(_glued(printable(phrase)) for phrase in _phrases(details))
    lines += [line.replace(_GLUE, " ") for line in _wrapped(f"    {phrases}", "    ")]
    return "\n".join(lines) + "\n"


def duration_text(usec: int) -> str:
    """Say a time in the unit in which it has one to three digits before the point."""
    for unit, name in ((1_000_000, "s"), (1_000, "ms")):
        if usec >= unit:
            return f"{usec / unit:.1f} {name}"
    return f"{usec} us"


def _phrases(details: Details) -> list[str]:
    texts = {
        "backend": f"backend {details.backend}",
        "generation": f"generation {details.generation}",
        "armed": "armed" if details.armed else "NOT ARMED",
        "verdict": f"verdict {details.verdict}",
        "cpus": _counted(details.cpus, "CPU"),
        "memory_bytes": size_text(details.memory_bytes or 0),
        "ranges": _counted(details.ranges, "range"),
        "uevents": _counted(details.uevents, "uevent"),
        "unarmed_usec": f"not armed for {duration_text(details.unarmed_usec or 0)}",
        "latency_usec": f"live {duration_text(details.latency_usec or 0)} after the first uevent",
    }
    return [text for name, text in texts.items() if getattr(details, name) is not None]


def _counted(count: int | None, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _plain(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _number(entry: Mapping[str, str], name: str) -> int | None:
    text = entry.get(f"KDUMPHPD_{name}", "")
    # isdecimal() alone takes other scripts' digits, and so does int().
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def _glued(phrase: str) -> str:
    """Keep a short phrase on one line."""
    return phrase.replace(" ", _GLUE) if len(phrase) <= WIDTH // 2 else phrase


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        printable(text),
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
