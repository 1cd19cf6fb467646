"""The ``command`` rung: have the host's own tool load its image, and read back what it did."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Callable

from kdumphpd.audit.foreign import live_headers
from kdumphpd.errors import KdumphpdError, LoadError
from kdumphpd.load.file import header_problem, remember
from kdumphpd.load.loader import Loaded, NotDoneError
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.snapshot import Machine, MachineReader

#: Shorter than the unit's WatchdogSec=.
LIMIT_SECONDS = 90.0
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
        place = reservations.find(self._root, self._reader.resources()).main
        usec = live_at - began
        try:
            with PhysicalMemory(self._root) as memory:
                found = live_headers(self._root, memory, place)
        except KdumphpdError as error:
            return Loaded("command", None, usec, live_at, problem=str(error))
        if len({one.content for one in found}) != 1:
            problem = f"{len(found)} headers are in memory, which one is live is not known"
            return Loaded("command", None, usec, live_at, problem=problem)
        image, problem = remember(self._root, place, "command", found[0], "")
        problem = header_problem(found[0], machine, self._reader) or problem
        return Loaded("command", None, usec, live_at, image, problem)

    def _run(self) -> None:
        shown = shlex.join(self._command)
        # A file and not a pipe: a child that outlives the command cannot keep us waiting.
        with open(os.memfd_create("output", os.MFD_CLOEXEC), "r+b") as output:
            try:
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=_ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                remedy = "correct [update] command"
                raise NotDoneError(f"{shown}: {error.strerror}", remedy) from error
            status = _wait(process, self._limit)
            if status is None:
                raise LoadError(f"{shown} took longer than {self._limit:g} s")
            if status != 0:
                raise LoadError(f"{shown} ended with status {status}", _last_line(output.fileno()))


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
