"""``crashkernel=...,cma``: memory that the crash kernel may use beside its reservation.

The running kernel has it for movable pages, and to ``/proc/iomem`` it is System RAM like
any other. The kernel's loader leaves it out of the header and gives it to the crash
kernel as RAM (``elf_header_exclude_ranges``, ``crash_setup_memmap_entries``,
arch/x86/kernel/crash.c). What it is made of is decided at boot, in at most four ranges
(``reserve_crashkernel_cma``, kernel/crash_reserve.c).
"""

from __future__ import annotations

import re
import struct

from kdumphpd.errors import MachineError
from kdumphpd.machine import symbols
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.ranges import Range, merge

_FILE = "/sys/kernel/kexec/crash_cma_ranges"
_ASKED = re.compile(r"(^|\s)crashkernel=\S*,cma(\s|$)")
_LINE = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,16})")
_COUNT, _RANGES = "crashk_cma_cnt", "crashk_cma_ranges"
_MAX_RANGES = 4  # CRASHKERNEL_CMA_RANGES_MAX
_INT = struct.Struct("<i")
_RANGE = struct.Struct("<QQ")  # struct range { u64 start, end; }, include/linux/range.h


def ranges(root: Root, memory: PhysicalMemory) -> tuple[Range, ...]:
    """What is reserved so, merged and sorted; nothing where the kernel does not know of it.

    The file came later than the feature: kernels 6.17 to 6.19 and backports have it in
    variables only.

    Raises:
        MachineError: there may be such memory and the kernel does not say where, or what
            it says makes no sense.
    """
    if root.exists(_FILE):
        return parse(root.read_text(_FILE))
    if not root.exists("/proc/cmdline") or not _ASKED.search(root.read_text("/proc/cmdline")):
        return ()
    found = symbols.addresses(root, (_COUNT, _RANGES))
    if not found:
        return ()  # such a kernel passes over the parameter
    if len(found) < 2 or not all(found.values()):
        raise MachineError(
            "the kernel does not say where the memory of crashkernel=...,cma is",
            "run kdumphpd as root with CAP_SYSLOG",
        )
    (count,) = _INT.unpack(symbols.read(memory, found[_COUNT], _INT.size))
    data = symbols.read(memory, found[_RANGES], _MAX_RANGES * _RANGE.size)
    pairs = list(_RANGE.iter_unpack(data))[: max(count, 0)]
    if not 0 <= count <= _MAX_RANGES or any(start > end for start, end in pairs):
        raise MachineError(f"the kernel's {_RANGES} hold no ranges")
    return merge(Range(start, end) for start, end in pairs)


def parse(text: str) -> tuple[Range, ...]:
    """``/sys/kernel/kexec/crash_cma_ranges``: a line ``start-end`` for each, in hexadecimal.

    Raises:
        MachineError: the content is something else.
    """
    found = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        start, end = (int(match[1], 16), int(match[2], 16)) if match else (1, 0)
        if start > end:
            raise MachineError(f"{_FILE}: {line[:60]!r} is not a range of addresses")
        found.append(Range(start, end))
    return merge(found)
