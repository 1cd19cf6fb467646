"""What kexec_file_load(2) will want to place on this host, read from the running kernel.

What the kernel does not say is taken at its largest: too much keeps an image that would have
been replaced, too little loses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from kdumphpd.errors import KdumphpdError
from kdumphpd.header.elf import EHDR, PHDR
from kdumphpd.image.bzimage import BzImage
from kdumphpd.image.layout import PAGE, control_pages
from kdumphpd.load.file_placement import Buffer, FileNeeds
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.files import Root
from kdumphpd.machine.iomem import LOW_MEMORY, Resource, crash_kernel
from kdumphpd.machine.ranges import subtract
from kdumphpd.machine.snapshot import Machine, MachineReader

_KEYS = "/sys/kernel/config/crash_dm_crypt_keys/count"
_MEASUREMENTS = "/sys/kernel/security/ima/binary_runtime_measurements"
_RUNTIME_MAP = "/sys/firmware/efi/runtime-map"
_BOOT_PARAMS = "/sys/kernel/boot_params/data"

#: include/linux/kexec.h and arch/x86/kernel/kexec-bzimage64.c. MIN_PURGATORY_ADDR and
#: MIN_BOOTPARAM_ADDR lie in the first MiB, where no reservation is.
_MIN_KERNEL_LOAD_ADDR = 0x100000
_MIN_INITRD_LOAD_ADDR = 0x1000000
#: "elfcorehdr=0x" and 16 digits and a space: MAX_ELFCOREHDR_STR_LEN; "dmcryptkeys=0x": one more.
_ELFCOREHDR_ARGUMENT = 30
_KEYS_ARGUMENT = 31

#: The kernel's own purgatory; 5 pages were seen on 6.1 and 6.12.
_PURGATORY = 16 * PAGE
#: struct setup_data and efi_setup_data, a seed, ima_setup_data and kho_data.
_SETUP_DATA = (16 + 96) + (16 + 32) + (16 + 16) + (16 + 32)
#: struct keys_header and struct dm_crypt_key (kernel/crash_dump_dm_crypt.c): a size, a
#: description of 128 bytes, a key of 256.
_KEYS_HEADER = 8
_KEY = 4 + 128 + 256
#: struct ima_kexec_hdr and half a page (ima_add_kexec_buffer, ima_kexec.c).
_MEASUREMENTS_EXTRA = 24 + PAGE // 2
_EFI_MEMDESC_SIZE = slice(0x1C8, 0x1CC)  # in struct boot_params, efi_info
_CHUNK = 1 << 20


def read(
    root: Root,
    reader: MachineReader,
    machine: Machine,
    kernel: BzImage,
    initrd_size: int,
    command_line: bytes,
) -> FileNeeds:
    """What a load of ``kernel`` and an initrd of ``initrd_size`` bytes has to place.

    Args:
        root: the host.
        reader: reads the machine.
        machine: the present snapshot.
        kernel: the setup header of the file that is handed over.
        initrd_size: bytes.
        command_line: as it is handed over.

    Raises:
        KdumphpdError: the kernel does not say what is needed.
    """
    keys = _keys(root)
    size = _header_size(root, reader.resources(), machine)
    header = Buffer("elfcorehdr", size, upwards=True)
    arguments = 1 + _ELFCOREHDR_ARGUMENT + (_KEYS_ARGUMENT if keys else 0)
    params = 4096 + len(command_line) + arguments + 16 + _efi_map_size(root) + 16 + _SETUP_DATA
    others = (
        Buffer("purgatory", _PURGATORY),
        Buffer("boot_params", params),
        Buffer(
            "kernel",
            kernel.init_size,
            kernel.kernel_alignment,
            lowest=max(kernel.pref_address, _MIN_KERNEL_LOAD_ADDR),
            content=kernel.file_size - kernel.offset,
        ),
        Buffer("initrd", initrd_size, lowest=_MIN_INITRD_LOAD_ADDR),
    )
    pages = control_pages(reader.mapped())
    return FileNeeds(header, others, _measurements(root), keys, pages, arguments)


def _header_size(root: Root, resources: Sequence[Resource], machine: Machine) -> int:
    """Bytes of the elfcorehdr segment.

    Where the kernel updates it: for all CPUs and ranges there can ever be
    (crash_load_segments). Else as crash_prepare_elf64_headers makes it, with a range for
    each System RAM resource: neighbours are not merged.
    """
    reserve = reservations.elfcorehdr_size(root)
    if reserve:
        return reserve + EHDR.size
    holes = (LOW_MEMORY, *crash_kernel(resources), *machine.fixed.cma)
    ram = (one.range for one in resources if one.name.startswith("System RAM"))
    ranges = sum(len(subtract([one], holes)) for one in ram)
    return EHDR.size + (machine.fixed.possible_cpus + 2 + ranges) * PHDR.size


def _keys(root: Root) -> int:
    """Bytes of the dm-crypt keys that the kernel hands to the crash kernel."""
    if not root.exists(_KEYS):
        return 0
    text = root.read_text(_KEYS)
    count = int(text) if text.isdecimal() and len(text) < 10 else 0
    return _KEYS_HEADER + count * _KEY if count else 0


def _measurements(root: Root) -> Buffer | None:
    """IMA's measurement list, which kernels before 6.14 may hand to the crash kernel."""
    size = 0
    # Without securityfs, or the right to read it, there is nothing to go by.
    with contextlib.suppress(OSError):
        with root.path(_MEASUREMENTS).open("rb", buffering=0) as file:
            while True:
                count = len(file.read(_CHUNK))
                if count == 0:
                    break
                size += count
        return Buffer("IMA measurements", size + _MEASUREMENTS_EXTRA)
    return None


def _efi_map_size(root: Root) -> int:
    """Bytes of the runtime memory map (efi_get_runtime_map_size)."""
    try:
        count = sum(1 for _ in root.path(_RUNTIME_MAP).iterdir())
        return count * int.from_bytes(root.read_bytes(_BOOT_PARAMS)[_EFI_MEMDESC_SIZE], "little")
    except (OSError, KdumphpdError):
        return 0
