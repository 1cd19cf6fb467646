"""RHEL and Fedora: ask kdump-utils' own library what kdumpctl would pass to kexec.

What kdumpctl does before it loads (``kdumpctl``: main, setup_initrd, load_kdump)
is done by ``ask-kdump-utils.sh`` with the same functions in the same order, up to the
kexec command:

* ``/etc/sysconfig/kdump``, dracut-functions.sh, kdump-lib.sh and kdump-logger.sh
  are sourced;
* ``prepare_kdump_bootinfo`` sets KDUMP_KERNELVER, KDUMP_KERNEL and KDUMP_INITRD
  (since July 2020: RHEL 8.4, all of RHEL 9 and 10);
* ``prepare_cmdline`` prints the command line (in the library since May 2018,
  with the same three arguments ever since);
* ``prepare_kexec_args`` prints the options, ``-s`` among them;
* ``get_all_kdump_crypt_dev`` (since 2025) names the LUKS devices of the dump
  target, whose keys only kexec_file_load(2) hands to the crash kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdumphpd.distribution import shell
from kdumphpd.distribution.asked import CRYPT_KEYS, Asked, existing
from kdumphpd.distribution.shell import Reply
from kdumphpd.errors import ConfigError, KdumphpdError
from kdumphpd.machine.files import Root

SYSCONFIG = "/etc/sysconfig/kdump"
LIBRARY_DIRECTORY = "/lib/kdump"
LIBRARY = f"{LIBRARY_DIRECTORY}/kdump-lib.sh"
#: What decides the answer, besides the kernel and the initrd that it names. kdump.conf has
#: the dump target, which may be encrypted.
DECIDING_FILES = (SYSCONFIG, "/etc/kdump.conf", LIBRARY)

#: kdumpctl itself takes well under a second for this; the journal and blkid may be slow.
LIMIT_SECONDS = 30.0

_EXPLICIT = 'or set source = "explicit", kernel, initrd and command_line in [image]'

_SCRIPT = "ask-kdump-utils.sh"
#: What the script says with its last step.
_ANSWERS = frozenset(
    (
        "kernel",
        "initrd",
        "command_line",
        "kexec_args",
        "luks",
        "release",
        "configured_release",
        "configured_line",
    )
)


@dataclass(frozen=True)
class _Trouble:
    """What it means that the script ended in a step, and what to do about it."""

    problem: str
    remedy: str


def is_here(root: Root) -> bool:
    """Whether kdump-utils (or the kexec-tools that had it before) is installed."""
    return root.exists(LIBRARY)


def ask(root: Root, limit_seconds: float = LIMIT_SECONDS) -> Asked:
    """Run the library under ``root`` and take what it would have kdumpctl load.

    Raises:
        ConfigError: sysconfig or the library cannot be used, or took too long.
        BusyError: our own end came first.
        InputError: the kernel or initrd that it names is not there.
    """
    sysconfig, library = root.path(SYSCONFIG), root.path(LIBRARY)
    try:
        arguments = (str(sysconfig), str(library.parent))
        reply = shell.run(root, Path(__file__).with_name(_SCRIPT), arguments, limit_seconds)
    except OSError as error:
        raise ConfigError(
            f"{shell.BASH}, to ask {library}: {error.strerror}", f"install bash, {_EXPLICIT}"
        ) from error
    if reply.timed_out or reply.values.get("step") != "done":
        raise _failure(reply, str(sysconfig), str(library), limit_seconds)
    missing = sorted(_ANSWERS - reply.values.keys())
    if missing:
        # The descriptor is the library's too, whatever it does with it.
        raise ConfigError(
            f"{library} or {sysconfig} spoiled the answer: it has no {missing[0]}",
            f"take out what writes to descriptors that it did not open, {_EXPLICIT}",
        )
    return _asked(root, reply.values, str(sysconfig), str(library))


def _asked(root: Root, values: dict[str, str], sysconfig: str, library: str) -> Asked:
    command_line = values["command_line"].strip()
    if not command_line.isprintable():
        raise ConfigError(
            f"{library}: prepare_cmdline prints more than one line of text: {command_line[:80]!r}",
            f"correct {sysconfig}, {_EXPLICIT}",
        )
    configured = bool(values["configured_release"])
    release = f"release {values['release']} " + (
        f"as KDUMP_KERNELVER in {sysconfig} says" if configured else "of the running kernel"
    )
    base = f"KDUMP_COMMANDLINE in {sysconfig}" if values["configured_line"] else "/proc/cmdline"
    luks = values["luks"].split()
    return Asked(
        kernel=existing(
            root, "kernel", values["kernel"], library, f"correct KDUMP_* in {sysconfig}"
        ),
        initrd=existing(root, "initrd", values["initrd"], library, "make it with kdumpctl rebuild"),
        command_line=command_line,
        kexec_arguments=tuple(values["kexec_args"].split()),
        kernel_origin=f"prepare_kdump_bootinfo of {library}, {release}",
        initrd_origin=f"prepare_kdump_bootinfo of {library}",
        command_line_origin=(
            f"prepare_cmdline of {library}, from {base}"
            f" and KDUMP_COMMANDLINE_REMOVE and _APPEND in {sysconfig}"
        ),
        # Without the directory the kernel cannot hand keys over at all.
        crypt_devices=tuple(luks) if root.exists(CRYPT_KEYS) else (),
    )


def _failure(reply: Reply, sysconfig: str, library: str, limit_seconds: float) -> KdumphpdError:
    step = reply.values.get("step", "syntax")
    said = f": {reply.last_message}" if reply.last_message else ""
    if reply.timed_out:
        where = sysconfig if step in ("syntax", "sysconfig") else f"{library} ({step})"
        return ConfigError(
            f"{where} did not finish within {limit_seconds:g} s{said}",
            f"see what hangs with bash -x kdumpctl status, {_EXPLICIT}",
        )
    trouble = _trouble(step, sysconfig, library)
    return ConfigError(f"{trouble.problem}{said}", f"{trouble.remedy}, {_EXPLICIT}")


def _trouble(step: str, sysconfig: str, library: str) -> _Trouble:
    if step == "syntax":
        return _Trouble(
            f"{sysconfig} has a syntax error", f"correct it until bash -n {sysconfig} is silent"
        )
    if step == "sysconfig":
        return _Trouble(f"{sysconfig} ends the shell that reads it", "take that out of it")
    if step.startswith("function "):
        return _Trouble(
            f"{library} has no function {step.partition(' ')[2]}",
            "update kdump-utils (kexec-tools before RHEL 10)",
        )
    if step == "fadump":
        return _Trouble(
            "kdump uses firmware-assisted dump here, which has no crash kernel image",
            "leave it to kdump",
        )
    if step == "library":
        return _Trouble(f"{library} cannot be sourced", "reinstall kdump-utils")
    return _Trouble(
        f"{library}: {step} failed", f"correct {sysconfig} until kdumpctl restart works"
    )
