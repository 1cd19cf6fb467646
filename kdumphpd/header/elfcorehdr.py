"""The elfcorehdr: build it for a machine, and read one back.

The order and fields are those of ``kernel/crash_core.c``,
``crash_prepare_elf64_headers``: one PT_NOTE per CPU, one for vmcoreinfo, the
kernel text, then the RAM ranges; ``p_offset`` is the physical address,
alignments are 0. ``fs/proc/vmcore.c`` reads it in the crash kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdumphpd.errors import MachineError
from kdumphpd.header import elf
from kdumphpd.machine.kcore import START_KERNEL_MAP, Mapping
from kdumphpd.machine.ranges import Range, merge

#: CRASH_MAX_MEMORY_RANGES, the default of CONFIG_CRASH_MAX_MEMORY_RANGES in arch/x86/Kconfig.
RANGES_FORESEEN = 8192
#: kexec-tools on x86 saves what lies below in a backup region (kernels before 5.5 need it).
_BACKUP_END = 640 << 10


@dataclass(frozen=True)
class Note:
    """A note buffer in memory: a CPU's crash_notes, or vmcoreinfo."""

    address: int
    size: int


@dataclass(frozen=True)
class CoreHeader:
    """What an elfcorehdr says: note buffers, the kernel text mapping, RAM (merged)."""

    notes: tuple[Note, ...]
    text: Mapping | None
    ram: tuple[Range, ...]
    page_offset: int | None


def build(
    notes: Sequence[Note],
    vmcoreinfo: Note,
    text: Mapping,
    ram: Sequence[Range],
    page_offset: int,
) -> bytes:
    """The bytes of an elfcorehdr.

    Args:
        notes: crash_notes of every present CPU.
        vmcoreinfo: the vmcoreinfo note.
        text: where the kernel text lies and is mapped.
        ram: dumpable ranges, merged and sorted.
        page_offset: virtual address of physical address 0 in the direct map.

    Raises:
        MachineError: more program headers than an ELF header can count.
    """
    if len(notes) + 2 + len(ram) > elf.MAX_PHNUM:
        raise MachineError(
            f"{len(notes)} CPUs and {len(ram)} memory ranges need more than the "
            f"{elf.MAX_PHNUM} program headers of an ELF file",
            "online memory in larger pieces, so that neighbours merge",
        )
    headers = [_note(note) for note in notes]
    headers.append(_note(vmcoreinfo))
    headers.append(_load(text.paddr, text.vaddr, text.size))
    headers.extend(_load(one.start, page_offset + one.start, one.size) for one in ram)
    return elf.pack_core(headers)


def _note(note: Note) -> elf.ProgramHeader:
    return elf.ProgramHeader(elf.PT_NOTE, 0, note.address, 0, note.address, note.size, note.size)


def _load(paddr: int, vaddr: int, size: int) -> elf.ProgramHeader:
    vaddr &= 0xFFFFFFFFFFFFFFFF
    return elf.ProgramHeader(elf.PT_LOAD, elf.PF_RWX, paddr, vaddr, paddr, size, size)


def parse(data: bytes) -> CoreHeader | None:
    """What ``data`` says, of any loader's header; None if it is no complete core header.

    ``fs/proc/vmcore.c`` reads notes and memory at p_offset, and only hands p_paddr on. Where
    the two differ, the vmcore would show other memory under that address, so it counts
    as not there. kexec-tools means it so for one range, its backup of the first 640 KiB.
    """
    headers = elf.program_headers(data)
    if headers is None:
        return None
    notes: list[Note] = []
    ram: list[Range] = []
    offsets: set[int] = set()
    text: Mapping | None = None
    for header in headers:
        if header.type == elf.PT_NOTE:
            notes.append(Note(header.offset, header.memsz))
        elif header.type != elf.PT_LOAD or header.memsz == 0 or _reads_elsewhere(header):
            continue
        elif header.vaddr >= START_KERNEL_MAP:
            text = Mapping(header.paddr, header.vaddr, header.memsz)
        else:
            ram.append(Range(header.paddr, header.paddr + header.memsz - 1))
            offsets.add(header.vaddr - header.paddr)
    page_offset = offsets.pop() if len(offsets) == 1 else None
    return CoreHeader(tuple(notes), text, merge(ram), page_offset)


def _reads_elsewhere(header: elf.ProgramHeader) -> bool:
    return header.offset != header.paddr and header.paddr >= _BACKUP_END


def reserve_size(possible_cpus: int, ranges: int, kernel_size: int = 0) -> int:
    """Bytes to reserve for a header that may grow, a multiple of the page size.

    Args:
        possible_cpus: CPUs that can ever be present.
        ranges: RAM ranges now; room for four times as many, and at least `RANGES_FORESEEN`.
        kernel_size: ``crash_elfcorehdr_size``, or 0. The kernel's figure leaves out the
            ELF header itself (kernel/crash_core.c adds it afterwards), hence 64 bytes more.
    """
    headers = possible_cpus + 2 + max(RANGES_FORESEEN, 4 * ranges)
    size = elf.EHDR.size + min(headers, elf.MAX_PHNUM) * elf.PHDR.size
    return -(-max(size, kernel_size + elf.EHDR.size) // 4096) * 4096
