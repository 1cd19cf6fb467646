"""How long no crash image was loaded, as the guest's kernel traces itself.

The same instrument for every loader, and none of ours: the tracepoints of
kexec_load(2) and kexec_file_load(2) (``kernel/trace/trace_syscalls.c``), and kprobe
events (``kernel/trace/trace_kprobe.c``) around the kernel's own update of the header.

Within either call nothing is loaded almost from its beginning to its end, whoever makes
it. do_kexec_load (``kernel/kexec.c``) frees the loaded image before it looks at the
segments. kexec_file_load (``kernel/kexec_file.c``) frees it before it reads the first
byte of the files; the new one takes its place after both files were read, the signature
checked, all segments hashed and copied. Both were so in 5.10 and still are in 6.16.
The kernel's own update (``kernel/crash_core.c``, crash_handle_hotplug_event, since 6.6)
frees nothing, but holds the kexec lock, and __crash_kexec (``kernel/kexec_core.c``, later
``kernel/crash_core.c``) gives up where that is taken: a panic dumps nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tests.vm.rig.guest_shell import GuestShell

TRACEFS = "/sys/kernel/tracing"
HANDLER = "crash_handle_hotplug_event"

# "  kexec-731  [000] .....    97.361284: sys_kexec_load(entry: 0, nr_segments: 0, ...)"
# "  kexec-731  [000] .....    97.361302: sys_kexec_load -> 0x0"
# "  kworker/u16:6-249  [000] .....    83.595479: handler_entered: (crash_handle_...)"
# "  kworker/u16:6-249  [000] .....    83.601871: handler_left: (... <- crash_handle_...)"
_LINE = re.compile(
    r"^\s*(?P<comm>.+)-(?P<pid>\d+)\s+\[\d+\]\s+\S+\s+(?P<seconds>\d+)\.(?P<fraction>\d{6}): "
    r"(?:(?P<call>sys_kexec_load|sys_kexec_file_load)"
    r"(?:\((?P<arguments>.*)\)| -> 0x(?P<result>[0-9a-f]+))"
    r"|handler_(?:entered|(?P<left>left)): .*)$"
)
_SEGMENTS = re.compile(r"nr_segments: ([0-9a-f]+)")
_MINUS_EINVAL = (1 << 64) - 22


@dataclass(frozen=True)
class Call:
    """One finished call; times in microseconds of the trace's clock.

    Attributes:
        name: the system call's, or `HANDLER`.
        comm: name of the thread.
        segments: how many, None for all but kexec_load.
        result: what it returned, 0 or a negative errno as unsigned.
    """

    name: str
    comm: str
    segments: int | None
    entered: int
    left: int
    result: int

    @property
    def usec(self) -> int:
        return self.left - self.entered

    @property
    def is_load(self) -> bool:
        """Whether it is a system call that took the kexec lock.

        kdumphpd/load/syscalls.py asks what is permitted by calls that end in EINVAL
        before that.
        """
        return self.name != HANDLER and self.result != _MINUS_EINVAL


def parse(text: str) -> tuple[Call, ...]:
    """Calls in the order in which they returned; other lines are passed over."""
    calls = []
    entered: dict[str, tuple[int, int | None]] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        usec = int(match["seconds"]) * 1_000_000 + int(match["fraction"])
        if match["result"] is None and match["left"] is None:
            segments = _SEGMENTS.search(match["arguments"] or "")
            entered[match["pid"]] = (usec, int(segments[1], 16) if segments else None)
        elif match["pid"] in entered:
            begin, count = entered.pop(match["pid"])
            name, result = match["call"] or HANDLER, int(match["result"] or "0", 16)
            calls.append(Call(name, match["comm"], count, begin, usec, result))
    return tuple(calls)


def start(guest: GuestShell) -> None:
    """Have the guest's kernel trace both calls, and its own handler if it has one."""
    guest.run(f"mountpoint -q {TRACEFS} || mount -t tracefs tracefs {TRACEFS}")
    guest.run(f"echo mono >{TRACEFS}/trace_clock")
    for call in ("kexec_load", "kexec_file_load"):
        for edge in ("enter", "exit"):
            guest.run(f"echo 1 >{TRACEFS}/events/syscalls/sys_{edge}_{call}/enable")
    if has_handler(guest):
        for probe in (f"p:bench/handler_entered {HANDLER}", f"r:bench/handler_left {HANDLER}"):
            guest.run(f"echo '{probe}' >>{TRACEFS}/kprobe_events")
        guest.run(f"echo 1 >{TRACEFS}/events/bench/enable")


def has_handler(guest: GuestShell) -> bool:
    """Whether the guest's kernel can update the header by itself."""
    return guest.try_run(f"grep -qw {HANDLER} {TRACEFS}/available_filter_functions")[0] == 0


def take(guest: GuestShell) -> tuple[Call, ...]:
    """The calls since the last time."""
    calls = parse(guest.read(f"{TRACEFS}/trace"))
    guest.run(f"echo >{TRACEFS}/trace")
    return calls


def loads(calls: Iterable[Call]) -> tuple[Call, ...]:
    """Those that loaded, unloaded, or kept others from it."""
    return tuple(one for one in calls if one.is_load)


def unarmed_by(calls: Iterable[Call]) -> int:
    """Microseconds from the beginning of the first call to the end of the last."""
    calls = tuple(calls)
    return max(one.left for one in calls) - min(one.entered for one in calls)
