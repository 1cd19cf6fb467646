"""What a crash header lacks or has too much, set against the machine as it is now."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass

from kdumphpd.header.elfcorehdr import CoreHeader, Note
from kdumphpd.image.layout import PAGE
from kdumphpd.machine.kcore import Mapping
from kdumphpd.machine.ranges import Range, merge, subtract
from kdumphpd.machine.snapshot import Machine


class Verdict(enum.Enum):
    """Would a crash right now give a complete vmcore?"""

    COMPLETE = "complete"
    STALE = "stale"
    DAMAGED = "damaged"
    UNLOADED = "unloaded"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Difference:
    """CPUs by number and memory ranges on one side of the comparison."""

    cpus: tuple[int, ...] = ()
    memory: tuple[Range, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.cpus or self.memory)


@dataclass(frozen=True)
class Comparison:
    """A header against a machine.

    Attributes:
        cpus: present CPUs whose notes the header has.
        missing: what the machine has and the header lacks.
        extra: what the header has and the machine lacks; CPUs only where their
            number is known. Notes of CPUs that are not there are empty and harmless.
        problems: anything else that would spoil the vmcore, a sentence each.
    """

    cpus: tuple[int, ...]
    missing: Difference
    extra: Difference
    problems: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """`Verdict.COMPLETE` or `Verdict.STALE`."""
        complete = not (self.missing or self.extra.memory or self.problems)
        return Verdict.COMPLETE if complete else Verdict.STALE


def compare(header: CoreHeader, machine: Machine, known_notes: MappingOf[Note, int]) -> Comparison:
    """Set ``header`` against ``machine``; ``known_notes`` numbers the CPUs seen since boot."""
    # Whole notes: one of another size is cut off, or more than the crash kernel can allocate.
    in_header = frozenset(header.notes)
    cpus = tuple(number for number, note in machine.cpus if note in in_header)
    present = machine.cpu_numbers
    lacking = tuple(sorted(present.difference(cpus))) + machine.missing_notes
    gone = (
        number
        for note, number in known_notes.items()
        if note in in_header and number not in present
    )
    return Comparison(
        cpus=cpus,
        missing=Difference(tuple(sorted(lacking)), subtract(machine.ram, _pages(header.ram))),
        # Set against all RAM: some loaders list the first MiB too, which does no harm.
        extra=Difference(tuple(sorted(gone)), subtract(header.ram, _pages(machine.all_ram))),
        problems=tuple(_problems(header, machine)),
    )


def _pages(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Whole pages that ``ranges`` touch: what fs/proc/vmcore.c makes of a header's ranges."""
    return merge(
        Range(one.start // PAGE * PAGE, one.end // PAGE * PAGE + PAGE - 1) for one in ranges
    )


def _problems(header: CoreHeader, machine: Machine) -> list[str]:
    problems = []
    fixed = machine.fixed
    if fixed.vmcoreinfo not in header.notes:
        problems.append("the header has no vmcoreinfo note")
    if header.page_offset != fixed.addresses.page_offset:
        problems.append("the header's virtual addresses are not those of the direct map")
    text = fixed.addresses.text
    if header.text is None or not _maps(header.text, text):
        problems.append("the header does not map the kernel text")
    return problems


def _maps(outer: Mapping, inner: Mapping) -> bool:
    """Whether ``outer`` maps all of ``inner`` to where it lies; some loaders round it up."""
    return (
        outer.vaddr <= inner.vaddr
        and inner.vaddr + inner.size <= outer.vaddr + outer.size
        and inner.vaddr - inner.paddr == outer.vaddr - outer.paddr
    )
