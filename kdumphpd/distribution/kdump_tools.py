"""Debian and Ubuntu: the kexec command that kdump-tools wrote down when it loaded.

``kdump-config load`` (kdump_load) evaluates its kexec command and, if that
succeeds, writes it to ``$KDUMP_COREDIR/kexec_cmd``; KDUMP_COREDIR is set in
``/etc/default/kdump-tools`` and is ``/var/crash`` by default. The file stays
when the image is unloaded: it says what kdump-tools loaded last, not that it
is loaded.

Ubuntu's /var/crash is writable by everybody (mode 3777), and a cron job removes old files
from it, this one too: whoever made it anew would choose what runs as root after a panic. So it
counts only if it is root's own file, in a directory where others cannot replace it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from kdumphpd.distribution.asked import KNOWN_KEXEC_OPTIONS, Asked, existing
from kdumphpd.errors import ConfigError, InputError
from kdumphpd.machine import trust
from kdumphpd.machine.files import Root
from kdumphpd.machine.trust import DistrustError

CONFIG = "/etc/default/kdump-tools"
TOOL = "/usr/sbin/kdump-config"
_DEFAULT_COREDIR = "/var/crash"
_COMMAND = "kexec_cmd"
#: Taken by ``kdump-config try-reload``, which only its udev rule runs.
_LOCK = "kdump_lock"

#: A command line of a kernel has at most 4096 bytes; a longer file is something else.
_MAX_BYTES = 64 << 10

_EXPLICIT = 'or set source = "explicit", kernel, initrd and command_line in [image]'

_ANEW = f"remove it and write it anew with kdump-config reload, {_EXPLICIT}"

_VALUE_OPTIONS = {
    "--command-line": "command_line",
    "--append": "command_line",
    "--initrd": "initrd",
    "--ramdisk": "initrd",
    "-t": "type",
    "--type": "type",
}


def is_here(root: Root) -> bool:
    """Whether kdump-tools is installed."""
    return root.exists(TOOL) or root.exists(CONFIG)


def command_path(root: Root) -> PurePosixPath:
    """Where kdump-tools writes its kexec command, as seen on that host.

    Raises:
        ConfigError: /etc/default/kdump-tools cannot be used.
    """
    return PurePosixPath(_core_directory(root)) / _COMMAND


def lock_path(root: Root) -> PurePosixPath:
    """The lock of ``kdump-config try-reload``; errors as `command_path`."""
    return PurePosixPath(_core_directory(root)) / _LOCK


def ask(root: Root) -> Asked:
    """Take kernel, initrd and command line from the kexec command.

    Raises:
        ConfigError: the configuration or the command cannot be used.
        InputError: kdump-tools has loaded nothing yet, or a file is not there.
    """
    name = str(command_path(root))
    path = root.path(name)
    try:
        text = _read_command(path, check_owner=not root.recorded)
    except FileNotFoundError:
        raise InputError(
            f"{path} is not there: kdump-tools has not loaded a crash kernel yet",
            f"load one with kdump-config load, {_EXPLICIT}",
        ) from None
    values, arguments = parse_command(text, str(path))
    remedy = "make it with kdump-config reload"
    origin = f"the kexec command in {path}"
    return Asked(
        kernel=existing(root, "kernel", values["kernel"], str(path), remedy),
        initrd=existing(root, "initrd", values.get("initrd", ""), str(path), remedy),
        command_line=values.get("command_line", "").strip(),
        kexec_arguments=arguments,
        kernel_origin=origin,
        initrd_origin=origin,
        command_line_origin=origin,
    )


def _read_command(path: Path, *, check_owner: bool) -> str:
    """The text of the kexec command.

    Raises:
        FileNotFoundError: it is not there.
        ConfigError: it is not to be trusted, or too large.
        InputError, PermissionMissingError: it cannot be read.
    """
    try:
        fd = trust.open_regular(path, follow=False, check_owner=check_owner)
        try:
            content = trust.read_limited(fd, _MAX_BYTES)
        finally:
            os.close(fd)
        if check_owner:
            trust.trusted_parents(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise trust.unreadable(str(path), error, _ANEW) from error
    except DistrustError as error:
        raise ConfigError(
            f"{error.problem}, so others could choose the crash kernel", _ANEW
        ) from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_BYTES >> 10} KiB", _ANEW)
    return content.decode("utf-8", "replace")


def parse_command(text: str, path: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Take a kexec command line apart as the shell and kexec do.

    Args:
        text: as written to kexec_cmd: the command that ``eval`` got.
        path: for errors.

    Returns:
        ``kernel``, ``initrd`` and ``command_line``, as far as they are named, and
        the other options.

    Raises:
        ConfigError: it is none, or one whose meaning cannot be told without a shell.
    """
    line = text.strip()
    if not line or not line.isprintable():
        raise ConfigError(
            f"{path} does not hold one kexec command",
            f"write it anew with kdump-config reload, {_EXPLICIT}",
        )
    try:
        words = _words(line)
    except ValueError as error:
        raise ConfigError(
            f"{path}: not a plain command ({error}): {line[:80]}",
            f"correct KDUMP_CMDLINE in {CONFIG}, {_EXPLICIT}",
        ) from error
    if PurePosixPath(words[0]).name != "kexec":
        raise ConfigError(f"{path} does not begin with kexec: {line[:80]}", _EXPLICIT[3:])
    return _options(words[1:], path)


