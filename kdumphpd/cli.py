"""The command line: arguments in, text or JSON and an exit code out."""

from __future__ import annotations

import argparse
import importlib.metadata
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kdumphpd import commands, streams
from kdumphpd.config import DEFAULT_PATH
from kdumphpd.errors import ExitCode, KdumphpdError, OutputError
from kdumphpd.load.syscalls import Kernel, LiveKernel
from kdumphpd.machine.files import Root

_DESCRIPTION = """\
Keeps the crash image that kdump uses current across CPU and memory hotplug, and
says whether a crash right now would give a complete vmcore."""

_EPILOG = """\
exit codes:
  0   done; audit: a crash right now would give a complete vmcore
  1   audit: stale or damaged      2   audit: nothing is loaded
  3   audit: unknown, it says why
  64  wrong arguments              65  kernel, initrd or command line unusable
  66  a file is missing            69  the host lacks something
  70  a mistake in kdumphpd        71  the kernel refused the load
  74  output cannot be written     75  another kdumphpd is running
  77  permission is missing        78  the configuration is wrong
  130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would exit with 2, which is a verdict of audit.
        streams.complain(f"{self.format_usage()}{self.prog}: {message}; see {self.prog} --help")
        raise SystemExit(int(ExitCode.USAGE))

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help or the version; argparse would let the interpreter fail at its end."""
        streams.write(message.rstrip("\n"))


def build_parser() -> argparse.ArgumentParser:
    """The parser; each command's function is its default ``command``."""
    parser = _Parser(
        prog="kdumphpd",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {description}"
        )
        # The audit needs no configuration, but every command takes one.
        shown = argparse.SUPPRESS if name == "audit" else "default: %(default)s"
        sub.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help=shown)
        return sub

    run = add(
        "run",
        "follow hotplug until stopped (the service)",
        "Loads the image if none is loaded, then watches uevents. SIGHUP reads the "
        "configuration again, SIGUSR1 logs the status. Records go to the journal, or to "
        "standard error where there is none.",
    )
    run.set_defaults(command=commands.run)
    for name, command, summary, description in (
        ("load", commands.load, "load the whole image once", "Replaces whatever is loaded."),
        (
            "update",
            commands.update,
            "make the loaded header current once",
            "Rewrites the elfcorehdr alone if the loaded image is ours and intact, and "
            "loads the whole image otherwise. Another program's image is left alone.",
        ),
        (
            "audit",
            commands.audit,
            "say whether a crash now would give a complete vmcore",
            "Reads the loaded image back and compares it with the machine, whoever loaded "
            "it. The exit code is the verdict: 0 complete, 1 stale or damaged, 2 unloaded, "
            "3 unknown.",
        ),
        (
            "plan",
            commands.plan,
            "show the layout that load would use",
            "Changes nothing. With --root it plans for a recorded tree, without privileges.",
        ),
        (
            "check",
            commands.check,
            "say whether the configuration can be used",
            "Reads it, and the files that it names, as a reload would; loads nothing and asks "
            "nobody. systemctl reload fails where this does.",
        ),
    ):
        sub = add(name, summary, description)
        sub.add_argument("--json", action="store_true", help="machine-readable output")
        sub.set_defaults(command=command)
        if name == "plan":
            sub.add_argument(
                "--root",
                type=Path,
                metavar="DIR",
                help="a tree with proc, sys, etc and the image's files of the host to plan for; "
                "the live host by default",
            )
    return parser


def main(
    argv: Sequence[str] | None = None, root: Root | None = None, kernel: Kernel | None = None
) -> int:
    """Run one command; returns its exit code.

    Args:
        argv: arguments; those of the process by default.
        root: the host to act on, the live one by default; ``plan --root`` names another.
        kernel: makes the system calls, the running one by default.
    """
    streams.fill_in()
    try:
        return _run(argv, root, kernel)
    except KdumphpdError as error:
        if not (isinstance(error, OutputError) and error.hung_up):
            streams.complain(f"kdumphpd: {error}")
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except Exception as error:
        name = type(error).__name__
        streams.complain(f"{traceback.format_exc()}kdumphpd: {name}: {error}; report these lines")
        return int(ExitCode.SOFTWARE)


def _run(argv: Sequence[str] | None, root: Root | None, kernel: Kernel | None) -> int:
    arguments = build_parser().parse_args(argv)
    directory = getattr(arguments, "root", None)
    context = commands.Context(
        arguments,
        Root(directory, recorded=True) if directory else root or Root(),
        kernel or LiveKernel(),
    )
    return int(arguments.command(context))


def _version() -> str:
    try:
        return f"kdumphpd {importlib.metadata.version('kdumphpd')}"
    except importlib.metadata.PackageNotFoundError:
        return "kdumphpd, not installed"
