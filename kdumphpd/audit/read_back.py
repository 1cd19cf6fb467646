"""Reading the loaded image back through ``/proc/kcore``: whose it is, its header, its digest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from kdumphpd.header import elf
from kdumphpd.image import parameter_block
from kdumphpd.image.parameter_block import ParameterBlock
from kdumphpd.machine.ranges import Range

_CHUNK = 4 << 20
#: elfcorehdr= takes any address; kexec-tools and the kernel keep to this.
_HEADER_ALIGNMENT = 1024
_NAME = b"elfcorehdr="
_ARGUMENT = re.compile(rb"[ \0]elfcorehdr=(0x[0-9a-f]{1,16}|[1-9][0-9]{0,19})([KM]?)[ \0\n]")
_ARGUMENT_LENGTH = 64
_UNITS = {b"": 1, b"K": 1 << 10, b"M": 1 << 20}
_TRAILER_MAGIC = b"kdumphpd header\0"
TRAILER_SIZE = len(_TRAILER_MAGIC) + 16


class Memory(Protocol):
    """Physical memory; see `kdumphpd.machine.kcore.PhysicalMemory`."""

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at ``address``; MachineError if they cannot be had."""


def trailer(block: ParameterBlock) -> bytes:
    """What follows our headers in memory, 32 bytes: whose they are.

    The crash kernel reads as many program headers as the ELF header counts and
    nothing behind. When another loader's image has taken the place of ours, its
    header must be told from our old one, which is still there.
    """
    return _TRAILER_MAGIC + block.nonce


def find_own(memory: Memory, reservation: Range) -> ParameterBlock | None:
    """The parameter block of our image in the reservation's last pages, or None.

    Other loaders write there, so what is there was loaded last. It
    must also lie where it says, in this very reservation.
    """
    block = parameter_block.parse_end(_last_pages(memory, reservation))
    if block is None or not block.regions or block.control_pad.start != reservation.start:
        return None
    places = (*block.regions, block.elfcorehdr, block.control_pad)
    return block if all(reservation.contains(one) for one in places) else None


def is_torn(memory: Memory, reservation: Range) -> bool:
    """Whether the image is ours, but its parameter block is damaged; where `find_own` is None."""
    return parameter_block.is_torn(_last_pages(memory, reservation))


def _last_pages(memory: Memory, reservation: Range) -> bytes:
    size = 2 * parameter_block.PAGE_SIZE
    end = (reservation.end + 1) // parameter_block.PAGE_SIZE * parameter_block.PAGE_SIZE
    return memory.read(end - size, size) if end - size >= reservation.start else b""


def entry(block: ParameterBlock) -> int:
    """Where the kernel enters our image: the purgatory, its last region."""
    return block.regions[-1].start


def intact(memory: Memory, block: ParameterBlock) -> bool:
    """Whether all that the digest covers is as it was loaded: would the purgatory start it?"""
    return parameter_block.digest_of(block, _pieces(memory, block)) == block.digest


def _pieces(memory: Memory, block: ParameterBlock) -> Iterator[bytes]:
    for region in block.regions:
        for start in range(region.start, region.end + 1, _CHUNK):
            yield memory.read(start, min(_CHUNK, region.end + 1 - start))


def read_header(memory: Memory, address: int, limit: int) -> bytes | None:
    """The elfcorehdr at ``address`` with all its program headers; None if there is none.

    Args:
        memory: physical memory.
        address: of its first byte.
        limit: bytes that it may take at most.
    """
    if limit < elf.EHDR.size:
        return None
    extent = elf.core_extent(memory.read(address, elf.EHDR.size))
    if extent is None or extent.size > limit:
        return None
    return memory.read(address, extent.size)


@dataclass(frozen=True)
class FoundHeader:
    """A header in memory and its address."""

    address: int
    content: bytes


def find_foreign(memory: Memory, reservation: Range) -> tuple[FoundHeader, ...]:
    """Headers of other loaders' images in the reservation that a command line there names.

    More than one can be found: what an earlier image left is still there.
    """
    candidates: set[int] = set()
    named: set[int] = set()
    step = _CHUNK - _ARGUMENT_LENGTH
    for start in range(reservation.start, reservation.end + 1, step):
        data = memory.read(start, min(_CHUNK, reservation.end + 1 - start))
        candidates.update(
            start + one
            for one in _offsets(data, elf.IDENT[:7])
            if (start + one) % _HEADER_ALIGNMENT == 0
        )
        named.update(_named(data))
    return tuple(_foreign(memory, sorted(candidates & named), reservation))


def find_named(memory: Memory, reservation: Range, command_line: bytes) -> FoundHeader | None:
    """The header of an image that the kernel made, by the command line that it was given.

    ``setup_cmdline`` (arch/x86/kernel/kexec-bzimage64.c) puts elfcorehdr=0x... before it, and
    dmcryptkeys= where there are such. The kernel takes places from the top down, boot_params
    right below the purgatory, so of several the highest is the latest.
    """
    wanted = re.compile(
        rb"elfcorehdr=0x([0-9a-f]{1,16}) (?:dmcryptkeys=\S+ )?" + re.escape(command_line) + rb"\0"
    )
    size = _CHUNK + len(command_line)
    start = max(reservation.start, reservation.end + 1 - size)
    matches = list(wanted.finditer(memory.read(start, reservation.end + 1 - start)))
    if not matches:
        return None
    address = int(matches[-1][1], 16)
    if not reservation.start <= address <= reservation.end:
        return None
    content = read_header(memory, address, reservation.end + 1 - address)
    return None if content is None else FoundHeader(address, content)


def _offsets(data: bytes, wanted: bytes) -> Iterator[int]:
    offset = data.find(wanted)
    while offset >= 0:
        yield offset
        offset = data.find(wanted, offset + 1)


def _named(data: bytes) -> Iterator[int]:
    """Addresses that command lines in ``data`` give for the header."""
    # bytes.find() first: most of the memory is zeros, and each could begin the expression.
    for offset in _offsets(data, _NAME):
        match = _ARGUMENT.match(data, max(offset - 1, 0))
        if match:
            yield int(match[1], 0) * _UNITS[match[2]]


def _foreign(memory: Memory, addresses: list[int], reservation: Range) -> Iterator[FoundHeader]:
    for address in addresses:
        content = read_header(memory, address, reservation.end + 1 - address)
        if content is None:
            continue
        behind = address + len(content)
        if (
            behind + len(_TRAILER_MAGIC) <= reservation.end + 1
            and memory.read(behind, len(_TRAILER_MAGIC)) == _TRAILER_MAGIC
        ):
            continue
        yield FoundHeader(address, content)
