"""The ``command`` rung: have the host's own tool load its image, and read back what it did.

Under systemd the command is a unit of its own. As a child of ours it would be in our
unit's sandbox, which leaves kdumpctl no room to make an initrd, and whose system call
filter may be the very reason why we cannot load ourselves. It also goes on if we are
killed in the middle, when it may have unloaded and not loaded yet; kdump's lock has our
next look wait for its end.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from kdumphpd import processes
from kdumphpd.audit.read_back import FoundHeader
from kdumphpd.distribution.asked import CRYPT_KEYS
from kdumphpd.errors import KdumphpdError, LoadError
from kdumphpd.load.file import header_problem, remember
from kdumphpd.load.kept import live_header
from kdumphpd.load.loader import Loaded, NotDoneError
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.files import Root
from kdumphpd.machine.ranges import Range
from kdumphpd.machine.snapshot import Machine, MachineReader

#: With the time that asking kdump may take, shorter than the unit's WatchdogSec=.
LIMIT_SECONDS = 60.0
UNIT = "kdumphpd-command.service"
# As kdump.service has it: kdumpctl looks for LUKS keys in root's keyring.
_KEYRING = "KeyringMode=shared"
# In the kernel's crash_dm_crypt_keys directory: whether a load takes the keys of the image
# that is loaded (kernel/crash_dump_dm_crypt.c), as kdump-udev-throttler asks for.
_REUSE = "reuse"
_WITH_KEYS = """\
echo 1 >"$0" 2>/dev/null
"$@"
status=$?
echo 0 >"$0" 2>/dev/null
exit $status
"""
_DESCRIPTION = "Loads the crash kernel for kdumphpd"
#: Where a distribution's kdump is, and what makes it load again.
_DEFAULTS = (
    ("/usr/bin/kdumpctl", "kdumpctl reload"),
    ("/usr/sbin/kdump-config", "kdump-config reload"),
)


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
        usec = live_at - began
        try:
            found = live_header(self._root, self._reservation())
        except KdumphpdError as error:
            return Loaded("command", None, usec, live_at, problem=str(error))
        return self._remembered(machine, found, usec, live_at)

    def _remembered(self, machine: Machine, found: FoundHeader, usec: int, live_at: int) -> Loaded:
        image, problem = remember(self._root, self._reservation(), "command", found, "")
        problem = header_problem(found, machine, self._reader) or problem
        return Loaded("command", None, usec, live_at, image, problem)

    def _reservation(self) -> Range:
        return reservations.find(self._root, self._reader.resources()).main

    def _run(self) -> None:
        shown = shlex.join(self._command)
        command, limit = self._with_keys(), self._limit
        managed = processes.has_systemd(self._root)
        if managed:
            command = processes.as_unit(command, UNIT, _DESCRIPTION, limit, _KEYRING)
            limit = processes.unit_seconds(limit)
        try:
            finished = processes.run(command, limit, to_the_last=not managed)
        except OSError as error:
            remedy = "correct [update] command"
            raise NotDoneError(f"{command[0]}: {error.strerror}", remedy) from error
        if finished.status is None:
            raise LoadError(f"{shown} took longer than {limit:g} s")
        if finished.status != 0 and managed:
            # systemd-run is quiet about a unit that failed: what it says is its own trouble.
            problem = f"{shown} failed or took longer than {self._limit:g} s"
            raise LoadError(problem, finished.last_line or f"journalctl -u {UNIT} says why")
        if finished.status != 0:
            raise LoadError(f"{shown} ended with status {finished.status}", finished.last_line)

    def _with_keys(self) -> tuple[str, ...]:
        """The command, which finds the LUKS keys of the loaded image if the kernel has any.

        Otherwise it would need somebody who types the passphrase, or load without keys.
        """
        reuse = f"{CRYPT_KEYS}/{_REUSE}"
        if not self._root.exists(reuse):
            return self._command
        return ("/bin/sh", "-c", _WITH_KEYS, str(self._root.path(reuse)), *self._command)
