"""ELF64 little-endian headers, as far as core files and ``/proc/kcore`` need them.

Source: the ELF-64 object file format; ``include/uapi/linux/elf.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

#: unsigned char e_ident[16]; Half e_type, e_machine; Word e_version;
#: Addr e_entry; Off e_phoff, e_shoff; Word e_flags;
#: Half e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
#: Word p_type, p_flags; Off p_offset; Addr p_vaddr, p_paddr; Xword p_filesz, p_memsz, p_align
PHDR = struct.Struct("<IIQQQQQQ")

#: ELFCLASS64, ELFDATA2LSB, EV_CURRENT, ELFOSABI_NONE
IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
ET_CORE = 4
EM_X86_64 = 62
_EV_CURRENT = 1
PT_LOAD = 1
PT_NOTE = 4
PF_RWX = 7
#: e_phnum is 16 bits wide, and 0xffff (PN_XNUM) means "look elsewhere", which
#: fs/proc/vmcore.c does not do.
MAX_PHNUM = 0xFFFE


@dataclass(frozen=True)
class ProgramHeader:
    """One ELF64 program header; alignment is 0 in core headers and left out."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


def pack_core(headers: Iterable[ProgramHeader]) -> bytes:
    """An ET_CORE file header and ``headers`` behind it; at most `MAX_PHNUM` of them."""
    packed = [
        PHDR.pack(h.type, h.flags, h.offset, h.vaddr, h.paddr, h.filesz, h.memsz, 0)
        for h in headers
    ]
    if len(packed) > MAX_PHNUM:
        raise ValueError(f"{len(packed)} program headers, an ELF header counts {MAX_PHNUM}")
    kind = (IDENT, ET_CORE, EM_X86_64, _EV_CURRENT)
    sizes = (EHDR.size, PHDR.size, len(packed), 0, 0, 0)
    ehdr = EHDR.pack(*kind, 0, EHDR.size, 0, 0, *sizes)
    return ehdr + b"".join(packed)


@dataclass(frozen=True)
class CoreExtent:
    """Where the program headers of a core file lie; ``size`` counts from its first byte."""

    phoff: int
    phnum: int

    @property
    def size(self) -> int:
        """Bytes from the file's start to the end of its last program header."""
        return self.phoff + self.phnum * PHDR.size


def core_extent(data: bytes) -> CoreExtent | None:
    """Read the ELF header of an x86_64 core file; None if ``data`` is none.

    As strict as ``fs/proc/vmcore.c``, parse_crash_elf64_headers: a header that passes
    here is not refused in the crash kernel. That does not look at e_phoff and
    takes the program headers from behind the ELF header, so they must be there.
    """
    if len(data) < EHDR.size:
        return None
    ident, kind, machine, version, _, phoff, _, _, *sizes = EHDR.unpack_from(data)
    ehsize, phentsize, phnum = sizes[:3]
    # EI_MAG to EI_VERSION; EI_OSABI behind them differs between loaders.
    if ident[:7] != IDENT[:7] or (kind, machine, version) != (ET_CORE, EM_X86_64, _EV_CURRENT):
        return None
    if (phoff, ehsize, phentsize) != (EHDR.size, EHDR.size, PHDR.size) or phnum == 0:
        return None
    return CoreExtent(phoff, phnum)


def program_headers(data: bytes) -> tuple[ProgramHeader, ...] | None:
    """All program headers of a core file; None if it is none or is cut off."""
    extent = core_extent(data)
    if extent is None or len(data) < extent.size:
        return None
    table = memoryview(data)[extent.phoff : extent.size]
    return tuple(ProgramHeader(*fields[:7]) for fields in PHDR.iter_unpack(table))
