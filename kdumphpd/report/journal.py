"""Sends records to the journal, or writes them to a terminal.

Through structlog, with a logger of our own: its global configuration is left
alone, so whoever uses this package as a library keeps theirs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

import structlog

from kdumphpd.report.fields import Details, journal_fields, terminal_text
from kdumphpd.report.records import Kind, Priority

# Where sd_journal_sendv(3) sends to; it says nothing when nobody listens.
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")

# Gets lines of the form FIELD=value, as systemd.journal.sendv() does.
Send = Callable[..., object]
Sink = Callable[[Any, str, MutableMapping[str, Any]], Any]


def goes_to_journal(
    stream: TextIO, environ: Mapping[str, str], socket: Path = JOURNAL_SOCKET
) -> bool:
    """Whether ``stream`` is connected to the journal, and the journal is there.

    JOURNAL_STREAM is the device and inode number of the stream that the
    service manager connected (systemd.exec(5)); a child may have redirected
    it since, so the numbers must be compared.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # ValueError: closed, or not a real file
        return False
    connected = environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return connected and socket.exists()


class JournalSink:
    """The last structlog processor where the journal is: sends the fields.

    Args:
        send: ``systemd.journal.sendv``.
        fallback: takes the record when the journal refuses it.
    """

    def __init__(self, send: Send, fallback: Sink) -> None:
        self._send = send
        self._fallback = fallback

    def __call__(
        self, logger: Any, method_name: str, event_dict: MutableMapping[str, Any]
    ) -> NoReturn:
        """Send, and end the chain: nothing is left for the wrapped logger."""
        entry = journal_fields(**_unpacked(event_dict))
        try:
            self._send(*(f"{name}={value}" for name, value in entry.items()))
        except OSError:
            self._fallback(logger, method_name, event_dict)
        raise structlog.DropEvent


class TerminalSink:
    """The last structlog processor elsewhere: readable lines on ``stream``.

    Args:
        stream: where they go.
        now: the time to begin a record with, which the journal adds itself.
    """

    def __init__(self, stream: TextIO, now: Callable[[], str] = str) -> None:
        self._stream = stream
        self._now = now

    def __call__(
        self, logger: Any, method_name: str, event_dict: MutableMapping[str, Any]
    ) -> NoReturn:
        """Write, and end the chain."""
        try:
            record = terminal_text(**_unpacked(event_dict), time=self._now())
            self._stream.write(record)
            self._stream.flush()
        except (OSError, ValueError):
            # A closed terminal must not stop the daemon from keeping the
            # image current, and there is nowhere left to say so.
            pass
        raise structlog.DropEvent


def _unpacked(event_dict: MutableMapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": event_dict["kind"],
        "message": event_dict["event"],
        "priority": event_dict["priority"],
        "details": event_dict["details"],
    }


def open_reporter() -> Reporter:
    """Report to where stderr leads: the journal or a terminal."""
    return Reporter(build_sink(sys.stderr, os.environ))


def build_sink(stream: TextIO, environ: Mapping[str, str]) -> Sink:
    """Choose the journal or the terminal."""
    if not goes_to_journal(stream, environ):
        return TerminalSink(stream, _local_time)
    # Only here: a terminal needs no libsystemd.
    from systemd.journal import sendv  # noqa: PLC0415

    return JournalSink(sendv, TerminalSink(stream))


def _local_time() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


class Reporter:
    """Says what happens, one record at a time.

    Args:
        sink: the last structlog processor, from :func:`build_sink`.
    """

    def __init__(self, sink: Sink) -> None:
        self._logger = structlog.wrap_logger(
            structlog.ReturnLogger(),
            processors=[sink],
            wrapper_class=structlog.BoundLogger,
            context_class=dict,
            cache_logger_on_first_use=True,
        )

    def record(
        self,
        kind: Kind,
        message: str,
        *,
        priority: Priority | None = None,
        backend: str | None = None,
        generation: int | None = None,
        armed: bool | None = None,
        verdict: str | None = None,
        change: str | None = None,
        cpus: int | None = None,
        memory_bytes: int | None = None,
        ranges: int | None = None,
        uevents: int | None = None,
        unarmed_usec: int | None = None,
        latency_usec: int | None = None,
    ) -> None:
        """Send one record of ``kind``; ``message`` is one sentence for people.

        The priority is the kind's own unless given; the other fields are
        those of :class:`~kdumphpd.report.fields.Details`.
        """
        details = Details(
            backend=backend,
            generation=generation,
            armed=armed,
            verdict=verdict,
            change=change,
            cpus=cpus,
            memory_bytes=memory_bytes,
            ranges=ranges,
            uevents=uevents,
            unarmed_usec=unarmed_usec,
            latency_usec=latency_usec,
        )
        chosen = kind.priority if priority is None else priority
        self._logger.msg(message, kind=kind, priority=chosen, details=details)


class OnceUntilChanged:
    """Remembers what was said last, so that it is said once.

    A problem that every audit meets again is one record, not one an hour;
    when it changes, or goes and comes back, it is news again.
    """

    def __init__(self) -> None:
        self._said: object = None

    def is_new(self, state: object) -> bool:
        """Whether ``state`` is other than the last one; remembers it. Never None."""
        known = self._said == state
        self._said = state
        return not known

    def over(self) -> bool:
        """Forget; whether there was something to forget."""
        said, self._said = self._said, None
        return said is not None
