"""The parameter block and the purgatory segment that it ends.

The segment is the compiled purgatory (code, constants, one stack page) and then
the block. It is placed at the end of the reservation, so that the block is the
reservation's last page: other loaders write there, and a daemon that restarts can
tell its own image from a foreign one. kexec_file_load(2) stops one page short of the
end, though (measured on 6.1; locate_mem_hole_top_down in kernel/kexec_file.c takes the
last byte's address for the end), so the stack page before the block begins with the
image's mark as well: where the purgatory, which fills the page from its end, never gets.

The block, as ``kdumphpd/image/purgatory/parameter_block.h`` declares it, little
endian::

    struct parameter_block {              /* offset */
        uint8_t magic[16];                /*   0 */
        uint32_t version;                 /*  16 */
        uint32_t region_count;            /*  20 */
        uint8_t nonce[16];                /*  24 */
        uint64_t kernel_entry;            /*  40 */
        uint64_t boot_params;             /*  48 */
        uint64_t elfcorehdr;              /*  56 */
        uint64_t elfcorehdr_size;         /*  64 */
        uint64_t control_pad;             /*  72 */
        uint64_t control_pad_size;        /*  80 */
        uint32_t serial_port;             /*  88 */
        uint32_t reserved;                /*  92 */
        struct { uint64_t address, size; } regions[16]; /* 96 */
        uint8_t digest[32];               /* 352 */
    };                                    /* zeros up to 4096 */
"""

from __future__ import annotations

import hashlib
import importlib.resources
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

from kdumphpd.errors import InputError
from kdumphpd.image.buffer import Buffer
from kdumphpd.machine.ranges import Range

PAGE_SIZE = 4096
MAGIC = b"kdumphpd image".ljust(16, b"\0")
VERSION = 1
MAX_REGIONS = 16
DIGEST_OFFSET = 352
_NONCE_OFFSET = 24

#: The purgatory's stack: the last page of the compiled file, the only one that
#: it writes to (``purgatory.ld``).
STACK_SIZE = 4096

_STACK_MAGIC = b"kdumphpd stack".ljust(16, b"\0")

_FIXED = struct.Struct("<16sII16sQQQQQQII")
_REGION = struct.Struct("<QQ")
_DIGEST = struct.Struct("32s")
_ADDRESS_LIMIT = 1 << 64


@dataclass(frozen=True)
class ParameterBlock:
    """What the purgatory and a restarted daemon need to know about a loaded image.

    Attributes:
        nonce: 16 random bytes, new with each full load.
        kernel_entry: physical address of the kernel's 64-bit entry point.
        boot_params: physical address of ``struct boot_params``.
        elfcorehdr: all of its reserve; never among the regions.
        control_pad: left to the kernel's control pages; begins the reservation.
        serial_port: I/O base of the port for messages, 0 for none.
        regions: what the digest covers, in this order.
        digest: 32 bytes; see `digest_of`.
    """

    nonce: bytes
    kernel_entry: int
    boot_params: int
    elfcorehdr: Range
    control_pad: Range
    serial_port: int
    regions: tuple[Range, ...]
    digest: bytes = bytes(32)

    def __post_init__(self) -> None:
        if len(self.nonce) != 16 or len(self.digest) != 32:
            raise ValueError("the nonce has 16 bytes and the digest 32")
        if len(self.regions) > MAX_REGIONS:
            raise ValueError(f"{len(self.regions)} regions, the table holds {MAX_REGIONS}")
        if not 0 <= self.serial_port <= 0xFFFF:
            raise ValueError(f"not an I/O port: {self.serial_port:#x}")
        ends = (*self.regions, self.elfcorehdr, self.control_pad)
        addresses = (self.kernel_entry, self.boot_params, *(one.end for one in ends))
        if not all(0 <= address < _ADDRESS_LIMIT for address in addresses):
            raise ValueError("an address beyond 64 bits")
        for region in self.regions:
            # The purgatory refuses the one (regions_are_sane in purgatory.c);
            # the other would need a new digest with each delta load.
            if region.start < self.control_pad.start:
                raise ValueError(f"region {region} lies before the control pad")
            if region.overlaps(self.elfcorehdr):
                raise ValueError(f"region {region} holds a part of the elfcorehdr")

    def pack(self) -> bytes:
        """The block's page, `PAGE_SIZE` bytes."""
        fixed = _FIXED.pack(
            MAGIC,
            VERSION,
            len(self.regions),
            self.nonce,
            self.kernel_entry,
            self.boot_params,
            self.elfcorehdr.start,
            self.elfcorehdr.size,
            self.control_pad.start,
            self.control_pad.size,
            self.serial_port,
            0,
        )
        table = b"".join(_REGION.pack(one.start, one.size) for one in self.regions)
        return ((fixed + table).ljust(DIGEST_OFFSET, b"\0") + self.digest).ljust(PAGE_SIZE, b"\0")


