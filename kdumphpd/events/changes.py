"""What hotplug changed between two states of the machine, in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from kdumphpd.machine.ranges import Range, merge, subtract, total

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
_UNITS = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))

# A record's text stays readable; the audit's JSON has every range.
MAX_RANGES_NAMED = 6


@dataclass(frozen=True)
class Change:
    """Memory and CPUs that came or went.

    Memory ranges are merged, so that blocks which touch are one change; CPU
    numbers are sorted. ``block_size`` is the memory block size in bytes, 0 if
    not known.
    """

    memory_added: tuple[Range, ...] = ()
    memory_removed: tuple[Range, ...] = ()
    cpus_added: tuple[int, ...] = ()
    cpus_removed: tuple[int, ...] = ()
    block_size: int = 0

    @property
    def empty(self) -> bool:
        """Whether nothing changed."""
        return not (
            self.memory_added or self.memory_removed or self.cpus_added or self.cpus_removed
        )

    def __str__(self) -> str:
        parts = [
            *_memory(self.memory_added, "added", self.block_size),
            *_memory(self.memory_removed, "removed", self.block_size),
            *_cpus(self.cpus_added, "added"),
            *_cpus(self.cpus_removed, "removed"),
        ]
        return "; ".join(parts) or "no change"


def difference(
    ram_before: Iterable[Range],
    ram_after: Iterable[Range],
    cpus_before: Iterable[int],
    cpus_after: Iterable[int],
    block_size: int = 0,
) -> Change:
    """Compare two states.

    Args:
        ram_before: RAM as it was, ranges in any order.
        ram_after: RAM as it is.
        cpus_before: numbers of the CPUs present before.
        cpus_after: numbers of the CPUs present now.
        block_size: memory block size in bytes
            (/sys/devices/system/memory/block_size_bytes), 0 if not known.
    """
    ram_before, ram_after = merge(ram_before), merge(ram_after)
    before, after = frozenset(cpus_before), frozenset(cpus_after)
    return Change(
        memory_added=subtract(ram_after, ram_before),
        memory_removed=subtract(ram_before, ram_after),
        cpus_added=tuple(sorted(after - before)),
        cpus_removed=tuple(sorted(before - after)),
        block_size=block_size,
    )


def size_text(size: int) -> str:
    """Say ``size`` bytes as people read them: ``32 GiB``, ``1.7 GiB``, ``640 KiB``.

    A tenth of the unit is the finest; addresses and fields have the bytes.
    """
    if size < KIB:
        return "1 byte" if size == 1 else f"{size} bytes"
    # The largest unit of which there is one, after rounding: no 1024.0 MiB.
    unit, name = next(one for one in _UNITS if round(size / one[0], 1) >= 1)
    whole, rest = divmod(size, unit)
    return f"{size / unit:.1f} {name}" if rest else f"{whole} {name}"


def cpu_list(cpus: Iterable[int]) -> str:
    """Write CPU numbers as the kernel's CPU lists: ``0-3,8``."""
    # Consecutive numbers have the same distance from their position.
    runs = groupby(enumerate(sorted(set(cpus))), key=lambda pair: pair[1] - pair[0])
    return ",".join(_span([cpu for _, cpu in run]) for _, run in runs)


def _span(run: list[int]) -> str:
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"


def _memory(ranges: tuple[Range, ...], verb: str, block_size: int) -> list[str]:
    named = [
        f"memory {one}, {size_text(one.size)}{_blocks(one, block_size)} {verb}"
        for one in ranges[:MAX_RANGES_NAMED]
    ]
    rest = ranges[MAX_RANGES_NAMED:]
    if rest:
        noun = "range" if len(rest) == 1 else "ranges"
        named.append(f"{len(rest)} more memory {noun}, {size_text(total(rest))} {verb}")
    return named


def _blocks(one: Range, block_size: int) -> str:
    """Count blocks only if the range is made of whole ones."""
    if block_size <= 0 or one.start % block_size or one.size % block_size:
        return ""
    count = one.size // block_size
    return f", {count} block" if count == 1 else f", {count} blocks"


def _cpus(cpus: tuple[int, ...], verb: str) -> list[str]:
    if not cpus:
        return []
    return [f"{'cpu' if len(cpus) == 1 else 'cpus'} {cpu_list(cpus)} {verb}"]
