"""Unified kernel images: a PE file that carries a whole bzImage in its ``.linux`` section.

Source: the UAPI Group's Unified Kernel Image specification and Microsoft's PE
format. An EFI-stub bzImage is a PE file too, but has no such section.
"""

from __future__ import annotations

import struct

from kdumphpd.errors import ImageError
from kdumphpd.image.buffer import Sliceable
from kdumphpd.machine.ranges import Range

_NEW_HEADER = 0x3C  # e_lfanew of the MS-DOS header: where the PE header is
_SIGNATURE = b"PE\0\0"

# struct pe_hdr after its magic (include/linux/pe.h): machine, sections, timestamp,
# symbol_table, symbols, opt_hdr_size, flags.
_COFF = struct.Struct("<HHIIIHH")

# struct section_header: name[8], virtual_size, virtual_address, raw_data_size,
# data_addr, relocs, line_numbers, num_relocs, num_lin_numbers, flags.
_SECTION = struct.Struct("<8sIIIIIIHHI")
_LINUX = b".linux\0\0"


def linux_section(content: Sliceable, name: str) -> Range | None:
    """Where in the file the kernel is.

    With several profiles in one image the first kernel is the base profile's.

    Args:
        content: the file.
        name: what it is, for errors.

    Returns:
        The bytes of the section, or None if this is no UKI.

    Raises:
        ImageError: it is one, but its kernel is not in the file.
    """
    if len(content) < _NEW_HEADER + 4 or bytes(content[0:2]) != b"MZ":
        return None
    header = int.from_bytes(content[_NEW_HEADER : _NEW_HEADER + 4], "little")
    coff = header + len(_SIGNATURE)
    if coff + _COFF.size > len(content) or bytes(content[header:coff]) != _SIGNATURE:
        return None
    _, count, _, _, _, optional_size, _ = _COFF.unpack(content[coff : coff + _COFF.size])
    first = coff + _COFF.size + optional_size
    for start in range(first, first + count * _SECTION.size, _SECTION.size):
        if start + _SECTION.size > len(content):
            return None
        fields = _SECTION.unpack(content[start : start + _SECTION.size])
        if fields[0] == _LINUX:
            return _bytes_of(fields[1], fields[3], fields[4], len(content), name)
    return None


def _bytes_of(virtual: int, raw: int, offset: int, length: int, name: str) -> Range:
    # On disk a section is padded to the file alignment; what counts is its size
    # in memory, as systemd-stub and the kernel's own UKI parser take it.
    size = min(virtual, raw) if virtual else raw
    if size == 0 or offset + size > length:
        raise ImageError(
            f"{name} is a unified kernel image whose kernel (.linux, {size} bytes at {offset})"
            f" is not within its {length} bytes",
            "reinstall the kernel package",
        )
    return Range(offset, offset + size - 1)
