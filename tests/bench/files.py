"""How long no crash kernel is loaded with kexec_file_load(2): by kexec, and by ``file``.

The kernel does the same in both, most of it hashing (`tests.bench.trace` says when it
disarms), so in an idle guest one call takes as long as the other. A script adds the time
from its unload to its load. A busy guest adds the turns of others; the ``file`` rung's
call waits for none, as it is made in a real-time scheduling class.

With one CPU online; the call does hardly anything that concerns a second one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tests.bench import guest, loads, trace
from tests.bench.figures import Figure, Ratio, Section
from tests.bench.header import BenchError
from tests.vm.rig import CAPTURE_COMMAND_LINE, Machine
from tests.vm.rig.progress import log

TIMES_SHORTER = 1.5

COMMAND = "kexec -s -p (trace)"
FILE = "file load (trace)"
BUSY_COMMAND = "kexec -s -p (trace), busy"
BUSY_FILE = "file load (trace), busy"

_KEXEC = f"kexec -s -p {guest.KERNEL} --initrd={guest.INITRD} --append='{CAPTURE_COMMAND_LINE}'"
_BUSY = "while :; do :; done"

# kdump-tools as an administrator sets it up for kexec_file_load(2).
_KDUMP_TOOLS = f"""\
USE_KDUMP=1
KDUMP_KERNEL={guest.KERNEL}
KDUMP_INITRD={guest.INITRD}
KDUMP_CMDLINE="{CAPTURE_COMMAND_LINE}"
KDUMP_KEXEC_ARGS="-s"
KDUMP_COREDIR=/var/crash
"""


def run(vm: Machine, rounds: int) -> Section:
    """Run ``rounds`` rounds in ``vm``, traced already; the daemon is stopped meanwhile."""
    guest.online(vm, 1)
    vm.guest.run(f"systemctl stop {guest.UNIT}", timeout=300)
    ways = _ways(vm, scripted=_add_kdump_tools(vm))
    trace.take(vm.guest)
    values: dict[str, list[float]] = {}
    for number in range(1, rounds + 1):
        log.info("files: round %d of %d", number, rounds)
        for name, measure in ways.items():
            usec = measure()
            values.setdefault(name, []).append(usec)
            log.info("%s: %d us", name, usec)
    vm.guest.run(f"systemctl start {guest.UNIT}", timeout=300)
    figures = {
        name: Figure(loads.with_cpus(name, 1), "us", tuple(one)) for name, one in values.items()
    }
    return Section(
        f"files {vm.image.guest.name}",
        guest.where(vm),
        tuple(figures.values()),
        tuple(
            Ratio(figure, figures[BUSY_FILE if name == BUSY_COMMAND else FILE], TIMES_SHORTER)
            for name, figure in figures.items()
            if name not in (FILE, BUSY_FILE)
        ),
        {"busy": "one other process that computes", **guest.facts(vm)},
    )


def _ways(vm: Machine, *, scripted: bool) -> dict[str, Callable[[], int]]:
    """What is measured in one round, in this order; each gives microseconds."""

    def by(command: str) -> int:
        vm.guest.run(f"{command} >/dev/null", timeout=300)
        return trace.unarmed_by(_loads(vm, command))

    def by_file() -> int:
        vm.guest.run(f"systemctl start {guest.FILE_UNIT}", timeout=300)
        # Before the load it has the kernel check the file; in between the host is armed.
        return sum(one.usec for one in _loads(vm, guest.FILE_UNIT))

    def busy(measure: Callable[[], int]) -> int:
        with _busy(vm):
            return measure()

    ways = {
        COMMAND: lambda: by(_KEXEC),
        "kexec -s -p -u && kexec -s -p (trace)": lambda: by(f"kexec -s -p -u && {_KEXEC}"),
        FILE: by_file,
        BUSY_COMMAND: lambda: busy(lambda: by(_KEXEC)),
        BUSY_FILE: lambda: busy(by_file),
    }
    if scripted:
        ways["kdump-config reload with -s (trace)"] = lambda: by("kdump-config reload")
    return ways


def _loads(vm: Machine, what: str) -> tuple[trace.Call, ...]:
    calls = trace.loads(trace.take(vm.guest))
    if not calls or calls[-1].result or calls[-1].segments is not None:
        raise BenchError(f"{what}: no load by kexec_file_load: {calls}")
    return calls


@contextlib.contextmanager
def _busy(vm: Machine) -> Iterator[None]:
    process = vm.guest.start(_BUSY)
    try:
        yield
    finally:
        vm.guest.run(f"kill {process}")


def _add_kdump_tools(vm: Machine) -> bool:
    """Install the script that Debian's hotplug rules run, where its package is at hand."""
    if not vm.image.guest.archives:
        return False
    vm.guest.run(
        "dpkg-deb -x /var/lib/rig/kdump-tools_*.deb /tmp/kdump && cd /tmp/kdump"
        # Not its rules and units: nothing but the benchmark is to load.
        " && cp -a etc usr var /"
        # What kdump-config would make anew, in a minute, if it were not there.
        f" && cp {guest.INITRD} /var/lib/kdump/initrd.img-$(uname -r)"
        " && cp /etc/kdump/sysctl.conf /var/lib/kdump/latest_sysctls-$(uname -r)"
    )
    vm.guest.write("/etc/default/kdump-tools", _KDUMP_TOOLS)
    return True
