"""Inputs made to order: a bzImage that is whole but does nothing, a PE file around one."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class SyntheticBzImage:
    """Fields of a setup header, by default those of a Debian kernel 6.1 but small."""

    setup_sects: int = 0x27
    syssize: int = 0x1000  # paragraphs of 16 bytes
    boot_flag: int = 0xAA55
    magic: bytes = b"HdrS"
    protocol: int = 0x020F
    header_end: int = 0x26C
    loadflags: int = 1
    initrd_addr_max: int = 0x7FFFFFFF
    kernel_alignment: int = 0x200000
    relocatable_kernel: int = 1
    xloadflags: int = 0x7F
    cmdline_size: int = 2047
    payload_offset: int = 0x2CC
    payload_length: int = 0x8000
    pref_address: int = 0x1000000
    init_size: int = 0x3377000
    trailing: bytes = b""

    def header(self) -> bytes:
        """The first two sectors."""
        head = bytearray(1024)
        head[0x1F1] = self.setup_sects
        struct.pack_into("<I", head, 0x1F4, self.syssize)
        struct.pack_into("<H", head, 0x1FE, self.boot_flag)
        head[0x200:0x202] = bytes((0xEB, self.header_end - 0x202))
        head[0x202:0x206] = self.magic
        struct.pack_into("<H", head, 0x206, self.protocol)
        head[0x211] = self.loadflags
        struct.pack_into("<II", head, 0x22C, self.initrd_addr_max, self.kernel_alignment)
        head[0x234:0x236] = bytes((self.relocatable_kernel, 21))
        struct.pack_into("<H", head, 0x236, self.xloadflags)
        struct.pack_into("<I", head, 0x238, self.cmdline_size)
        struct.pack_into("<II", head, 0x248, self.payload_offset, self.payload_length)
        struct.pack_into("<QI", head, 0x258, self.pref_address, self.init_size)
        return bytes(head)

    def image(self) -> bytes:
        """The whole file; the protected-mode part is a recognisable filler."""
        setup = ((self.setup_sects or 4) + 1) * 512
        filler = bytes(range(256)) * (self.syssize * 16 // 256 + 1)
        return self.header().ljust(setup, b"\0") + filler[: self.syssize * 16] + self.trailing


def pe(
    sections: list[tuple[bytes, bytes]], *, align: int = 512, optional: int = 240, dos: int = 0x80
) -> bytes:
    """A PE file with these sections, each padded to ``align``."""
    head = bytearray(dos)
    head[0:2] = b"MZ"
    head[0x3C:0x40] = dos.to_bytes(4, "little")
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(sections), 0, 0, 0, optional, 0x22)
    table, body = b"", b""
    begin = -(-(dos + len(coff) + optional + 40 * len(sections)) // align) * align
    for name, content in sections:
        padded = content.ljust(-(-len(content) // align) * align, b"\0")
        table += struct.pack(
            "<8sIIIIIIHHI", name, len(content), 0, len(padded), begin + len(body), 0, 0, 0, 0, 0
        )
        body += padded
    return bytes(bytes(head) + coff + bytes(optional) + table).ljust(begin, b"\0") + body
