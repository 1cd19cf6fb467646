"""The standard streams as a command finds them: closed, full or hung up.

What cannot be written has an exit code of its own, so that it never looks like a verdict
of ``kdumphpd audit``.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

from kdumphpd.errors import OutputError
from kdumphpd.printable import printable

_NEWLINE = "\n"


def fill_in() -> None:
    """Open ``/dev/null`` in the place of standard streams that are closed.

    Otherwise the next file that is opened becomes standard output. Writing to a standard
    output that was closed still fails.
    """
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free is this one: those below it are open by now.
            os.open(os.devnull, flags)
    sys.stdout = sys.stdout or _stream(1)
    sys.stderr = sys.stderr or _stream(2)


def write(text: str) -> None:
    """Write ``text`` and a newline to standard output, and see them through.

    Raises:
        OutputError: they did not get there.
    """
    try:
        _write(sys.stdout, text)
    except (OSError, ValueError) as error:  # ValueError: closed by this process
        _give_up_stdout()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(
            f"standard output: {reason}",
            "what there is to say is lost, so run it again with output to a place that takes it",
            hung_up=isinstance(error, BrokenPipeError),
        ) from error


def complain(text: str) -> None:
    """Write ``text`` and a newline to standard error, if that takes them."""
    # The exit code says the same, and there is nowhere else to say more.
    with contextlib.suppress(OSError, ValueError):
        _write(sys.stderr, text)


def _stream(fd: int) -> TextIO:
    return open(fd, "w", encoding="utf-8", closefd=False)


def _write(stream: TextIO, text: str) -> None:
    shown = f"{printable(text, keep=_NEWLINE)}{_NEWLINE}"
    encoding = stream.encoding or "utf-8"
    stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _give_up_stdout() -> None:
    """Have what is left in the buffer go nowhere: the interpreter would try it once more."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
