"""Which image is armed, when it is not ours: the kernel's own list of its segments.

The reservation is no witness. Every image that was ever loaded can still lie
there whole, command line and all, beside the one that is armed. What is armed
only ``kexec_crash_image`` says (``kernel/kexec_core.c``): its ``struct kimage``
has the entry point and the segments. The pointer's address is in
``/proc/kallsyms``, and both are read through ``/proc/kcore``.

The structure's layout differs between kernels (vmcoreinfo_data_copy moved), so the
segment list is looked for and must make sense: 1 to 16 page-aligned ranges
inside the reservation. Where the kernel shows none of this (kptr_restrict without
CAP_SYSLOG, no CONFIG_KALLSYMS_ALL) the answer is that it is not known.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import Protocol

from kdumphpd.distribution.adoption import Whose
from kdumphpd.errors import KdumphpdError
from kdumphpd.image.buffer import Buffer
from kdumphpd.image.source import ImageSpec
from kdumphpd.machine import symbols, trust
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import AddressMap
from kdumphpd.machine.ranges import Range
from kdumphpd.machine.reservation import ask_again

_SYMBOL = "kexec_crash_image"
_PAGE = 4096

# struct kimage (include/linux/kexec.h): head, entry, last_entry, start, then up to
# three pointers, nr_segments and segment[16].
_START = 24
_FIRST_COUNT, _LAST_COUNT = 40, 88
_MAX_SEGMENTS = 16  # KEXEC_SEGMENT_MAX
_SEGMENT = struct.Struct("<QQQQ")  # struct kexec_segment: buf, bufsz, mem, memsz
_KIMAGE_BYTES = _LAST_COUNT + 8 + _MAX_SEGMENTS * _SEGMENT.size

# struct boot_params (arch/x86/include/uapi/asm/bootparam.h).
_EXT_RAMDISK_IMAGE, _EXT_RAMDISK_SIZE, _EXT_CMD_LINE_PTR = 0x0C0, 0x0C4, 0x0C8
_RAMDISK_IMAGE, _RAMDISK_SIZE, _CMD_LINE_PTR = 0x218, 0x21C, 0x228
_MAX_COMMAND_LINE = 65536
_CHUNK = 1 << 20

# What kexec-tools (crashdump-x86.c) and the kernel (kexec-bzimage64.c) add themselves.
_ADDED = re.compile(r"noefi|(elfcorehdr|acpi_rsdp|memmap|dmcryptkeys)=\S*")


class Memory(Protocol):
    """Physical memory; see `kdumphpd.machine.kcore.PhysicalMemory`."""

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at ``address``; MachineError if they cannot be had."""


@dataclass(frozen=True)
class Armed:
    """The armed image: where the kernel enters it, and its segments."""

    entry: int
    segments: tuple[Range, ...]


@dataclass(frozen=True)
class Content:
    """What the armed image's boot_params say: command line, and the initrd's place."""

    command_line: str
    initrd: Range | None


def read_armed(
    root: Root, memory: Memory, addresses: AddressMap, reserved: tuple[Range, ...]
) -> Armed | None:
    """The armed image as the kernel has it; None if the kernel does not show it.

    Args:
        root: the host, for /proc/kallsyms.
        memory: its physical memory.
        addresses: where the kernel text and the direct map are.
        reserved: every range of the reservation.
    """
    pointer = symbol_address(root)
    text = addresses.text
    if pointer is None or not text.vaddr <= pointer <= text.vaddr + text.size - 8:
        return None
    try:
        place = pointer - text.vaddr + text.paddr
        # NULL for the moment in which the kernel itself writes the header (see crash_loaded).
        kimage = ask_again(root, lambda: _u64(memory.read(place, 8), 0))
        if kimage < addresses.page_offset:
            return None
        return parse_kimage(memory.read(kimage - addresses.page_offset, _KIMAGE_BYTES), reserved)
    except KdumphpdError:
        return None


def symbol_address(root: Root) -> int | None:
    """Address of ``kexec_crash_image``; None if kallsyms does not tell."""
    return symbols.addresses(root, (_SYMBOL,)).get(_SYMBOL) or None


def parse_kimage(data: bytes, reserved: tuple[Range, ...]) -> Armed | None:
    """Find entry point and segments in the bytes of a ``struct kimage``, or None."""
    for offset in range(_FIRST_COUNT, _LAST_COUNT + 1, 8):
        if offset + 8 > len(data):
            return None
        count = _u64(data, offset)
        end = offset + 8 + count * _SEGMENT.size
        if not 1 <= count <= _MAX_SEGMENTS or end > len(data):
            continue
        segments = [_segment(*one) for one in _SEGMENT.iter_unpack(data[offset + 8 : end])]
        entry = _u64(data, _START)
        known = [one for one in segments if one and any(r.contains(one) for r in reserved)]
        if len(known) == count and any(one.start <= entry <= one.end for one in reserved):
            return Armed(entry, tuple(known))
    return None


