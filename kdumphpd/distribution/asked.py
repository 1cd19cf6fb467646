"""What a distribution's kdump would load, whichever distribution it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kdumphpd.errors import InputError
from kdumphpd.machine.files import Root

#: Where user space names the keys that the crash kernel needs to open a LUKS dump
#: target; ``kernel/crash_dump_dm_crypt.c`` (6.16) hands them over in kexec_file_load(2) only.
CRYPT_KEYS = "/sys/kernel/config/crash_dm_crypt_keys"

#: Options of kexec(8) that say how to load, not what; every other one could change the image.
KNOWN_KEXEC_OPTIONS = frozenset(
    (
        "-p",
        "--load-panic",
        "-s",
        "--kexec-file-syscall",
        "-c",
        "--kexec-syscall",
        "-a",
        "--kexec-syscall-auto",
        "-d",
        "--debug",
        "--elf32-core-headers",
        "--elf64-core-headers",
    )
)


@dataclass(frozen=True)
class Asked:
    """Kernel, initrd and command line as kdump has them, and where each comes from.

    Attributes:
        kernel: path under the root.
        initrd: path under the root.
        command_line: without what the loader adds (elfcorehdr=).
        kexec_arguments: the other options that kdump passes to kexec.
        kernel_origin: who named the kernel.
        initrd_origin: who named the initrd.
        command_line_origin: who made the command line, and from what.
        crypt_devices: LUKS devices of the dump target whose keys the kernel has to hand over.
    """

    kernel: Path
    initrd: Path
    command_line: str
    kexec_arguments: tuple[str, ...]
    kernel_origin: str
    initrd_origin: str
    command_line_origin: str
    crypt_devices: tuple[str, ...] = ()


def existing(root: Root, role: str, name: str, source: str, remedy: str) -> Path:
    """The path of ``name`` under ``root``.

    Raises:
        InputError: ``source`` named none, or one that is not there.
    """
    path = root.path(name)
    if not name.startswith("/"):
        raise InputError(f"{source} names no {role}", remedy)
    if not os.path.isfile(path):  # Path.is_file() raises where a directory may not be searched
        raise InputError(f"{role} {path}, which {source} names, is not there", remedy)
    return path


def prepared_crypt_keys(root: Root) -> tuple[str, ...]:
    """Keys that are prepared for the crash kernel now: one directory for each."""
    directory = root.path(CRYPT_KEYS)
    try:
        return tuple(sorted(one.name for one in directory.iterdir() if one.is_dir()))
    except OSError:
        return ()
