"""What a capture kernel needs to use EFI: how the running kernel has set up the firmware.

The firmware is told once in its life where its memory lies in virtual addresses
(SetVirtualAddressMap): whoever comes later must map it there again, and be told what the
system table no longer says, as its pointers are virtual by then. The running kernel shows
that below ``/sys/firmware/efi``, root only: ``runtime-map`` (drivers/firmware/efi/runtime-map.c)
and the addresses beside it (efi.c in arch/x86/platform/efi).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from kdumphpd.errors import KdumphpdError
from kdumphpd.machine.files import Root

_EFI = "/sys/firmware/efi"
_BOOT_PARAMS = "/sys/kernel/boot_params/data"
_HEX = re.compile(r"0x([0-9a-f]{1,16})")
_SMBIOS = re.compile(r"^SMBIOS=0x([0-9a-f]{1,16})$", re.MULTILINE)

#: struct efi_info { __u32 efi_loader_signature, efi_systab, efi_memdesc_size,
#: efi_memdesc_version, efi_memmap, efi_memmap_size, efi_systab_hi, efi_memmap_hi; },
#: arch/x86/include/uapi/asm/bootparam.h, at 0x1c0 of struct boot_params.
EFI_INFO = struct.Struct("<4s7I")
EFI_INFO_OFFSET = 0x1C0
#: EFI64_LOADER_SIGNATURE: a 64-bit kernel on 64-bit firmware.
LOADER_SIGNATURE = b"EL64"
MEMDESC_VERSION = 1

#: EFI_VA_END to EFI_VA_START (arch/x86/include/asm/pgtable_64_types.h): where kernels map
#: the firmware, at the same place after each boot. With efi=old_map, before 5.7, it was another.
_VIRTUAL = range((1 << 64) - (68 << 30), (1 << 64) - (4 << 30))
_PAGE = 4096
_MAX_RANGES = 1024  # early_memremap() in the capture kernel maps 256 KiB, which is more


@dataclass(frozen=True)
class RuntimeRange:
    """An efi_memory_desc_t: ``pages`` of 4096 bytes, where they are and where they are mapped."""

    type: int
    physical: int
    virtual: int
    pages: int
    attribute: int


@dataclass(frozen=True)
class EfiState:
    """The firmware as the running kernel has set it up; physical addresses.

    Attributes:
        systab: the system table.
        fw_vendor: the vendor's name.
        runtime: the runtime services' table, for capture kernels before 5.6.
        tables: the configuration tables.
        smbios: the SMBIOS entry point, 0 for none.
        ranges: the firmware's memory, in the kernel's order.
    """

    systab: int
    fw_vendor: int
    runtime: int
    tables: int
    smbios: int
    ranges: tuple[RuntimeRange, ...]


@dataclass(frozen=True)
class Efi:
    """What is known of the firmware.

    Attributes:
        state: None if there is no EFI, or it cannot be handed over.
        obstacle: why it cannot; empty if it can, or there is none.
    """

    state: EfiState | None = None
    obstacle: str = ""


class _UnusableError(Exception):
    """Something about the firmware is not as a capture kernel needs it."""


def read(root: Root) -> Efi:
    """Look at the firmware of the host under ``root``.

    Whatever is missing or odd is an obstacle and no error: a capture kernel that is told
    nothing of EFI boots, one that is told something wrong may not.
    """
    if not root.exists(_EFI):
        return Efi()
    try:
        return Efi(_state(root))
    except _UnusableError as problem:
        return Efi(obstacle=str(problem))
    except (KdumphpdError, OSError) as error:
        return Efi(obstacle=getattr(error, "problem", str(error)))


def _state(root: Root) -> EfiState:
    size = root.read_text(f"{_EFI}/fw_platform_size")
    if size != "64":
        raise _UnusableError(f"the firmware is {size[:8]}-bit")
    systab = _system_table(root.read_bytes(_BOOT_PARAMS))
    if not root.exists(f"{_EFI}/runtime-map"):
        # noefi, efi=noruntime, PREEMPT_RT, or a kernel without CONFIG_EFI_RUNTIME_MAP.
        raise _UnusableError("the running kernel does not use its runtime services")
    ranges = _ranges(root)
    if not any(one.physical <= systab < one.physical + one.pages * _PAGE for one in ranges):
        raise _UnusableError(f"no runtime range holds its system table at {systab:#x}")
    smbios = _SMBIOS.search(root.read_text(f"{_EFI}/systab"))
    fw_vendor, runtime, tables = (
        _address(root, name) for name in ("fw_vendor", "runtime", "config_table")
    )
    return EfiState(systab, fw_vendor, runtime, tables, int(smbios[1], 16) if smbios else 0, ranges)


def _system_table(boot_params: bytes) -> int:
    if len(boot_params) < EFI_INFO_OFFSET + EFI_INFO.size:
        raise _UnusableError(f"{_BOOT_PARAMS} is cut short")
    signature, low, _, version, _, map_size, high, _ = EFI_INFO.unpack_from(
        boot_params, EFI_INFO_OFFSET
    )
    systab = int(high) << 32 | int(low)
    if signature != LOADER_SIGNATURE or not systab or not map_size:
        raise _UnusableError("the running kernel was not told of it by its boot loader")
    if version != MEMDESC_VERSION:
        raise _UnusableError(f"its memory descriptors have version {version}")
    return systab


def _ranges(root: Root) -> tuple[RuntimeRange, ...]:
    names = [one.name for one in root.path(f"{_EFI}/runtime-map").iterdir()]
    # The kernel numbers them from 0 on, and lists them in any order.
    if not names or len(names) > _MAX_RANGES or set(names) != set(map(str, range(len(names)))):
        raise _UnusableError(f"its runtime-map has {len(names)} entries that are not numbered")
    return tuple(_range(root, f"{_EFI}/runtime-map/{number}") for number in range(len(names)))


def _range(root: Root, name: str) -> RuntimeRange:
    kind, physical, virtual, pages, attribute = (
        _number(root, f"{name}/{field}")
        for field in ("type", "phys_addr", "virt_addr", "num_pages", "attribute")
    )
    size = pages * _PAGE
    sane = (
        physical % _PAGE == 0 == virtual % _PAGE
        and pages > 0
        and physical + size <= 1 << 52
        and virtual in _VIRTUAL
        and virtual + size <= _VIRTUAL.stop
        and kind < 1 << 32
    )
    if not sane:
        raise _UnusableError(f"{name} maps {pages} pages at {physical:#x} to {virtual:#x}")
    return RuntimeRange(kind, physical, virtual, pages, attribute)


def _address(root: Root, name: str) -> int:
    address = _number(root, f"{_EFI}/{name}")
    # EFI_INVALID_TABLE_ADDR is all ones.
    if not 0 < address < 1 << 52:
        raise _UnusableError(f"{_EFI}/{name} is {address:#x}")
    return address


def _number(root: Root, name: str) -> int:
    text = root.read_text(name)
    match = _HEX.fullmatch(text)
    if match is None:
        raise _UnusableError(f"{name}: {text[:40]!r} is not a number")
    return int(match[1], 16)