def _segment(_: int, size: int, start: int, reserved: int) -> Range | None:
    if reserved == 0 or size > reserved or (start | reserved) % _PAGE:
        return None
    return Range(start, start + reserved - 1)


def identify(
    root: Root,
    memory: Memory,
    addresses: AddressMap,
    reserved: tuple[Range, ...],
    spec: ImageSpec,
    kernel: Buffer,
) -> Whose:
    """Whose an armed image is that is not ours, on a host whose kdump would load ``spec``.

    Args:
        root: the host, for /proc/kallsyms.
        memory: its physical memory.
        addresses: where the kernel text and the direct map are.
        reserved: every range of the reservation.
        spec: what kdump would load.
        kernel: the protected-mode part of the kernel in ``spec``.
    """
    armed = read_armed(root, memory, addresses, reserved)
    if armed is None:
        return Whose.UNKNOWN
    content = read_content(memory, armed)
    if content is None or not has_kernel(memory, armed, kernel):
        return Whose.OTHER
    if _is_test(content.command_line):
        return Whose.TEST
    return Whose.KDUMPS if is_made_from(memory, content, spec) else Whose.LIKE_KDUMPS


def has_kernel(memory: Memory, armed: Armed, kernel: Buffer) -> bool:
    """Whether a segment of the armed image begins with ``kernel``.

    Every loader puts the protected-mode part of the bzImage at the start of a segment:
    kexec-tools' do_bzImage64_load as well as arch/x86/kernel/kexec-bzimage64.c.
    """
    return any(_begins_with(memory, one, kernel) for one in armed.segments)


def _begins_with(memory: Memory, segment: Range, content: Buffer) -> bool:
    size = len(content)
    if not 0 < size <= segment.size:
        return False
    try:
        return all(
            memory.read(segment.start + at, min(_CHUNK, size - at)) == content[at : at + _CHUNK]
            for at in range(0, size, _CHUNK)
        )
    except KdumphpdError:
        return False


def _is_test(command_line: str) -> bool:
    """Whether ``kdumpctl test`` loaded it (set_kdump_test_id): it crashes the host at once."""
    return any(word.startswith("kdump_test_id=") for word in command_line.split())


def read_content(memory: Memory, armed: Armed) -> Content | None:
    """Command line and initrd of the armed image; None if it has no boot_params segment."""
    for segment in armed.segments:
        try:
            params = memory.read(segment.start, _PAGE)
            # Not boot_flag before it: kexec-tools writes 0 to its second byte
            # (aux_device_info at 0x1ff, setup_linux_system_parameters).
            if params[0x202:0x206] == b"HdrS":
                return _content(memory, params, armed)
        except KdumphpdError:
            return None
    return None


def _content(memory: Memory, params: bytes, armed: Armed) -> Content | None:
    pointer = _u32(params, _CMD_LINE_PTR) | _u32(params, _EXT_CMD_LINE_PTR) << 32
    inside = [one for one in armed.segments if one.start <= pointer <= one.end]
    if not inside:
        return None
    limit = min(inside[0].end + 1 - pointer, _MAX_COMMAND_LINE)
    command_line = memory.read(pointer, limit).partition(b"\0")[0]
    address = _u32(params, _RAMDISK_IMAGE) | _u32(params, _EXT_RAMDISK_IMAGE) << 32
    size = _u32(params, _RAMDISK_SIZE) | _u32(params, _EXT_RAMDISK_SIZE) << 32
    initrd = Range(address, address + size - 1) if size else None
    if initrd is not None and not any(one.contains(initrd) for one in armed.segments):
        return None
    return Content(command_line.decode("utf-8", "replace"), initrd)


def is_made_from(memory: Memory, content: Content, spec: ImageSpec) -> bool:
    """Whether the armed image has the command line and the initrd of ``spec``."""
    if not _same_command_line(content.command_line, spec.command_line) or content.initrd is None:
        return False
    place = content.initrd
    try:
        with os.fdopen(trust.open_regular(spec.initrd), "rb") as file:
            for start in range(place.start, place.end + 1, _CHUNK):
                size = min(_CHUNK, place.end + 1 - start)
                if file.read(size) != memory.read(start, size):
                    return False
            return not file.read(1)
    except (OSError, KdumphpdError):
        return False


def _same_command_line(armed: str, wanted: str) -> bool:
    """Whether ``armed`` is ``wanted`` with nothing but loaders' additions around it."""
    words, expected = armed.split(), wanted.split()
    first = next((i for i, word in enumerate(words) if not _ADDED.fullmatch(word)), len(words))
    if not expected:
        return first == len(words)
    # An expected command line may itself begin with such a word.
    for start in range(first + 1):
        rest = words[start:]
        if rest[: len(expected)] == expected:
            return all(_ADDED.fullmatch(word) for word in rest[len(expected) :])
    return False


def _u32(data: bytes, offset: int) -> int:
    return int(struct.unpack_from("<I", data, offset)[0])


def _u64(data: bytes, offset: int) -> int:
    return int(struct.unpack_from("<Q", data, offset)[0])
