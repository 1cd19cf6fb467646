"""The boot_params that the running kernel was started with, with its ACPI tables' address."""

from __future__ import annotations

import re
import struct

from kdumphpd.machine.files import Root

_DATA = "/sys/kernel/boot_params/data"
_SYSTAB = "/sys/firmware/efi/systab"
_ACPI_RSDP_ADDR = struct.Struct("<Q")  # __u64 acpi_rsdp_addr, at 0x070
_OFFSET = 0x070

#: One line for each table; the ACPI 2.0 one comes first, as its XSDT is to be
#: preferred (arch/x86/platform/efi/efi.c, efi_systab_show_arch).
_LINE = re.compile(r"^ACPI(?:20)?=0x([0-9a-f]{1,16})$", re.MULTILINE)


def read(root: Root) -> bytes:
    """``/sys/kernel/boot_params/data``, with acpi_rsdp_addr where the firmware has it.

    A capture kernel without EFI services finds its ACPI tables by that field alone.
    The decompressor fills it in, but since Linux 6.6, and in later releases of 6.1, the
    EFI stub goes around the decompressor (a1b87d54f4e4) and leaves 0. The kernel's own
    loader takes the address from the same table (e00ac9e5afb5).

    Raises:
        InputError, PermissionMissingError: a file is missing or cannot be read.
    """
    data = root.read_bytes(_DATA)
    if not root.exists(_SYSTAB):
        return data
    return with_rsdp(data, rsdp(root.read_text(_SYSTAB)))


def rsdp(systab: str) -> int:
    """Physical address of the RSDP in the text of ``/sys/firmware/efi/systab``; 0 for none."""
    match = _LINE.search(systab)
    return int(match[1], 16) if match else 0


def with_rsdp(data: bytes, address: int) -> bytes:
    """``data`` with ``address`` as acpi_rsdp_addr, unless it has one or is cut short."""
    end = _OFFSET + _ACPI_RSDP_ADDR.size
    if len(data) < end or _ACPI_RSDP_ADDR.unpack_from(data, _OFFSET) != (0,):
        return data
    return data[:_OFFSET] + _ACPI_RSDP_ADDR.pack(address) + data[end:]
