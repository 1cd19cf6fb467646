"""Shadows the distribution's hotplug rule while we do its job.

A file in ``/run/udev/rules.d`` stands in front of the one with the same name in
``/usr/lib/udev/rules.d`` (udev(7)). Ours has no rules. It has to go when the
service ends, whichever way: the unit's ExecStopPost= does that with a plain shell,
which works when Python does not.

udevd looks for changed rules by itself every three seconds at most
(``manager_reload``); the reload makes it at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from kdumphpd import processes
from kdumphpd.errors import KdumphpdError
from kdumphpd.machine.files import Root

RUN_DIRECTORY = "/run/udev/rules.d"
ADMIN_DIRECTORY = "/etc/udev/rules.d"
_VENDOR_DIRECTORIES = ("/usr/lib/udev/rules.d", "/lib/udev/rules.d")

#: kdump-utils and RHEL's kexec-tools; Debian's kdump-tools; SUSE's kdump, which puts
#: its own into /run when it loads and takes it away when it unloads.
RULES = ("98-kexec.rules", "50-kdump-tools.rules", "70-kdump.rules")

MARK = "# kdumphpd "
#: What was in our place before. Without .rules at its end udev does not read it.
SAVED_SUFFIX = ".kdumphpd-saved"

_RELOAD = ("udevadm", "control", "--reload")
_RELOAD_SECONDS = 10


@dataclass(frozen=True)
class Shadowed:
    """What came of it.

    Attributes:
        rules: names of the files that are shadowed now.
        fresh: those that were not before.
        overridden: names that the administrator has a file of in /etc, which wins over ours.
        problem: why udevd could not be told; empty if it could.
    """

    rules: tuple[str, ...]
    fresh: tuple[str, ...]
    overridden: tuple[str, ...]
    problem: str = ""


def shadow_text() -> str:
    """The file's content: installed beside this module, from ``udev/`` of the source tree."""
    here = resources.files("kdumphpd") / "distribution" / "shadow.rules"
    if here.is_file():
        return here.read_text(encoding="utf-8")
    tree = Path(__file__).resolve().parents[2] / "udev" / "shadow.rules"
    return tree.read_text(encoding="utf-8")


def shadow(root: Root, text: str, reload_rules: Callable[[], str]) -> Shadowed:
    """Put our file in front of every hotplug rule that is there; once more does no harm.

    Look at the machine after this and not before: an event that came between has
    been left to us.

    Args:
        root: the host.
        text: `shadow_text`.
        reload_rules: tells udevd, and returns what went wrong: `reload_live_rules`.

    Raises:
        KdumphpdError: a file cannot be put there; that rule stays in force.
    """
    directory = root.path(RUN_DIRECTORY)
    rules = [name for name in RULES if _present(root, name)]
    fresh = [name for name in rules if not is_ours(directory / name)]
    try:
        if fresh:
            _make_directory(directory)
        for name in fresh:
            _put(directory / name, text)
    except OSError as error:
        raise KdumphpdError(
            f"{error.filename or directory}: {error.strerror}, so the distribution's hotplug rule"
            " stays in force and loads the whole crash kernel beside us",
            f"make {directory} writable for kdumphpd.service",
        ) from error
    return Shadowed(
        rules=tuple(rules),
        fresh=tuple(fresh),
        overridden=tuple(one for one in rules if root.exists(f"{ADMIN_DIRECTORY}/{one}")),
        problem=reload_rules() if fresh else "",
    )


def unshadow(root: Root, reload_rules: Callable[[], str]) -> Shadowed:
    """Take our files away and put back what was in their place.

    Raises:
        KdumphpdError: a file cannot be taken away.
    """
    directory = root.path(RUN_DIRECTORY)
    ours = [name for name in RULES if is_ours(directory / name)]
    try:
        for name in ours:
            saved = directory / (name + SAVED_SUFFIX)
            if saved.exists():
                os.replace(saved, directory / name)
            else:
                (directory / name).unlink()
    except OSError as error:
        raise KdumphpdError(
            f"{error.filename}: {error.strerror}, so a hotplug rule stays shadowed",
            f"rm {error.filename} && udevadm control --reload",
        ) from error
    return Shadowed((), tuple(ours), (), reload_rules() if ours else "")


def is_ours(path: Path) -> bool:
    """Whether ``path`` is a shadow that we put there."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().startswith(MARK)
    except OSError:
        return False


def reload_live_rules() -> str:
    """Tell udevd to read its rules again; what went wrong, empty if nothing did."""
    shown = " ".join(_RELOAD)
    try:
        done = processes.run(_RELOAD, _RELOAD_SECONDS)
    except OSError as error:
        return f"{shown}: {error.strerror}"
    if done.status is None:
        return f"{shown} did not finish within {_RELOAD_SECONDS} s"
    return f"{shown} failed: {done.last_line[:200]}" if done.status else ""


def _make_directory(directory: Path) -> None:
    """Make it readable for all, as systemd does, whatever the unit's UMask= says."""
    for one in (directory.parent, directory):
        if not one.is_dir():
            one.mkdir(parents=True)
            one.chmod(0o755)


def _present(root: Root, name: str) -> bool:
    """Whether somebody other than us has a rule of this name below /etc's precedence."""
    in_run = root.path(f"{RUN_DIRECTORY}/{name}")
    vendor = any(root.exists(f"{directory}/{name}") for directory in _VENDOR_DIRECTORIES)
    return vendor or os.path.lexists(in_run)


def _put(path: Path, text: str) -> None:
    """Write the file at once and whole, and keep what was there."""
    part = path.with_name(path.name + ".kdumphpd-new")
    try:
        part.write_text(text, encoding="utf-8")
        # UMask=0077 in the unit; rules are for all to read.
        part.chmod(0o644)
        if os.path.lexists(path):
            os.replace(path, path.with_name(path.name + SAVED_SUFFIX))
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
