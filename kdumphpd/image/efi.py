"""EFI in boot_params: what a capture kernel is told so that it can call the firmware again.

As the kernel's own loader tells it (``setup_efi_state``, arch/x86/kernel/kexec-bzimage64.c)
and kexec-tools (kexec/arch/i386/x86-linux-setup.c): ``efi_info`` with the runtime memory map,
and a node of type SETUP_EFI in the list of setup_data::

    struct efi_setup_data {               /* arch/x86/include/asm/efi.h */
        u64 fw_vendor;
        u64 runtime;                      /* __unused since 5.6 */
        u64 tables;
        u64 smbios;
        u64 reserved[8];
    };
    typedef struct {                      /* efi_memory_desc_t, include/linux/efi.h */
        u32 type, pad;
        u64 phys_addr, virt_addr, num_pages, attribute;
    };

The ranges themselves stay where they are, outside of the reservation: the capture kernel's
e820 map has them as reserved, as the running kernel's has.
"""

from __future__ import annotations

import struct

from kdumphpd.image.bzimage import BzImage, XLoadFlags
from kdumphpd.machine.efi import (
    EFI_INFO,
    EFI_INFO_OFFSET,
    LOADER_SIGNATURE,
    MEMDESC_VERSION,
    Efi,
    EfiState,
    RuntimeRange,
)

SETUP_EFI = 4
_SETUP_DATA = struct.Struct("<4Q64x")
_DESCRIPTOR = struct.Struct("<I4xQQQQ")


def usable(efi: Efi, kernel: BzImage, command_line: str) -> Efi:
    """``efi`` as ``kernel`` can use it with ``command_line``.

    A kernel without XLF_EFI_KEXEC (before 3.14) does not look at SETUP_EFI: it would tell the
    firmware once more where its memory lies, which the firmware takes a single time.
    """
    if efi.state is None:
        return efi
    if "noefi" in command_line.split():
        return Efi(obstacle="the command line says noefi")
    if XLoadFlags.EFI_KEXEC not in kernel.xloadflags:
        return Efi(obstacle="the kernel cannot take it over (no XLF_EFI_KEXEC)")
    return efi


def setup_data(state: EfiState) -> bytes:
    """What the SETUP_EFI node holds."""
    return _SETUP_DATA.pack(state.fw_vendor, state.runtime, state.tables, state.smbios)


def memory_map(state: EfiState) -> bytes:
    """The runtime memory map."""
    return b"".join(
        _DESCRIPTOR.pack(one.type, one.physical, one.virtual, one.pages, one.attribute)
        for one in state.ranges
    )


def put_info(segment: bytearray, state: EfiState, map_address: int) -> None:
    """Write efi_info into boot_params; the memory map lies at physical ``map_address``."""
    EFI_INFO.pack_into(
        segment,
        EFI_INFO_OFFSET,
        LOADER_SIGNATURE,
        state.systab & 0xFFFFFFFF,
        _DESCRIPTOR.size,
        MEMDESC_VERSION,
        map_address & 0xFFFFFFFF,
        len(state.ranges) * _DESCRIPTOR.size,
        state.systab >> 32,
        map_address >> 32,
    )


def parse(segment: bytes, address: int, data: bytes) -> EfiState | None:
    """Read back what a kernel would know of EFI; None if it is told nothing.

    Args:
        segment: a boot_params segment.
        address: where it lies.
        data: what its SETUP_EFI node holds.

    Raises:
        ValueError: the memory map leads out of the segment.
        struct.error: something is cut short.
    """
    signature, low, size, _, at, length, high, at_high = EFI_INFO.unpack_from(
        segment, EFI_INFO_OFFSET
    )
    if signature != LOADER_SIGNATURE:
        return None
    start = (at_high << 32 | at) - address
    if size != _DESCRIPTOR.size or not 0 <= start <= start + length <= len(segment):
        raise ValueError("the EFI memory map leads out of the segment")
    fw_vendor, runtime, tables, smbios = _SETUP_DATA.unpack_from(data)
    ranges = tuple(
        RuntimeRange(*one) for one in _DESCRIPTOR.iter_unpack(segment[start : start + length])
    )
    return EfiState(high << 32 | low, fw_vendor, runtime, tables, smbios, ranges)
