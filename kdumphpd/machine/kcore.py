"""``/proc/kcore``: the kernel's address map, and physical memory read back.

Its program headers (``fs/proc/kcore.c``) give the direct map's and the kernel
text's physical addresses since kernel 4.11 (commit 464920104bf7); other
regions show a physical address of all ones, or 0 before.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from types import TracebackType

from kdumphpd.errors import InputError, MachineError, PermissionMissingError
from kdumphpd.header import elf
from kdumphpd.machine import trust
from kdumphpd.machine.files import Root

KCORE = "/proc/kcore"
#: __START_KERNEL_map (arch/x86/include/asm/page_64_types.h): the kernel text is
#: mapped above it, the direct map below.
START_KERNEL_MAP = 0xFFFFFFFF80000000
#: Lowest direct map address with four-level paging; five-level ones are lower.
PAGE_OFFSET_4LEVEL = 0xFFFF800000000000
#: The direct map starts at a multiple of this, with KASLR too (arch/x86/mm/kaslr.c: PUD_SIZE).
_PAGE_OFFSET_ALIGNMENT = 1 << 30
_NO_ADDRESS = 0xFFFFFFFFFFFFFFFF
_KERNEL_HALF = 1 << 63
#: loff_t is signed: no file has more bytes.
_FILE_END = 1 << 63
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Mapping:
    """``size`` bytes at physical ``paddr``, mapped at ``vaddr``, at ``offset`` in kcore."""

    paddr: int
    vaddr: int
    size: int
    offset: int = 0


@dataclass(frozen=True)
class AddressMap:
    """What kcore's headers say: the text mapping, PAGE_OFFSET and the direct map's parts."""

    text: Mapping
    page_offset: int
    ram: tuple[Mapping, ...]

    @property
    def five_level(self) -> bool:
        """Whether the running kernel uses 5-level paging."""
        return self.page_offset < PAGE_OFFSET_4LEVEL


def parse(data: bytes) -> AddressMap:
    """Read kcore's ELF header and program headers from its first bytes.

    Raises:
        MachineError: it is no core file, or has no text or direct mapping.
    """
    headers = elf.program_headers(data)
    if headers is None:
        raise MachineError(f"{KCORE} is not a complete 64-bit ELF core header")
    text: Mapping | None = None
    ram: list[Mapping] = []
    for header in headers:
        mapping = Mapping(header.paddr, header.vaddr, header.memsz, header.offset)
        if header.type != elf.PT_LOAD or header.paddr == _NO_ADDRESS or not header.memsz:
            continue
        if header.vaddr < _KERNEL_HALF:
            continue
        if header.vaddr >= START_KERNEL_MAP:
            # Modules and vsyscall lie above the text; before 4.11's fix they have paddr 0.
            if header.paddr and text is None:
                text = mapping
        elif (header.vaddr - header.paddr) % _PAGE_OFFSET_ALIGNMENT == 0:
            ram.append(mapping)
    if text is None or not ram:
        raise MachineError(
            f"{KCORE} shows no {'kernel text' if text is None else 'direct map'}",
            "kdumphpd needs the physical addresses that kernels since 4.11 put there",
        )
    offsets = {one.vaddr - one.paddr for one in ram}
    if len(offsets) != 1:
        shown = ", ".join(f"{one:#x}" for one in sorted(offsets)[:4])
        raise MachineError(f"{KCORE} shows more than one direct map: {shown}")
    return AddressMap(text, offsets.pop(), tuple(ram))


class PhysicalMemory:
    """Physical memory through an open ``/proc/kcore``; close it, or use ``with``."""

    def __init__(self, root: Root) -> None:
        path = root.path(KCORE)
        try:
            self._fd = trust.open_regular(path)
        except PermissionError as error:
            raise PermissionMissingError(
                f"{path}: {error.strerror}",
                "run kdumphpd as root with CAP_SYS_RAWIO; lockdown=confidentiality forbids it",
            ) from error
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror}", "the kernel needs CONFIG_PROC_KCORE"
            ) from error
        self._parsed: tuple[bytes, AddressMap] | None = None

    def __enter__(self) -> PhysicalMemory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def address_map(self) -> AddressMap:
        """Read the headers anew: hotplug adds mappings and can move every file offset."""
        headers = self._pread(elf.EHDR.size, 0)
        extent = elf.core_extent(headers)
        if extent is not None:
            headers = self._pread(extent.size, 0)
        if self._parsed is None or self._parsed[0] != headers:
            self._parsed = (headers, parse(headers))
        return self._parsed[1]

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes of physical memory at ``address``.

        Raises:
            MachineError: kcore does not map all of it, or does not give it.
        """
        for mapping in self.address_map().ram:
            if mapping.paddr <= address and address + size <= mapping.paddr + mapping.size:
                data = self._pread(size, mapping.offset + address - mapping.paddr)
                if len(data) == size:
                    return data
        raise MachineError(f"{KCORE} does not give {size} bytes of memory at {address:#x}")

    def _pread(self, size: int, offset: int) -> bytes:
        parts = []
        if offset + size > _FILE_END:
            raise MachineError(f"{KCORE}: {size} bytes at {offset:#x} lie in no file")
        try:
            while size > 0:
                # In pieces: what is asked for is set aside before it is known to be there.
                part = os.pread(self._fd, min(size, _CHUNK), offset)
                if not part:
                    break
                parts.append(part)
                size -= len(part)
                offset += len(part)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "?")
            raise MachineError(f"{KCORE}: read at {offset:#x}: {name} {error.strerror}") from error
        return b"".join(parts)
