"""One bash that asks a distribution's shell library, kept on a short leash.

Under systemd it is a unit of its own, and not a child of ours. Our unit's sandbox changes
the library's answer: with ``ProtectSystem=`` /boot is read-only, and kdump-lib.sh
(prepare_kdump_bootinfo) then names an initrd in /var/lib/kdump instead. A unit has what
kdump.service has, whoever asks: the daemon, ``plan`` or ``load``.

The library may print what it likes, leave children behind or hang: answer and messages go
to files, and all of it ends with the time limit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdumphpd import processes
from kdumphpd.errors import BusyError, PermissionMissingError
from kdumphpd.machine.files import Root

BASH = "/bin/bash"
#: Where the answer is written to; the unit sees it where we do.
_STATE = "/run/kdumphpd"
_PREFIX = "ask-"
#: An answer is a few KiB; ask-kdump-utils.sh sets the same limit.
_MAX_BYTES = 1 << 20
# systemd's own notices that the unit starts and ends would be most of the journal.
_QUIET = "LogLevelMax=notice"


@dataclass(frozen=True)
class Reply:
    """What came of a script.

    Attributes:
        values: what it answered, by name.
        last_message: the last line that it printed, empty if it printed none.
        timed_out: whether it was ended for taking too long.
    """

    values: dict[str, str]
    last_message: str
    timed_out: bool


def run(root: Root, script: Path, arguments: Sequence[str], limit_seconds: float) -> Reply:
    """Run ``script`` in bash.

    Args:
        root: the host.
        script: the file. ``$1`` is the file for its answer, ``name=value`` strings, each
            ended by a zero byte; ``$2`` the file for what it prints.
        arguments: ``$3`` and on.
        limit_seconds: how long it may take.

    Raises:
        OSError: bash cannot be started.
        BusyError: our own end came first, so nobody waits for the answer.
        PermissionMissingError: there is no place for the answer.
    """
    directory = _directory(root)
    try:
        answer, messages = directory / "answer", directory / "messages"
        command: tuple[str, ...] = (BASH, "--norc", "--noprofile", str(script))
        command += (str(answer), str(messages), *arguments)
        wait = limit_seconds
        managed = processes.has_systemd(root)
        if managed:
            command = processes.as_unit(
                command,
                f"kdumphpd-{directory.name}.service",
                "Asks kdump what it would load, for kdumphpd",
                limit_seconds,
                _QUIET,
            )
            wait = processes.unit_seconds(limit_seconds)
        began = time.monotonic()
        finished = processes.run(command, wait, to_the_last=not managed)
        took = time.monotonic() - began
        if finished.status == -signal.SIGTERM:
            # systemd stops our service, and this with it.
            raise BusyError("asking kdump was interrupted", "ask again")
        said = processes.last_line(_end(messages)) or finished.last_line
        late = finished.status is None or (finished.status != 0 and took >= limit_seconds)
        return Reply(parse_answer(_content(answer)), said, late)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def parse_answer(data: bytes) -> dict[str, str]:
    """Take ``name=value`` strings apart; what is not ended by a zero byte does not count."""
    values = {}
    for record in data.split(b"\0")[:-1]:
        name, separator, value = record.partition(b"=")
        if separator:
            values[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return values


def _directory(root: Root) -> Path:
    """A new directory for the answer; those that a killed process left are removed.

    Whoever asks holds kdump's lock, so no other question is under way.
    """
    state = root.path(_STATE)
    try:
        state.mkdir(mode=0o755, parents=True, exist_ok=True)
        for old in state.glob(f"{_PREFIX}*"):
            shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=state))
    except OSError as error:
        raise PermissionMissingError(
            f"{state}: {error.strerror}", "run kdumphpd as root, which asking kdump needs"
        ) from error


def _content(path: Path) -> bytes:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(_MAX_BYTES)
    return b""


def _end(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - 4096))
        return file.read(4096).decode("utf-8", "replace")
    return ""
