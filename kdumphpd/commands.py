"""What each command does; printing is in `kdumphpd.report.text`."""

from __future__ import annotations

import argparse
import contextlib
import json
from dataclasses import dataclass
from typing import Any

from kdumphpd import streams
from kdumphpd.audit.advice import unknown_state
from kdumphpd.audit.audit import audit as run_audit
from kdumphpd.audit.compare import Verdict
from kdumphpd.daemon import run_daemon
from kdumphpd.distribution.adoption import Owner
from kdumphpd.distribution.unit_state import unit_state
from kdumphpd.errors import (
    ExitCode,
    InputError,
    KdumphpdError,
    MachineError,
    PermissionMissingError,
)
from kdumphpd.host import Host, config_path, open_host
from kdumphpd.load.keeper import Mended, State
from kdumphpd.load.lock import single_instance
from kdumphpd.load.syscalls import Kernel
from kdumphpd.machine.files import Root
from kdumphpd.machine.ranges import total
from kdumphpd.machine.snapshot import Machine, MachineReader
from kdumphpd.report import text

_VERDICT_CODES = {
    Verdict.COMPLETE: 0,
    Verdict.STALE: 1,
    Verdict.DAMAGED: 1,
    Verdict.UNLOADED: 2,
    Verdict.UNKNOWN: 3,
}


@dataclass(frozen=True)
class Context:
    """What a command is about: its arguments, and the host that it acts on."""

    arguments: argparse.Namespace
    root: Root
    kernel: Kernel

    def open(self) -> Host:
        """The host with the configuration that the arguments name."""
        return open_host(self.root, self.kernel, self.arguments.config)


def run(context: Context) -> int:
    """``kdumphpd run``."""
    return run_daemon(context.root, context.kernel, context.arguments.config)


def load(context: Context) -> int:
    """``kdumphpd load``."""
    host = context.open()
    with single_instance(host.root), host.lock.held():
        machine = host.reader.snapshot()
        mended = host.keeper.load(machine)
    return _show_load(context, host, machine, mended)


def update(context: Context) -> int:
    """``kdumphpd update``."""
    host = context.open()
    with single_instance(host.root), host.lock.held():
        look = host.keeper.look()
        if look.state is State.UNLOADED:
            raise MachineError("no crash kernel is loaded", "load one with kdumphpd load")
        if look.state is State.FOREIGN:
            raise MachineError(
                "the loaded crash kernel was not loaded by kdumphpd",
                "replace it with kdumphpd load if that is what you want",
            )
        if look.state is State.CURRENT:
            # The look compared the header; the rest may have changed in memory.
            verdict = run_audit(host.root, host.reader).verdict
            if verdict is not Verdict.DAMAGED:
                result = {"changed": False, "verdict": verdict.value}
                return _show(context, result, "unchanged: the loaded header is current")
        mended = host.keeper.mend(look)
    return _show_load(context, host, look.machine, mended)


def audit(context: Context) -> int:
    """``kdumphpd audit``; its exit code is the verdict."""
    state_of = unit_state if context.root.is_live else unknown_state
    found = run_audit(context.root, MachineReader(context.root), state_of=state_of)
    _show(context, found.to_json(), text.audit(found))
    return _VERDICT_CODES[found.verdict]


def plan(context: Context) -> int:
    """``kdumphpd plan``."""
    host = context.open()
    machine = host.reader.snapshot()
    with contextlib.ExitStack() as stack:
        if host.asks:
            # As kdumpctl would be asked: never while it works.
            stack.enter_context(host.lock.held())
        spec = host.source.spec
    planned = host.loader.plan(machine)
    pages = host.loader.control_pages()
    return _show(
        context,
        text.plan_json(planned, machine, spec, pages),
        text.plan(planned, machine, spec, pages),
    )


def check(context: Context) -> int:
    """``kdumphpd check``: what a reload would make of the configuration."""
    try:
        host = context.open()
        _check_image(host)
    except KdumphpdError as error:
        if not context.arguments.json:
            raise
        problem = {"usable": False, "problem": error.problem, "remedy": error.remedy or None}
        _show(context, problem, "")
        return int(error.exit_code)
    path = config_path(context.root, context.arguments.config)
    origin = host.kdump.name if host.owner is Owner.KDUMP and host.kdump else str(path)
    found = {
        "usable": True,
        "problem": None,
        "remedy": None,
        "file": str(path) if path.exists() else None,
        "source": host.config.image.source,
        "origin": origin,
    }
    return _show(context, found, text.check(path, found["file"] is not None, origin))


def _check_image(host: Host) -> None:
    """See that the files of an explicit image are there, and that they can be loaded here."""
    if host.owner is Owner.KDUMP:
        return  # asking it takes its lock and its time, and is no matter of our file
    for file in host.source.files():
        file.size()
    # What is not readable for this user, or on this host, is no fault of the configuration.
    with contextlib.suppress(MachineError, PermissionMissingError, InputError):
        host.source.kernel(host.reader)


def _show_load(context: Context, host: Host, machine: Machine, mended: Mended) -> int:
    if mended.loaded is None:
        raise mended.error()
    found = run_audit(host.root, host.reader)
    loaded = mended.loaded
    result = {
        "changed": True,
        "backend": loaded.backend,
        "unarmed_usec": loaded.unarmed_usec,
        "verdict": found.verdict.value,
        "cpus": sorted(machine.cpu_numbers),
        "memory": [[one.start, one.end] for one in machine.ram],
        "memory_bytes": total(machine.ram),
        "failures": list(mended.failures),
    }
    lines = [
        *map(text.failure, mended.failures),
        text.loaded(loaded, machine),
        text.audit(found),
    ]
    return _show(context, result, "\n".join(lines))


def _show(context: Context, result: dict[str, Any], shown: str) -> int:
    streams.write(json.dumps(result, indent=2) if context.arguments.json else shown)
    return int(ExitCode.OK)
