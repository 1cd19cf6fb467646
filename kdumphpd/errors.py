"""Errors as the user meets them: what is wrong, the remedy, and an exit code.

Exit codes are those of ``sysexits.h``, so that they never meet the verdicts
of ``kdumphpd audit`` (0 to 3).
"""

from __future__ import annotations

import enum

from kdumphpd.printable import printable


class ExitCode(enum.IntEnum):
    """Exit codes of every command; 0 to 3 of ``audit`` are its verdicts."""

    OK = 0
    USAGE = 64  # the command line
    DATA = 65  # a kernel, initrd or recording that cannot be used
    NO_INPUT = 66  # a file that is missing or cannot be read
    UNAVAILABLE = 69  # the host lacks something: reservation, kcore, iomem
    SOFTWARE = 70  # an error that nobody foresaw
    LOAD_FAILED = 71  # the kernel refused the load
    IO_ERROR = 74  # standard output is closed, full or hung up
    BUSY = 75  # another instance is running
    NO_PERMISSION = 77  # a capability is missing
    CONFIG = 78  # the configuration
    INTERRUPTED = 130  # SIGINT, as shells count it


class KdumphpdError(Exception):
    """Something that the user can act on.

    ``str()`` is the whole line: what is wrong, then the remedy. It is printable, whatever
    a file that it names is called.
    """

    exit_code = ExitCode.UNAVAILABLE

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = printable(problem)
        self.remedy = printable(remedy)
        super().__init__("; ".join(filter(None, (self.problem, self.remedy))))


class ConfigError(KdumphpdError):
    """The configuration file cannot be used."""

    exit_code = ExitCode.CONFIG


class ImageError(KdumphpdError):
    """The kernel, initrd or command line cannot make a crash image."""

    exit_code = ExitCode.DATA


class InputError(KdumphpdError):
    """A file is missing or cannot be read."""

    exit_code = ExitCode.NO_INPUT


class MachineError(KdumphpdError):
    """The running kernel does not say what is needed."""


class PermissionMissingError(KdumphpdError):
    """A capability is missing."""

    exit_code = ExitCode.NO_PERMISSION


class LoadError(KdumphpdError):
    """The kernel refused a load; ``errno`` says why."""

    exit_code = ExitCode.LOAD_FAILED

    def __init__(self, problem: str, remedy: str = "", errno: int = 0) -> None:
        super().__init__(problem, remedy)
        self.errno = errno


class BusyError(KdumphpdError):
    """Another instance is at work."""

    exit_code = ExitCode.BUSY


class OutputError(KdumphpdError):
    """Standard output does not take what there is to say.

    Attributes:
        hung_up: its reader went away, and needs no complaint about that.
    """

    exit_code = ExitCode.IO_ERROR

    def __init__(self, problem: str, remedy: str = "", *, hung_up: bool = False) -> None:
        super().__init__(problem, remedy)
        self.hung_up = hung_up
