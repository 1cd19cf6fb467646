"""The memory map that the capture kernel is given, as e820 entries.

The capture kernel may use the reservation, with what crashkernel=...,cma adds, and low
memory only. It learns of the
ACPI and reserved areas too, because it looks for tables there and believes in a
PCI ECAM window only if that is reserved. The kernel's own loader makes the same
map (``crash_setup_memmap_entries`` in ``arch/x86/kernel/crash.c``).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdumphpd.machine.iomem import LOW_MEMORY, Resource
from kdumphpd.machine.ranges import Range, subtract

#: Smaller pieces of RAM are no page; the kernel's loader leaves them out too.
_PAGE_SIZE = 4096


class E820Type(enum.IntEnum):
    """``enum e820_type`` of ``arch/x86/include/asm/e820/types.h``."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4


@dataclass(frozen=True, order=True)
class E820Entry:
    """``struct boot_e820_entry``: ``size`` bytes at ``start``, a type of `E820Type`."""

    start: int
    size: int
    type: int

    @property
    def range(self) -> Range:
        """The addresses that the entry is about."""
        return Range(self.start, self.start + self.size - 1)

    def __str__(self) -> str:
        known = {one.value: one.name for one in E820Type}
        return f"{self.range} {known.get(self.type, f'type {self.type}')}"


#: e820_type_to_string in arch/x86/kernel/e820.c; older kernels write "reserved".
_TYPES = {
    "ACPI Tables": E820Type.ACPI,
    "ACPI Non-volatile Storage": E820Type.NVS,
    "Reserved": E820Type.RESERVED,
    "reserved": E820Type.RESERVED,
}

#: Which type an address has that two resources claim: the stricter one.
_STRICTEST_FIRST = (E820Type.NVS, E820Type.ACPI, E820Type.RESERVED)


def capture_map(
    resources: Sequence[Resource], crash: Sequence[Range], elfcorehdr: Range
) -> tuple[E820Entry, ...]:
    """The capture kernel's memory map, sorted, without overlaps.

    Args:
        resources: all of ``/proc/iomem``, nested lines too: a reserved area may
            lie below a PCI window or ECAM resource.
        crash: the ``Crash kernel`` ranges, low and high, and those of crashkernel=...,cma.
        elfcorehdr: its whole reserve. It is no RAM to the capture kernel, which
            would otherwise overwrite it; to read it, no entry is needed.
    """
    claims = {
        kind: [one.range for one in resources if _TYPES.get(one.name) == kind]
        for kind in _STRICTEST_FIRST
    }
    # The reservation is RAM in use; nothing else can be in it.
    taken: list[Range] = list(crash)
    entries: list[E820Entry] = []
    for kind in _STRICTEST_FIRST:
        entries += _entries(subtract(claims[kind], taken), kind)
        taken += claims[kind]
    low = (clipped for one in resources for clipped in _low_ram(one))
    entries += _entries(subtract(low, taken), E820Type.RAM, smallest=_PAGE_SIZE)
    entries += _entries(subtract(crash, [elfcorehdr]), E820Type.RAM, smallest=_PAGE_SIZE)
    return tuple(sorted(entries))


def _low_ram(resource: Resource) -> Iterable[Range]:
    # The capture kernel's real-mode trampolines must lie in the first MiB
    # (reserve_real_mode); the dead kernel kept nothing there that a dump needs.
    start, end = resource.range.start, min(resource.range.end, LOW_MEMORY.end)
    if resource.name.startswith("System RAM") and start <= end:
        yield Range(start, end)


def _entries(ranges: Iterable[Range], kind: E820Type, smallest: int = 1) -> list[E820Entry]:
    return [E820Entry(one.start, one.size, kind) for one in ranges if one.size >= smallest]
