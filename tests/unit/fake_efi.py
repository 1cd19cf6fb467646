"""EFI as Linux shows it on a q35 guest under OVMF: files, and efi_info of boot_params.

Seen on 6.1 (Debian 12, ovmf 2022.11); the addresses are those of that guest.
"""

from __future__ import annotations

import struct

from tests.unit.host_fixture import FakeHost

EFI = "/sys/firmware/efi"
BOOT_PARAMS = "/sys/kernel/boot_params/data"
SYSTAB = 0x7F5EB018
FILES = {
    "fw_platform_size": "64",
    "fw_vendor": "0x7f52aa18",
    "runtime": "0x7f5ebb98",
    "config_table": "0x7f5ebc98",
    "systab": "ACPI20=0x7f77d014\nACPI=0x7f77d000\nSMBIOS=0x7f520000",
}
#: type, phys_addr, virt_addr, num_pages, attribute; the fifth is a table of the boot services
#: that the kernel keeps (efi_mem_reserve).
RANGES = (
    (0xB, 0xFFC00000, 0xFFFFFFFEFFC00000, 0x400, 0x8000000000000001),
    (0x6, 0x7FEDC000, 0xFFFFFFFEFFADC000, 0x84, 0x800000000000000F),
    (0x5, 0x7F5EC000, 0xFFFFFFFEFF1EC000, 0x100, 0x800000000000000F),
    (0x6, 0x7F4EC000, 0xFFFFFFFEFF0EC000, 0x100, 0x800000000000000F),
    (0x4, 0x7D518000, 0xFFFFFFFEFD118000, 0x1, 0x800000000000000F),
)
FIELDS = ("type", "phys_addr", "virt_addr", "num_pages", "attribute")


def efi_info(
    signature: bytes = b"EL64", systab: int = SYSTAB, version: int = 1, map_size: int = 0x1860
) -> bytes:
    """struct efi_info as the EFI stub leaves it: of the memory map before the firmware's setup."""
    low, high = systab & 0xFFFFFFFF, systab >> 32
    return struct.pack("<4s7I", signature, low, 48, version, 0x77104040, map_size, high, 0)


def add_efi(host: FakeHost, info: bytes | None = None) -> None:
    """Give ``host`` a firmware."""
    data = bytearray(host.root.read_bytes(BOOT_PARAMS))
    data[0x1C0:0x1E0] = efi_info() if info is None else info
    data[0x70:0x78] = bytes(8)  # acpi_rsdp_addr: the stub leaves none (a1b87d54f4e4)
    host.write(BOOT_PARAMS, bytes(data))
    for name, text in FILES.items():
        host.write(f"{EFI}/{name}", text + "\n")
    for number, values in enumerate(RANGES):
        for field, value in zip(FIELDS, values):
            host.write(f"{EFI}/runtime-map/{number}/{field}", f"{value:#x}\n")
