"""How long no crash image was loaded, as the guest's kernel traces the system calls.

The same instrument for every loader, and none of ours: the tracepoints of
kexec_load(2) and kexec_file_load(2) (``kernel/trace/trace_syscalls.c``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tests.vm.rig.guest_shell import GuestShell

TRACEFS = "/sys/kernel/tracing"

# "  kexec-731  [000] .....  97.361284: sys_kexec_load(entry: 0, nr_segments: 0, ...)"
# "  kexec-731  [000] .....  97.361302: sys_kexec_load -> 0x0"
_LINE = re.compile(
    r"^\s*(?P<comm>.+)-(?P<pid>\d+)\s+\[\d+\]\s+\S+\s+(?P<seconds>\d+)\.(?P<fraction>\d{6}): "
    r"(?P<call>sys_kexec_load|sys_kexec_file_load)"
    r"(?:\((?P<arguments>.*)\)| -> 0x(?P<result>[0-9a-f]+))$"
)
_SEGMENTS = re.compile(r"nr_segments: ([0-9a-f]+)")


@dataclass(frozen=True)
class Call:
    """One finished system call; times in microseconds of the trace's clock.

    Attributes:
        comm: name of the thread.
        segments: how many, None for kexec_file_load.
        result: what it returned, 0 or a negative errno as unsigned.
    """

    comm: str
    segments: int | None
    entered: int
    left: int
    result: int

    @property
    def usec(self) -> int:
        return self.left - self.entered


def parse(text: str) -> tuple[Call, ...]:
    """Calls in the order in which they returned; other lines are passed over."""
    calls = []
    entered: dict[str, tuple[int, int | None]] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        usec = int(match["seconds"]) * 1_000_000 + int(match["fraction"])
        if match["result"] is None:
            segments = _SEGMENTS.search(match["arguments"])
            entered[match["pid"]] = (usec, int(segments[1], 16) if segments else None)
        elif match["pid"] in entered:
            begin, count = entered.pop(match["pid"])
            calls.append(Call(match["comm"], count, begin, usec, int(match["result"], 16)))
    return tuple(calls)


def start(guest: GuestShell) -> None:
    """Have the guest's kernel trace both calls."""
    guest.run(f"mountpoint -q {TRACEFS} || mount -t tracefs tracefs {TRACEFS}")
    guest.run(f"echo mono >{TRACEFS}/trace_clock")
    for call in ("kexec_load", "kexec_file_load"):
        for edge in ("enter", "exit"):
            guest.run(f"echo 1 >{TRACEFS}/events/syscalls/sys_{edge}_{call}/enable")


def take(guest: GuestShell) -> tuple[Call, ...]:
    """The calls since the last time."""
    calls = parse(guest.read(f"{TRACEFS}/trace"))
    guest.run(f"echo >{TRACEFS}/trace")
    return calls


def unarmed_by(calls: Iterable[Call]) -> int:
    """Microseconds from the beginning of the first call to the end of the last."""
    calls = tuple(calls)
    return max(one.left for one in calls) - min(one.entered for one in calls)
