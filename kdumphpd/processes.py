"""Runs other programs: with a time limit, their last line kept, nothing of theirs left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdumphpd.machine.files import Root

#: What systemd gives its services; no variable that was set for us reaches another program.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"}
#: It is there where systemd is the service manager: sd_booted(3).
SYSTEMD = "/run/systemd/system"
#: In which a unit ends that was told to; then as long again for the manager's answer.
STOP_SECONDS = 5.0
_TAIL_BYTES = 4096
_MAX_HUNTS = 100
# In the environment of all that one run started.
_MARK = "KDUMPHPD_RUN"


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        status: its exit status, negative for the signal that ended it; None if it took
            too long.
        output: the end of its standard output.
        errors: the end of its standard error.
    """

    status: int | None
    output: str
    errors: str

    @property
    def last_line(self) -> str:
        """The last line that it printed, on standard error if it printed any there."""
        return last_line(self.errors) or last_line(self.output)


def run(command: Sequence[str], limit_seconds: float, *, to_the_last: bool = False) -> Finished:
    """Run ``command`` to its end, or to the end of its time.

    What it left in the background is killed with its process group.

    Args:
        command: the program by its name or path, and its arguments.
        limit_seconds: how long it may take.
        to_the_last: kill what left its process group, too: other people's code that runs
            as a child of ours, and not as a unit, whose cgroup systemd ends as a whole.

    Raises:
        OSError: it cannot be started.
    """
    mark = f"{_MARK}={os.getpid()}-{time.monotonic_ns()}" if to_the_last else ""
    # Files and not pipes: a child that outlives the command cannot keep us waiting.
    with _memory("output") as output, _memory("errors") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=ENVIRONMENT | dict([mark.split("=")] if mark else ()),
            cwd="/",
            start_new_session=True,
        )
        try:
            status = _wait(process, limit_seconds)
        finally:
            if mark:
                _kill_marked(mark.encode())
        return Finished(status, _tail(output), _tail(errors))


def has_systemd(root: Root) -> bool:
    """Whether systemd is the service manager of the host under ``root``."""
    return root.exists(SYSTEMD)


def as_unit(
    command: Sequence[str], unit: str, description: str, limit_seconds: float, *properties: str
) -> tuple[str, ...]:
    """The command that runs ``command`` as a transient unit, and waits for its end.

    As a child of ours it would be in our unit's sandbox. As a unit it has what the host's
    own services have, its whole cgroup ends with it, and it goes on if we are killed.

    Not by --wait and --pipe: these need a message bus, and a job's end does not (the
    manager's own socket is enough). So the unit is a oneshot, whose start is its run.

    Args:
        command: the program by its name or path, and its arguments.
        unit: name of the unit.
        description: of the unit, for systemctl.
        limit_seconds: TimeoutStartSec=.
        properties: more settings of the unit, ``Name=value``.
    """
    settings = (
        f"TimeoutStartSec={limit_seconds:g}",
        f"TimeoutStopSec={STOP_SECONDS:g}",
        *properties,
    )
    return (
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit={unit}",
        f"--description={description}",
        "--service-type=oneshot",
        *(f"--property={one}" for one in settings),
        "--",
        command[0],
        # It replaces variables as in ExecStart=.
        *(word.replace("$", "$$") for word in command[1:]),
    )


def unit_seconds(limit_seconds: float) -> float:
    """How long the command of `as_unit` takes at most."""
    return limit_seconds + 2 * STOP_SECONDS


def last_line(text: str) -> str:
    """The last line of ``text`` that is not empty, printable; empty if there is none."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return "".join(char if char.isprintable() else "?" for char in lines[-1]) if lines else ""


def _wait(process: subprocess.Popen[bytes], limit_seconds: float) -> int | None:
    try:
        return process.wait(limit_seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _kill_marked(mark: bytes) -> None:
    """Kill every process with ``mark`` in its environment.

    A daemon has a session of its own and init for a parent (setsid --fork), so neither of
    the two leads to it. What it was started with stays with it: the environment. Looked for
    again until none is found, as one may be about to fork.
    """
    for _ in range(_MAX_HUNTS):
        found = [
            pid
            for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))
            if _has_mark(pid, mark)
        ]
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return


def _has_mark(pid: int, mark: bytes) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        # It has ended, or its environment is closed to us.
        return False
    return mark in environment.split(b"\0")


def _tail(fd: int) -> str:
    size = os.fstat(fd).st_size
    return os.pread(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode("utf-8", "replace")


@contextlib.contextmanager
def _memory(name: str) -> Iterator[int]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
