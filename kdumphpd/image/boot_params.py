"""The boot_params segment: ``struct boot_params``, the command line, what setup_data lists.

``struct boot_params`` (the "zero page", ``arch/x86/include/uapi/asm/bootparam.h``)
as far as it is touched here; whatever is not in the list stays as the running
kernel got it from its own boot loader (``/sys/kernel/boot_params/data``):
screen_info, acpi_rsdp_addr, EDD and the like::

    0x000  struct screen_info screen_info;  /* ext_mem_k at 0x002 */
    0x040  struct apm_bios_info apm_bios_info;
    0x058  __u64 tboot_addr;
    0x070  __u64 acpi_rsdp_addr;
    0x080  __u8 hd0_info[16], hd1_info[16];
    0x0c0  __u32 ext_ramdisk_image, ext_ramdisk_size, ext_cmd_line_ptr;
    0x1c0  struct efi_info efi_info;
    0x1e0  __u32 alt_mem_k, scratch;
    0x1e8  __u8 e820_entries;
    0x1ef  __u8 sentinel;
    0x1f1  struct setup_header hdr;
             0x210 __u8 type_of_loader;  0x218 __u32 ramdisk_image, ramdisk_size;
             0x228 __u32 cmd_line_ptr;   0x23c __u32 hardware_subarch;
             0x250 __u64 setup_data;
    0x290  __u32 edd_mbr_sig_buffer[16];
    0x2d0  struct boot_e820_entry e820_table[128];
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdumphpd.errors import ImageError, MachineError
from kdumphpd.image import efi as efi_info
from kdumphpd.image.bzimage import SETUP_HEADER, SETUP_HEADER_LIMIT, BzImage
from kdumphpd.image.e820 import E820Entry, E820Type
from kdumphpd.machine.efi import EfiState
from kdumphpd.machine.ranges import Range

BOOT_PARAMS_SIZE = 4096
E820_MAX_ENTRIES_ZEROPAGE = 128

#: 0xd is the kexec family in boot.rst's table of boot loaders, in the upper four
#: bits; the kernel's own kexec_file_load writes the same.
TYPE_OF_LOADER = 0xD0

_SETUP_E820_EXT = 1
_E820_ENTRY = struct.Struct("<QQI")  # struct boot_e820_entry { __u64 addr, size; __u32 type; }
_SETUP_DATA = struct.Struct("<QII")  # struct setup_data { __u64 next; __u32 type, len; }
_ALIGNMENT = 8
#: As long as a list of setup_data can be; a kernel follows it without looking.
_MAX_NODES = 16

#: What must not reach the capture kernel, [start, end). As kexec_file_load does
#: (setup_boot_parameters, arch/x86/kernel/kexec-bzimage64.c): no BIOS memory
#: sizes, APM or disk geometry; no tboot page, and no EFI memory map of a time when the
#: firmware was not set up yet. A sentinel that is not 0 would make the kernel clear most
#: of the page (sanitize_boot_params).
_CLEARED = (
    (0x002, 0x004),  # screen_info.ext_mem_k
    (0x040, 0x054),  # apm_bios_info
    (0x058, 0x060),  # tboot_addr
    (0x080, 0x0A0),  # hd0_info, hd1_info
    (0x0C0, 0x0CC),  # ext_ramdisk_image, ext_ramdisk_size, ext_cmd_line_ptr
    (0x1C0, 0x1E0),  # efi_info
    (0x1E0, 0x1E8),  # alt_mem_k, scratch
    (0x1E8, 0x1E9),  # e820_entries
    (0x1EF, 0x1F0),  # sentinel
    (SETUP_HEADER, SETUP_HEADER_LIMIT),  # hdr
    (0x2D0, 0x2D0 + E820_MAX_ENTRIES_ZEROPAGE * _E820_ENTRY.size),  # e820_table
)


@dataclass(frozen=True)
class _Offsets:
    """Where in the segment what does not fit into struct boot_params begins."""

    e820: int
    efi: int
    efi_map: int
    end: int

    @classmethod
    def of(cls, command_line: bytes, e820: Sequence[E820Entry], efi: EfiState | None) -> _Offsets:
        end = BOOT_PARAMS_SIZE + len(command_line) + 1
        first = _aligned(end)
        extended = len(e820) - E820_MAX_ENTRIES_ZEROPAGE
        if extended > 0:
            end = first + _SETUP_DATA.size + extended * _E820_ENTRY.size
        node = _aligned(end)
        efi_map = node
        if efi is not None:
            efi_map = _aligned(node + _SETUP_DATA.size + len(efi_info.setup_data(efi)))
            end = efi_map + len(efi_info.memory_map(efi))
        return cls(first, node, efi_map, end)


def segment_size(
    command_line: bytes, e820: Sequence[E820Entry], efi: EfiState | None = None
) -> int:
    """Bytes of the segment that `build` returns for these."""
    return _Offsets.of(command_line, e820, efi).end


def build(
    base: bytes,
    kernel: BzImage,
    address: int,
    command_line: bytes,
    initrd: Range | None,
    e820: Sequence[E820Entry],
    efi: EfiState | None = None,
) -> bytes:
    """Make the segment: boot_params, the command line, entries beyond 128 of the map, EFI.

    Args:
        base: ``/sys/kernel/boot_params/data`` of the running kernel.
        kernel: the kernel that will be entered with it.
        address: physical address of the segment, a multiple of 8.
        command_line: complete, with ``elfcorehdr=``; without a final zero.
        initrd: physical addresses, None for no initrd.
        e820: the capture kernel's memory map.
        efi: the firmware as it has been set up; None to say nothing of it.

    Raises:
        ImageError: the command line does not fit or holds a zero byte.
        MachineError: ``base`` is not a whole boot_params.
    """
    if len(base) != BOOT_PARAMS_SIZE:
        raise MachineError(
            f"/sys/kernel/boot_params/data has {len(base)} bytes, not {BOOT_PARAMS_SIZE}",
            "check that /sys is mounted and whole",
        )
    check_command_line(kernel, command_line)
    offsets = _Offsets.of(command_line, e820, efi)
    segment = bytearray(offsets.end)
    segment[:BOOT_PARAMS_SIZE] = base
    for start, end in _CLEARED:
        segment[start:end] = bytes(end - start)
    _put_setup_header(segment, base, kernel)
    _put_initrd(segment, initrd)
    _put_command_line(segment, address, command_line)
    if efi is not None:
        _put_efi(segment, address, efi, offsets)
    _put_e820(segment, address, e820, offsets.e820)
    return bytes(segment)


def check_command_line(kernel: BzImage, command_line: bytes) -> None:
    """Refuse a command line that ``kernel`` would cut off.

    Raises:
        ImageError: it is longer than the kernel's limit or holds a zero byte.
    """
    if len(command_line) > kernel.cmdline_size:
        excess = len(command_line) - kernel.cmdline_size
        raise ImageError(
            f"the command line has {len(command_line)} bytes, the kernel takes "
            f"{kernel.cmdline_size}",
            f"shorten it by {excess}",
        )
    if b"\0" in command_line:
        raise ImageError("the command line holds a zero byte", "remove it")


def _put_setup_header(segment: bytearray, base: bytes, kernel: BzImage) -> None:
    header = kernel.setup_header[: SETUP_HEADER_LIMIT - SETUP_HEADER]
    segment[SETUP_HEADER : SETUP_HEADER + len(header)] = header
    segment[0x210] = TYPE_OF_LOADER
    # It says what machine this is, not what kernel: taken over from the running one.
    segment[0x23C:0x240] = base[0x23C:0x240]
    struct.pack_into("<Q", segment, 0x250, 0)  # setup_data


def _put_initrd(segment: bytearray, initrd: Range | None) -> None:
    start, size = (initrd.start, initrd.size) if initrd else (0, 0)
    struct.pack_into("<II", segment, 0x218, _low(start), _low(size))
    struct.pack_into("<II", segment, 0x0C0, _high(start), _high(size))


def _put_command_line(segment: bytearray, address: int, command_line: bytes) -> None:
    pointer = address + BOOT_PARAMS_SIZE
    struct.pack_into("<I", segment, 0x228, _low(pointer))
    struct.pack_into("<I", segment, 0x0C8, _high(pointer))
    segment[BOOT_PARAMS_SIZE : BOOT_PARAMS_SIZE + len(command_line)] = command_line


def _put_efi(segment: bytearray, address: int, efi: EfiState, offsets: _Offsets) -> None:
    efi_info.put_info(segment, efi, address + offsets.efi_map)
    content = efi_info.memory_map(efi)
    segment[offsets.efi_map : offsets.efi_map + len(content)] = content
    data = efi_info.setup_data(efi)
    _put_node(segment, address, offsets.efi, efi_info.SETUP_EFI, len(data))
    start = offsets.efi + _SETUP_DATA.size
    segment[start : start + len(data)] = data


def _put_e820(
    segment: bytearray, address: int, e820: Sequence[E820Entry], extended_at: int
) -> None:
    if len(e820) > E820_MAX_ENTRIES_ZEROPAGE:
        # The decompressor reads e820_table only: let it see all RAM there.
        e820 = sorted(e820, key=lambda one: one.type != E820Type.RAM)
    table, extended = e820[:E820_MAX_ENTRIES_ZEROPAGE], e820[E820_MAX_ENTRIES_ZEROPAGE:]
    segment[0x1E8] = len(table)
    _put_entries(segment, 0x2D0, table)
    if extended:
        size = len(extended) * _E820_ENTRY.size
        _put_node(segment, address, extended_at, _SETUP_E820_EXT, size)
        _put_entries(segment, extended_at + _SETUP_DATA.size, extended)


def _put_node(segment: bytearray, address: int, offset: int, kind: int, size: int) -> None:
    """Begin a node of setup_data, the first of the list from now on."""
    (following,) = struct.unpack_from("<Q", segment, 0x250)
    _SETUP_DATA.pack_into(segment, offset, following, kind, size)
    struct.pack_into("<Q", segment, 0x250, address + offset)


def _put_entries(segment: bytearray, offset: int, entries: Sequence[E820Entry]) -> None:
    for index, one in enumerate(entries):
        place = offset + index * _E820_ENTRY.size
        _E820_ENTRY.pack_into(segment, place, one.start, one.size, one.type)


@dataclass(frozen=True)
class BootParams:
    """What a boot_params segment tells a kernel."""

    command_line: bytes
    initrd: Range | None
    e820: tuple[E820Entry, ...]
    acpi_rsdp_addr: int
    type_of_loader: int
    efi: EfiState | None


def parse(segment: bytes, address: int) -> BootParams:
    """Read back a segment that lies at ``address``, as its kernel would.

    Raises:
        ValueError: a pointer leads out of the segment, or a table is cut off.
    """
    try:
        initrd_start, initrd_size = _split(segment, 0x218, 0x0C0), _split(segment, 0x21C, 0x0C4)
        start = _split(segment, 0x228, 0x0C8) - address
        end = segment.index(b"\0", start) if 0 < start < len(segment) else -1
        if end < 0:
            raise ValueError("cmd_line_ptr leads out of the segment")
        nodes = dict(_read_setup_data(segment, address))
        extended = nodes.get(_SETUP_E820_EXT, b"")
        count = min(segment[0x1E8], E820_MAX_ENTRIES_ZEROPAGE)
        return BootParams(
            command_line=bytes(segment[start:end]),
            initrd=Range(initrd_start, initrd_start + initrd_size - 1) if initrd_size else None,
            e820=(
                *_read_entries(segment, 0x2D0, count),
                *_read_entries(extended, 0, len(extended) // _E820_ENTRY.size),
            ),
            acpi_rsdp_addr=struct.unpack_from("<Q", segment, 0x070)[0],
            type_of_loader=segment[0x210],
            efi=efi_info.parse(segment, address, nodes.get(efi_info.SETUP_EFI, b"")),
        )
    except (struct.error, IndexError) as error:
        raise ValueError(f"the boot_params segment is cut off: {error}") from error


def _read_setup_data(segment: bytes, address: int) -> Iterator[tuple[int, bytes]]:
    """Type and content of each node."""
    (following,) = struct.unpack_from("<Q", segment, 0x250)
    for _ in range(_MAX_NODES):
        if not following:
            return
        node = following - address
        if not 0 <= node < len(segment):
            raise ValueError("setup_data leads out of the segment")
        following, kind, size = _SETUP_DATA.unpack_from(segment, node)
        start = node + _SETUP_DATA.size
        if start + size > len(segment):
            raise ValueError("setup_data is cut off")
        yield kind, bytes(segment[start : start + size])
    raise ValueError("setup_data does not end")


def _read_entries(segment: bytes, offset: int, count: int) -> tuple[E820Entry, ...]:
    if offset + count * _E820_ENTRY.size > len(segment):
        raise ValueError("an e820 table leads out of the segment")
    return tuple(
        E820Entry(*_E820_ENTRY.unpack_from(segment, offset + index * _E820_ENTRY.size))
        for index in range(count)
    )


def _split(segment: bytes, low: int, high: int) -> int:
    parts = (struct.unpack_from("<I", segment, offset)[0] for offset in (high, low))
    return int(next(parts)) << 32 | int(next(parts))


def _low(value: int) -> int:
    return value & 0xFFFFFFFF


def _high(value: int) -> int:
    return value >> 32


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