def parse(page: bytes) -> ParameterBlock | None:
    """The block in ``page``, or None if these are not exactly the bytes of one.

    Args:
        page: the last page of the reservation; bytes behind `PAGE_SIZE` do not matter.
    """
    page = bytes(page[:PAGE_SIZE])
    if len(page) < PAGE_SIZE or not page.startswith(MAGIC):
        return None
    try:
        block = _unpack(page)
    except ValueError:
        return None
    # Whatever is set where the layout has zeros, or says another version, is not ours.
    return block if block.pack() == page else None


def _unpack(page: bytes) -> ParameterBlock:
    (_, _, count, nonce, entry, boot_params, header, header_size, pad, pad_size, port, _) = (
        _FIXED.unpack_from(page)
    )
    table = page[_FIXED.size : _FIXED.size + min(count, MAX_REGIONS) * _REGION.size]
    return ParameterBlock(
        nonce=nonce,
        kernel_entry=entry,
        boot_params=boot_params,
        elfcorehdr=_sized(header, header_size),
        control_pad=_sized(pad, pad_size),
        serial_port=port,
        regions=tuple(_sized(start, size) for start, size in _REGION.iter_unpack(table)),
        digest=_DIGEST.unpack_from(page, DIGEST_OFFSET)[0],
    )


def _sized(start: int, size: int) -> Range:
    return Range(start, start + size - 1)


def digest_of(block: ParameterBlock, contents: Iterable[Buffer]) -> bytes:
    """SHA-256 of the block up to its digest and of all regions, as the purgatory computes it.

    Args:
        block: its own digest does not matter.
        contents: the bytes of every region in the order of the table, in pieces of
            any size: one buffer for each region, or smaller ones as they are read.

    Raises:
        ValueError: ``contents`` is not as long as the regions together.
    """
    digest = hashlib.sha256(block.pack()[:DIGEST_OFFSET])
    expected = sum(region.size for region in block.regions)
    hashed = 0
    for piece in contents:
        digest.update(piece)
        hashed += len(piece)
    if hashed != expected:
        raise ValueError(f"{hashed} bytes of content for regions of {expected} bytes")
    return digest.digest()


def seal(block: ParameterBlock, contents: Iterable[Buffer]) -> ParameterBlock:
    """``block`` with the digest of ``contents``; see `digest_of`."""
    return replace(block, digest=digest_of(block, contents))


def purgatory_binary() -> bytes:
    """The compiled purgatory, whole pages: code and constants, then `STACK_SIZE` zeros.

    Raises:
        InputError: the package was not built.
    """
    resource = importlib.resources.files("kdumphpd.image").joinpath("purgatory.bin")
    try:
        return resource.read_bytes()
    except OSError as error:
        raise InputError(
            f"{resource}: {error.strerror}", "install kdumphpd with pip, which compiles it"
        ) from error


def purgatory_size() -> int:
    """Bytes of the purgatory segment with its block, a multiple of `PAGE_SIZE`."""
    return len(purgatory_binary()) + PAGE_SIZE


def purgatory_code_size() -> int:
    """Bytes at the segment's start that nothing writes to after the load."""
    return len(purgatory_binary()) - STACK_SIZE


def purgatory_segment(block: ParameterBlock) -> bytes:
    """The purgatory segment, `purgatory_size` bytes: enter it at its first byte."""
    stack = _stack_mark(block).ljust(STACK_SIZE, b"\0")
    return purgatory_binary()[:-STACK_SIZE] + stack + block.pack()


def parse_end(pages: bytes) -> ParameterBlock | None:
    """The block of the image that was loaded last, or None if that is not ours.

    Args:
        pages: the last two pages of the reservation.
    """
    block = parse(pages[PAGE_SIZE:])
    return block if block is not None and pages.startswith(_stack_mark(block)) else None


def is_torn(pages: bytes) -> bool:
    """Whether an image of ours was loaded last although `parse_end` knows none.

    Its block then was damaged in memory, or another version of kdumphpd wrote it. Another
    loader overwrites one of the pages, and with that two of these three.

    Args:
        pages: the last two pages of the reservation.
    """
    stack, page = pages[:PAGE_SIZE], pages[PAGE_SIZE:]
    start = len(_STACK_MAGIC)
    nonce = stack[start : start + 16]
    signs = (
        stack.startswith(_STACK_MAGIC),
        page.startswith(MAGIC),
        any(nonce) and page[_NONCE_OFFSET : _NONCE_OFFSET + 16] == nonce,
    )
    return sum(signs) >= 2


def _stack_mark(block: ParameterBlock) -> bytes:
    return _STACK_MAGIC + block.nonce
