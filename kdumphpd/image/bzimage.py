"""The setup header of a bzImage: what must be known to load and enter a kernel.

Source: ``Documentation/arch/x86/boot.rst`` and ``struct setup_header`` in
``arch/x86/include/uapi/asm/bootparam.h``. A file is a boot sector and setup code
of 512-byte sectors, then the protected-mode part, which is what gets loaded;
its 64-bit entry point is 0x200 bytes in.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from kdumphpd.errors import ImageError
from kdumphpd.image.buffer import Sliceable

SECTOR_SIZE = 512
ENTRY_64BIT = 0x200

#: Where the setup header begins, in the file and in boot_params alike.
SETUP_HEADER = 0x1F1

#: What follows the space for it in boot_params (edd_mbr_sig_buffer).
SETUP_HEADER_LIMIT = 0x290

_OLDEST_PROTOCOL = 0x020C  # 2.12 has xloadflags
_LOADED_HIGH = 1 << 0  # loadflags: a bzImage, not a zImage


class XLoadFlags(enum.IntFlag):
    """``xloadflags``, XLF_* in ``arch/x86/include/uapi/asm/bootparam.h``."""

    KERNEL_64 = 1 << 0
    CAN_BE_LOADED_ABOVE_4G = 1 << 1
    EFI_HANDOVER_32 = 1 << 2
    EFI_HANDOVER_64 = 1 << 3
    EFI_KEXEC = 1 << 4
    FIVE_LEVEL = 1 << 5
    FIVE_LEVEL_ENABLED = 1 << 6
    MEM_ENCRYPTION = 1 << 7


@dataclass(frozen=True)
class BzImage:
    """A bzImage that can be loaded; sizes, offsets and addresses in bytes.

    Attributes:
        setup_header: from 0x1f1 on, as it belongs into boot_params.
        protocol: boot protocol, 0x020f for 2.15.
        setup_sects: sectors of setup code after the boot sector.
        kernel_alignment: power of two.
        pref_address: where the kernel runs without being relocated.
        init_size: memory it needs from its load address until it has its own map.
        xloadflags: bits of `XLoadFlags`.
        cmdline_size: longest command line without its final zero.
        initrd_addr_max: highest address of an initrd for a loader that does not
            set ext_ramdisk_image.
        payload_offset: compressed kernel, from the protected-mode part's start.
        payload_length: its size.
        offset: the protected-mode part in the file.
        size: its size; a signature may follow.
        file_size: all of the file, with what follows.
    """

    setup_header: bytes
    protocol: int
    setup_sects: int
    kernel_alignment: int
    pref_address: int
    init_size: int
    xloadflags: XLoadFlags
    cmdline_size: int
    initrd_addr_max: int
    payload_offset: int
    payload_length: int
    offset: int
    size: int
    file_size: int

    @property
    def memory_size(self) -> int:
        """Bytes to keep free from the load address on."""
        return max(self.init_size, self.size)


def parse(image: Sliceable, name: str = "kernel", *, five_level_paging: bool = False) -> BzImage:
    """Read the setup header of ``image`` and check that it can be loaded.

    Args:
        image: the whole file.
        name: the file's name, for errors.
        five_level_paging: the running kernel uses it, so the image must understand it
            (XLF_5LEVEL): the purgatory hands over the paging mode as it finds it.

    Raises:
        ImageError: it is no bzImage, is truncated, or cannot be entered in 64-bit
            mode wherever the reservation lies.
    """
    head = bytes(image[:SETUP_HEADER_LIMIT])
    _check_magic(head, name)
    protocol = _u16(head, 0x206)
    if protocol < _OLDEST_PROTOCOL:
        raise ImageError(
            f"{name}: boot protocol {protocol >> 8}.{protocol & 0xFF:02d} is older than 2.12",
            "name a kernel of Linux 3.8 or later",
        )
    if len(head) < SETUP_HEADER_LIMIT:
        raise _truncated(name, len(head), SETUP_HEADER_LIMIT)
    kernel = _unpack(head, protocol, len(image))
    _check_flags(kernel, head, name, five_level_paging)
    _check_sizes(kernel, name)
    return kernel


def _check_magic(head: bytes, name: str) -> None:
    if len(head) >= 0x208 and head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == b"HdrS":
        return
    if head.startswith(b"\x7fELF"):
        found = "is an ELF file (vmlinux?), not a bzImage"
    elif head.startswith(b"\x1f\x8b"):
        found = "is a gzip file, not a bzImage"
    elif not head:
        found = "is empty"
    else:
        found = "is not a bzImage"
    raise ImageError(f"{name} {found}", "name the vmlinuz file that the boot loader uses")


def _unpack(head: bytes, protocol: int, file_size: int) -> BzImage:
    setup_sects = head[0x1F1] or 4  # 0 means 4, says boot.rst
    # The header's end: the jump instruction at 0x200 goes there.
    end = min(0x202 + head[0x201], SETUP_HEADER_LIMIT)
    return BzImage(
        setup_header=head[SETUP_HEADER:end],
        protocol=protocol,
        setup_sects=setup_sects,
        kernel_alignment=_u32(head, 0x230),
        pref_address=_u64(head, 0x258),
        init_size=_u32(head, 0x260),
        xloadflags=XLoadFlags(_u16(head, 0x236)),
        cmdline_size=_u32(head, 0x238),
        initrd_addr_max=_u32(head, 0x22C),
        payload_offset=_u32(head, 0x248),
        payload_length=_u32(head, 0x24C),
        offset=(setup_sects + 1) * SECTOR_SIZE,
        size=_u32(head, 0x1F4) * 16,  # syssize counts paragraphs
        file_size=file_size,
    )


def _check_flags(kernel: BzImage, head: bytes, name: str, five_level_paging: bool) -> None:
    if not head[0x211] & _LOADED_HIGH:
        raise ImageError(f"{name} is a zImage, not a bzImage", "name a bzImage")
    if XLoadFlags.KERNEL_64 not in kernel.xloadflags:
        raise ImageError(
            f"{name} is a 32-bit kernel (no XLF_KERNEL_64)", "name a kernel built for x86_64"
        )
    above = XLoadFlags.CAN_BE_LOADED_ABOVE_4G in kernel.xloadflags
    if not head[0x234] or not above:
        lacking = "XLF_CAN_BE_LOADED_ABOVE_4G" if head[0x234] else "relocatable_kernel"
        raise ImageError(
            f"{name} is not relocatable ({lacking} is not set)",
            "name a kernel built with CONFIG_RELOCATABLE=y",
        )
    if five_level_paging and XLoadFlags.FIVE_LEVEL not in kernel.xloadflags:
        raise ImageError(
            f"{name} cannot start with 5-level paging, which is in use here (no XLF_5LEVEL)",
            "name a kernel built with CONFIG_X86_5LEVEL=y, or boot this one with no5lvl",
        )


def _check_sizes(kernel: BzImage, name: str) -> None:
    needed = kernel.offset + kernel.size
    if kernel.file_size < needed:
        raise _truncated(name, kernel.file_size, needed)
    alignment = kernel.kernel_alignment
    plausible = (
        kernel.size > ENTRY_64BIT
        and alignment >= 4096
        and alignment & (alignment - 1) == 0
        and kernel.init_size >= kernel.size
        and kernel.payload_offset + kernel.payload_length <= kernel.size
        and len(kernel.setup_header) >= 0x264 - SETUP_HEADER  # init_size is inside
    )
    if not plausible:
        raise ImageError(
            f"{name}: the setup header contradicts itself (syssize {kernel.size:#x} bytes, "
            f"init_size {kernel.init_size:#x}, kernel_alignment {alignment:#x}, payload "
            f"{kernel.payload_length:#x} bytes at {kernel.payload_offset:#x})",
            "reinstall the kernel",
        )


def _truncated(name: str, size: int, needed: int) -> ImageError:
    return ImageError(
        f"{name} is truncated: {size} bytes, its header says at least {needed}",
        "reinstall the kernel",
    )


def _u16(data: bytes, offset: int) -> int:
    return int(struct.unpack_from("<H", data, offset)[0])


def _u32(data: bytes, offset: int) -> int:
    return int(struct.unpack_from("<I", data, offset)[0])


def _u64(data: bytes, offset: int) -> int:
    return int(struct.unpack_from("<Q", data, offset)[0])
