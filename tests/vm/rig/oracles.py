"""What the vmcore must hold and what it holds, by code that is not the product's.

Addresses are physical, ranges are (start, end) with both ends included.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import drgn
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

LOW_MEMORY = (0, (1 << 20) - 1)
"""Every kernel since 5.5 reserves the first MiB; crash images leave it out."""

KERNEL_TEXT = 0xFFFFFFFF80000000
"""__START_KERNEL_map (Documentation/arch/x86/x86_64/mm.rst): not the direct map."""

# struct elf_prstatus of x86_64 (include/linux/elfcore.h): pr_reg is at 112, in the
# order of struct user_regs_struct, where ip is the 17th of 27 unsigned longs.
_PRSTATUS_SIZE = 336
_PRSTATUS_IP = 112 + 16 * 8

_IOMEM_LINE = re.compile(r"^(?P<indent> *)(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) : (?P<name>.*)$")


def expected_ram(iomem: str, cma: str = "") -> list[tuple[int, int]]:
    """RAM that a vmcore must hold, from the text of /proc/iomem just before the crash.

    All of System RAM but for the first MiB, the crash kernel's own reservations and
    the GART aperture.

    Args:
        iomem: the text.
        cma: that of /sys/kernel/kexec/crash_cma_ranges: RAM that is reserved too.
    """
    ram, holes = [], [LOW_MEMORY, *cma_ranges(cma)]
    for line in iomem.splitlines():
        match = _IOMEM_LINE.match(line)
        if match is None:
            raise ValueError(f"not a line of /proc/iomem: {line!r}")
        span = (int(match["start"], 16), int(match["end"], 16))
        # At any depth: "System RAM (virtio_mem)" lies below its device.
        if match["name"].startswith("System RAM"):
            ram.append(span)
        elif match["name"].startswith("Crash kernel") or match["name"] == "GART":
            holes.append(span)
    if not any(end for _, end in ram):
        raise ValueError("no RAM in /proc/iomem: it was read without CAP_SYS_ADMIN")
    return _normal(ram, holes)


def cma_ranges(text: str) -> list[tuple[int, int]]:
    """The ranges of /sys/kernel/kexec/crash_cma_ranges."""
    pairs = (line.split("-") for line in text.splitlines())
    return [(int(start, 16), int(end, 16)) for start, end in pairs]


def ram_in_vmcore(header: Path) -> list[tuple[int, int]]:
    """Ranges of the direct map's PT_LOADs, joined where they touch."""
    with header.open("rb") as file:
        return ram_in_header(file)


def ram_in_header(header: BinaryIO) -> list[tuple[int, int]]:
    """Ranges of the direct map's PT_LOADs in an ELF header and what follows it."""
    loads = [
        (segment["p_paddr"], segment["p_paddr"] + segment["p_memsz"] - 1)
        for segment in ELFFile(header).iter_segments("PT_LOAD")
        if segment["p_vaddr"] < KERNEL_TEXT
    ]
    return _normal(loads, [])


def cpu_notes_in_vmcore(header: Path) -> int:
    """How many CPUs left their registers: NT_PRSTATUS notes with an instruction pointer."""
    count = 0
    with header.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_NOTE"):
            assert isinstance(segment, NoteSegment)
            for note in segment.iter_notes():
                if note["n_name"] == "CORE" and note["n_type"] == "NT_PRSTATUS":
                    registers = note["n_descdata"]
                    if len(registers) != _PRSTATUS_SIZE:
                        raise ValueError(f"NT_PRSTATUS of {len(registers)} bytes in {header}")
                    count += struct.unpack_from("<Q", registers, _PRSTATUS_IP)[0] != 0
    return count


def find_pattern(vmcore: Path, addresses: Iterable[int], pattern: bytes) -> bool:
    """Whether every one of ``addresses`` (at least one) holds ``pattern``, as drgn reads it."""
    program = drgn.Program()
    program.set_core_dump(str(vmcore))
    return _all_found(program, list(addresses), pattern)


def _all_found(program: drgn.Program, addresses: list[int], pattern: bytes) -> bool:
    if not addresses:
        return False
    try:
        return all(
            program.read(address, len(pattern), physical=True) == pattern for address in addresses
        )
    except drgn.FaultError:
        return False  # an address that the vmcore does not hold


def _normal(spans: list[tuple[int, int]], holes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cover ``spans`` without ``holes`` by the fewest ranges, in order.

    Sweeps over the ends of all ranges: an address counts while it is in some span
    and in no hole.
    """
    edges = sorted(
        [edge for start, end in spans for edge in ((start, 1, 0), (end + 1, -1, 0))]
        + [edge for start, end in holes for edge in ((start, 0, 1), (end + 1, 0, -1))]
    )
    covered: list[tuple[int, int]] = []
    in_spans = in_holes = 0
    for index, (position, span, hole) in enumerate(edges):
        in_spans, in_holes = in_spans + span, in_holes + hole
        until = edges[index + 1][0] if index + 1 < len(edges) else position
        if in_spans and not in_holes and until > position:
            if covered and covered[-1][1] + 1 == position:
                covered[-1] = (covered[-1][0], until - 1)
            else:
                covered.append((position, until - 1))
    return covered
