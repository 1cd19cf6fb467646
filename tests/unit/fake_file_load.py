"""Where ``kexec_file_load(2)`` puts what: pure, sharing no code with kdumphpd.

Written from ``kernel/kexec_file.c`` (kexec_add_buffer and what it calls) and
``arch/x86/kernel/kexec-bzimage64.c`` (bzImage64_load), page by page as they search.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

from kdumphpd.machine.ranges import Range
from tests.unit import fake_kexec
from tests.unit.fake_kexec import PAGE, Place

#: MAX_ELFCOREHDR_STR_LEN, MAX_DMCRYPTKEYS_STR_LEN.
_ELFCOREHDR_STRING, _KEYS_STRING = 30, 31
#: sizeof(struct dm_crypt_key): a size, 128 bytes of description, 256 bytes of key.
_KEY = 4 + 128 + 256
_MIN_KERNEL, _MIN_INITRD, _MIN_LOW = 0x100000, 0x1000000, 0x3000
_USHRT_MAX = 65535


@dataclass(frozen=True)
class Ways:
    """In what kernels differ.

    Attributes:
        short_of_end: locate_mem_hole_top_down before commit 816d334afa85: from temp_end - memsz.
        purgatory: bytes of memory; 0x5000 was seen on 6.1 and 6.12.
        measurements: bytes that ima_add_kexec_buffer takes for a crash image too; 0 for none.
        keys: how many dm-crypt keys there are.
        keys_at: get_random_bytes of kexec_random_range_start, 0 to 65535.
        efi_map: bytes of EFI's runtime map.
        setup_data: bytes of what CONFIG_IMA_KEXEC and CONFIG_KEXEC_HANDOVER add, at most 80.
    """

    short_of_end: bool = False
    purgatory: int = 0x5000
    measurements: int = 0
    keys: int = 0
    keys_at: int = 0
    efi_map: int = 0
    setup_data: int = 0


@dataclass(frozen=True)
class Search:
    """struct kexec_buf, as far as it tells where to look."""

    name: str
    memsz: int
    bufsz: int
    align: int = PAGE
    low: int = 0
    top_down: bool = True
    random: int | None = None


def searches(
    kernel: bytes, initrd: int, command_line: bytes, elfcorehdr: int, ways: Ways
) -> list[Search]:
    """The buffers in the order in which they are added.

    Args:
        kernel: a bzImage.
        initrd: bytes.
        command_line: without its final zero.
        elfcorehdr: bytes.
        ways: the running kernel's.
    """
    found = []
    if ways.measurements:
        size = -(-(ways.measurements + PAGE // 2) // PAGE) * PAGE
        found.append(Search("measurements", size, size))
    found.append(Search("elfcorehdr", elfcorehdr, elfcorehdr, top_down=False))
    params = 4096 + len(command_line) + 1 + _ELFCOREHDR_STRING
    if ways.keys:
        size = 4 + _KEY * ways.keys
        found.append(Search("keys", size, size, top_down=False, random=ways.keys_at))
        params += _KEYS_STRING
    found.append(Search("purgatory", ways.purgatory, ways.purgatory, low=_MIN_LOW))
    params = _align(params, 16) + _align(ways.efi_map, 16) + 16 + 96 + 16 + 32 + ways.setup_data
    found.append(Search("boot_params", params, params, low=_MIN_LOW))
    setup = ((kernel[0x1F1] or 4) + 1) * 512
    (alignment,) = struct.unpack_from("<I", kernel, 0x230)
    preferred, init_size = struct.unpack_from("<QI", kernel, 0x258)
    lowest = max(preferred, _MIN_KERNEL)
    found.append(Search("kernel", init_size, len(kernel) - setup, alignment, lowest))
    found.append(Search("initrd", initrd, initrd, low=_MIN_INITRD))
    return found


def command_line_errno(kernel: bytes, command_line: bytes, ways: Ways) -> int:
    """bzImage64_load before it places anything: cmdline_len counts the final zero."""
    (limit,) = struct.unpack_from("<I", kernel, 0x238)
    added = _ELFCOREHDR_STRING + (_KEYS_STRING if ways.keys else 0)
    return errno.EINVAL if len(command_line) + 1 + added > limit else 0


def add_buffers(reservation: Range, buffers: list[Search], ways: Ways) -> list[Place]:
    """kexec_add_buffer for each.

    Raises:
        OSError: EADDRNOTAVAIL, from kexec_locate_mem_hole.
    """
    places: list[Place] = []
    for one in buffers:
        memsz, align = _align(one.memsz, PAGE), max(one.align, PAGE)
        start = None
        if reservation.size >= memsz and reservation.end >= one.low:
            look = _top_down if one.top_down else _bottom_up
            start = look(reservation, places, one, memsz, align, ways)
        if start is None:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        places.append(Place(one.name, start, memsz, one.bufsz))
    return places


def load_errno(
    reservation: Range,
    buffers: list[Search],
    ways: Ways,
    total_ram_pages: int,
    page_tables: int,
) -> int:
    """What a load ends with once the files are read and accepted; 0 if they are placed."""
    try:
        places = add_buffers(reservation, buffers, ways)
    except OSError as error:
        return error.errno or 0
    code = fake_kexec.late_errno(reservation.start, places, reservation, total_ram_pages)
    if code:
        return code
    pages = fake_kexec.control_pages(places, reservation, page_tables)
    return errno.ENOMEM if pages is None else 0


def _top_down(
    reservation: Range, places: list[Place], one: Search, memsz: int, align: int, ways: Ways
) -> int | None:
    start = reservation.end - memsz + (0 if ways.short_of_end else 1)
    while True:
        start = start // align * align
        if start < reservation.start or start < one.low:
            return None
        if not _taken(places, start, memsz):
            return start
        start -= PAGE


def _bottom_up(
    reservation: Range, places: list[Place], one: Search, memsz: int, align: int, ways: Ways
) -> int | None:
    start = max(reservation.start, one.low)
    if one.random is not None:
        start += (reservation.end - start) // _USHRT_MAX * one.random
    while True:
        start = _align(start, align)
        if start + memsz - 1 > reservation.end:
            return None
        if not _taken(places, start, memsz):
            return start
        start += PAGE


def _taken(places: list[Place], start: int, size: int) -> bool:
    return any(start < one.end and one.mem < start + size for one in places)


def _align(value: int, unit: int) -> int:
    return -(-value // unit) * unit
