"""The ``command`` rung: have the host's own tool load its image, and read back what it did.

Under systemd the command is a unit of its own. As a child of ours it would be in our
unit's sandbox, which leaves kdumpctl no room to make an initrd, and whose system call
filter may be the very reason why we cannot load ourselves. It also goes on if we are
killed in the middle, when it may have unloaded and not loaded yet; kdump's lock has our
next look wait for its end.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace

from kdumphpd.audit.foreign import live_headers
from kdumphpd.audit.read_back import FoundHeader
from kdumphpd.errors import KdumphpdError, LoadError
from kdumphpd.load.file import header_problem, remember
from kdumphpd.load.loader import Loaded, NotDoneError
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.ranges import Range
from kdumphpd.machine.snapshot import Machine, MachineReader

#: With the time that asking kdump may take, shorter than the unit's WatchdogSec=.
LIMIT_SECONDS = 60.0
#: In which a unit ends that was told to; then as long again for the manager's answer.
_STOP_SECONDS = 5.0
UNIT = "kdumphpd-command.service"
#: It is there where systemd is the service manager: sd_booted(3).
_SYSTEMD = "/run/systemd/system"
#: Where a distribution's kdump is, and what makes it load again.
_DEFAULTS = (
    ("/usr/bin/kdumpctl", "kdumpctl reload"),
    ("/usr/sbin/kdump-config", "kdump-config reload"),
)
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"}
_TAIL_BYTES = 4096


def command_of(root: Root, configured: str | None) -> tuple[str, ...]:
    """The command and its arguments; empty for none.

    Args:
        root: the host.
        configured: ``[update] command``; None for the host's own kdump, if it has one we know.
    """
    if configured is None:
        found = (command for path, command in _DEFAULTS if root.exists(path))
        configured = next(found, "")
    return tuple(shlex.split(configured))


def as_unit(command: tuple[str, ...], limit_seconds: float) -> tuple[str, ...]:
    """The command that runs ``command`` as a transient unit, and waits for its end.

    Not by --wait and --pipe: these need a message bus, and a job's end does not (the
    manager's own socket is enough). So the unit is a oneshot, whose start is its run, and
    its output is in the journal.
    """
    return (
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit={UNIT}",
        "--description=Loads the crash kernel for kdumphpd",
        "--service-type=oneshot",
        f"--property=TimeoutStartSec={limit_seconds:g}",
        f"--property=TimeoutStopSec={_STOP_SECONDS:g}",
        "--",
        command[0],
        # It replaces variables as in ExecStart=.
        *(word.replace("$", "$$") for word in command[1:]),
    )


class CommandLoader:
    """Runs one command that loads an image.

    How long nothing was loaded meanwhile is not known, so all of its time counts, and
    the next one waits accordingly.

    Args:
        root: the host.
        reader: reads the machine.
        command: the command and its arguments.
        clock: microseconds of CLOCK_MONOTONIC.
        limit_seconds: how long it may take.
    """

    def __init__(
        self,
        root: Root,
        reader: MachineReader,
        command: tuple[str, ...],
        clock: Callable[[], int],
        limit_seconds: float = LIMIT_SECONDS,
    ) -> None:
        self._root = root
        self._reader = reader
        self._command = command
        self._clock = clock
        self._limit = limit_seconds

    def load(self, machine: Machine) -> Loaded:
        """Run it, read back and remember.

        Raises:
            NotDoneError: it cannot be started.
            LoadError: it failed, took too long or left nothing loaded.
        """
        began = self._clock()
        self._run()
        live_at = self._clock()
        if not reservations.crash_loaded(self._root):
            raise LoadError(f"{shlex.join(self._command)} left nothing loaded")
        usec = live_at - began
        try:
            found = self._live_header()
        except KdumphpdError as error:
            return Loaded("command", None, usec, live_at, problem=str(error))
        return self._remembered(machine, found, usec, live_at)

    def take(self, machine: Machine) -> Loaded | None:
        """What is loaded, remembered as if the command had just loaded it; nothing is run.

        None if it is not complete.

        Raises:
            KdumphpdError: that cannot be told.
        """
        found = self._live_header()
        if header_problem(found, machine, self._reader):
            return None
        return replace(self._remembered(machine, found, 0, self._clock()), kept=True)

    def _live_header(self) -> FoundHeader:
        with PhysicalMemory(self._root) as memory:
            found = live_headers(self._root, memory, self._reservation())
        if len({one.content for one in found}) != 1:
            text = f"{len(found)} headers are in memory, which one is live is not known"
            raise LoadError(text)
        return found[0]

    def _remembered(self, machine: Machine, found: FoundHeader, usec: int, live_at: int) -> Loaded:
        image, problem = remember(self._root, self._reservation(), "command", found, "")
        problem = header_problem(found, machine, self._reader) or problem
        return Loaded("command", None, usec, live_at, image, problem)

    def _reservation(self) -> Range:
        return reservations.find(self._root, self._reader.resources()).main

    def _run(self) -> None:
        shown = shlex.join(self._command)
        command, limit = self._command, self._limit
        managed = self._root.exists(_SYSTEMD)
        if managed:
            command, limit = as_unit(command, limit), limit + 2 * _STOP_SECONDS
        # A file and not a pipe: a child that outlives the command cannot keep us waiting.
        with open(os.memfd_create("output", os.MFD_CLOEXEC), "r+b") as output:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=_ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                remedy = "correct [update] command"
                raise NotDoneError(f"{command[0]}: {error.strerror}", remedy) from error
            status = _wait(process, limit)
            said = _last_line(output.fileno())
        if status is None:
            raise LoadError(f"{shown} took longer than {limit:g} s")
        if status != 0 and managed:
            # systemd-run is quiet about a unit that failed: what it says is its own trouble.
            problem = f"{shown} failed or took longer than {self._limit:g} s"
            raise LoadError(problem, said or f"journalctl -u {UNIT} says why")
        if status != 0:
            raise LoadError(f"{shown} ended with status {status}", said)


def _wait(process: subprocess.Popen[bytes], limit_seconds: float) -> int | None:
    """The status of a process and the end of its group; None if it took too long."""
    try:
        return process.wait(limit_seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # What it left in the background goes too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(fd: int) -> str:
    size = os.fstat(fd).st_size
    tail = os.pread(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode("utf-8", "replace")
    said = [line.strip() for line in tail.split("\n") if line.strip()]
    return "".join(char if char.isprintable() else "?" for char in said[-1]) if said else ""