def _words(line: str) -> list[str]:
    """The words of one simple command; ValueError for what only a shell can make of it."""
    if "$" in line or "`" in line:
        raise ValueError("it has an expansion")
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words = list(lexer)
    operators = [word for word in words if word and not set(word) - set("();<>|&")]
    if operators:
        raise ValueError(f"it has the operator {operators[0]}")
    return words


def _options(words: Iterable[str], path: str) -> tuple[dict[str, str], tuple[str, ...]]:
    values: dict[str, str] = {}
    arguments: list[str] = []
    kernels: list[str] = []
    rest: Iterator[str] = iter(words)
    for word in rest:
        name, separator, value = word.partition("=")
        if word.startswith("--") and name in _VALUE_OPTIONS and separator:
            values[_VALUE_OPTIONS[name]] = value
        elif word in _VALUE_OPTIONS:
            values[_VALUE_OPTIONS[word]] = next(rest, "")
        elif word in KNOWN_KEXEC_OPTIONS:
            arguments.append(word)
        elif word.startswith("-"):
            raise ConfigError(
                f"{path}: kexec's option {word} cannot be followed",
                f"take it out of KDUMP_KEXEC_ARGS in {CONFIG}, {_EXPLICIT}",
            )
        else:
            kernels.append(word)
    if len(kernels) != 1:
        raise ConfigError(
            f"{path} names {len(kernels)} kernels instead of one",
            f"correct KDUMP_KERNEL in {CONFIG}, {_EXPLICIT}",
        )
    values["kernel"] = kernels[0]
    return values, tuple(arguments)


def _core_directory(root: Root) -> str:
    """KDUMP_COREDIR; the file is also systemd's EnvironmentFile, so plain assignments."""
    path = root.path(CONFIG)
    if not os.path.lexists(path):
        return _DEFAULT_COREDIR
    try:
        text = root.read_text(CONFIG)
    except InputError as error:
        raise ConfigError(error.problem, "make it a file that root can read") from error
    found = re.findall(r"^[ \t]*(?:export[ \t]+)?KDUMP_COREDIR=(.*)$", text, re.MULTILINE)
    if not found:
        return _DEFAULT_COREDIR
    try:
        words = shlex.split(found[-1], comments=True)
    except ValueError:
        words = []
    value = words[0] if words else ""
    if not value:
        return _DEFAULT_COREDIR
    if not value.startswith("/") or "$" in value or "`" in value or not value.isprintable():
        raise ConfigError(
            f"{path}: KDUMP_COREDIR is {found[-1][:80]!r}, not a plain absolute path",
            "write the path out",
        )
    return value
