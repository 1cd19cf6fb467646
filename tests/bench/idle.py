"""What the daemon costs while nothing happens: CPU time and resident memory."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from tests.bench import guest
from tests.bench.figures import Figure, Section
from tests.vm.rig import Machine
from tests.vm.rig.progress import log

SECONDS = 600
RSS_MIB = 60
# One thousandth of one CPU: what `top` shows as 0.1.
CPU_PERCENT = 0.1

# The last burst ends 10 s after its last uevent, and a reload is followed by a look.
_SETTLE_SECONDS = 30
_PROGRESS_SECONDS = 60


@dataclass(frozen=True)
class Used:
    """CPU time so far: of the unit's cgroup in microseconds, of the process in ticks."""

    uptime: float
    cgroup_usec: int
    ticks: int


def run(vm: Machine, seconds: float = SECONDS) -> Section:
    """Leave the daemon in ``vm`` alone for ``seconds``."""
    pid = int(vm.guest.run(f"systemctl show -P MainPID {guest.UNIT}"))
    log.info("idle: %d s for the last burst to end", _SETTLE_SECONDS)
    time.sleep(_SETTLE_SECONDS)
    records = guest.Records(vm.guest)
    before = _used(vm, pid)
    _wait(seconds)
    after = _used(vm, pid)
    status = vm.guest.read(f"/proc/{pid}/status")
    said = [one["MESSAGE"] for one in records.take()]
    elapsed = after.uptime - before.uptime
    usec = after.cgroup_usec - before.cgroup_usec
    ticks = int(vm.guest.run("getconf CLK_TCK"))
    return Section(
        "idle",
        guest.where(vm),
        (
            Figure("CPU time of the unit's cgroup", "ms", (usec / 1e3,)),
            Figure("CPU time of the process", "ms", ((after.ticks - before.ticks) * 1e3 / ticks,)),
            Figure("share of one CPU", "%", (usec / elapsed / 1e4,), CPU_PERCENT),
            Figure("VmRSS at the end", "MiB", (_mib(status, "VmRSS"),), RSS_MIB),
            Figure("of it private (RssAnon)", "MiB", (_mib(status, "RssAnon"),)),
            Figure("VmHWM, since it started", "MiB", (_mib(status, "VmHWM"),)),
        ),
        facts={"seconds": round(elapsed), "records in that time": len(said), "said": said},
    )


def _wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        log.info("idle: %d s to go", round(left))
        time.sleep(min(left, _PROGRESS_SECONDS))


def _used(vm: Machine, pid: int) -> Used:
    """One command, so that the readings belong together."""
    stat = f"/sys/fs/cgroup/system.slice/{guest.UNIT}/cpu.stat"
    uptime, cgroup, process = vm.guest.run(
        f"cat /proc/uptime; grep ^usage_usec {stat}; cat /proc/{pid}/stat"
    ).splitlines()
    # proc(5): utime and stime are fields 14 and 15; the second one, in
    # parentheses, may hold blanks.
    fields = process.rpartition(")")[2].split()
    return Used(float(uptime.split()[0]), int(cgroup.split()[1]), int(fields[11]) + int(fields[12]))


def _mib(status: str, name: str) -> float:
    match = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    if match is None:
        raise ValueError(f"no {name} in /proc/PID/status")
    return int(match[1]) / 1024
