"""A fake kernel with kexec_file_load and CONFIG_CRASH_HOTPLUG, faults included.

Written from ``kernel/kexec_file.c``, ``kernel/crash_core.c`` and ``arch/x86/kernel/crash.c`` as of
Linux 6.12, and from what was measured there.

* ``kexec_file_load`` frees the loaded image first and looks at the files then: at the format
  (a unified kernel image is ENOEXEC, unless ``takes_unified``), then at the signature.
  ``accepts_files`` says what it thinks of that: 0 or the errno, or a function of the file's
  content. ``handed`` has each call's kind and the kernel file that it was given. What it loads is
  placed as the kernel does it (``file_places``), in one of the ``ways`` of different kernels;
  what finds no place fails, with nothing loaded.
* Images of kexec_file_load, and of kexec_load with flag 0x8 (unless ``knows_flag`` is False), are
  updated at hotplug. After a removal of memory **the removed range stays in the header**:
  MEM_OFFLINE comes before ``release_mem_region_adjustable()``.
* ``drop_updates(n)``: the next n updates are dropped, as happens while the kexec lock is held.
* ``contended = True``: crash_hotplug reads 0 meanwhile.
* ``write_header(pauses)``: the kernel is at writing the header, until the reader has paused so
  often. Meanwhile it holds no image: kexec_crash_image is NULL (arch/x86/kernel/crash.c,
  arch_crash_handle_hotplug_event: ``xchg(&kexec_crash_image, NULL)``, memcpy, xchg back), so
  that kexec_crash_loaded reads 0; and it has the kexec lock, so that crash_hotplug does.
* ``lock_down("integrity")``: no kexec_load, and no unsigned files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdumphpd.machine.ranges import Range
from tests.unit import fake_files, fake_kexec
from tests.unit.fake_file_load import (
    Ways,
    add_buffers,
    command_line_errno,
    load_errno,
    searches,
)
from tests.unit.fake_kernel import MIB, FakeKernel, SegmentLike
from tests.unit.fake_kexec import FILE_ON_CRASH, HOTPLUG_SUPPORT, KNOWN_FLAGS, PAGE, Place

_HOTPLUG = ("sys/devices/system/cpu/crash_hotplug", "sys/devices/system/memory/crash_hotplug")
_HEADER_SIZE = "sys/kernel/crash_elfcorehdr_size"
#: CONFIG_NR_CPUS_DEFAULT 64 (Debian has 8192, too much for a small reservation) and
#: CONFIG_CRASH_MAX_MEMORY_RANGES, without the ELF header.
_ELFCOREHDR_SIZE = (2 + 64 + 8192) * 56
_KEYS = "sys/kernel/config/crash_dm_crypt_keys/count"
_NO_FILE = -1


class CrashHotplugKernel(FakeKernel):
    """See the module's docstring."""

    known_flags = KNOWN_FLAGS | HOTPLUG_SUPPORT

    def __init__(self, directory: Path, *arguments: Any, **options: Any) -> None:
        self.updated: list[str] = []
        self.file_calls: list[tuple[str, int]] = []
        self.handed: list[tuple[str, bytes]] = []
        self.accepts_files: int | Callable[[bytes], int] = 0
        self.takes_unified = False
        self.ways = Ways()
        self.file_places: dict[str, Place] = {}
        self._elfcorehdr: Place | None = None  # where the kernel may write; None: it may not
        self._all_cpus = False  # the header has a note of every possible CPU
        self._dropped = 0
        self._contended = False
        self._writing = 0  # pauses that are left
        self._image = b""  # the pointer meanwhile
        super().__init__(directory, *arguments, **options)
        self.refuse("kexec_file_load", 0)
        self._show()
        self._write(_HEADER_SIZE, f"{_ELFCOREHDR_SIZE}\n")
        self._write("proc/sys/kernel/random/boot_id", "6f6c1ab0-5f0a-4f5c-8a7e-000000000001\n")

    # --- what a test can do to it ------------------------------------------------------

    def forget_flag(self) -> None:
        """Linux 6.6 to 6.9: there is crash_hotplug, but not the flag."""
        self.known_flags = KNOWN_FLAGS

    def drop_updates(self, count: int) -> None:
        self._dropped = count

    @property
    def contended(self) -> bool:
        return self._contended

    @contended.setter
    def contended(self, held: bool) -> None:
        self._contended = held
        self._show()

    def write_header(self, pauses: int = 1) -> None:
        self._writing = pauses
        self._write("sys/kernel/kexec_crash_loaded", "0\n")
        pointer = self.symbols.get("kexec_crash_image")
        if pointer is not None:
            self._image = self.read_memory(pointer, 8)
            self.write_memory(pointer, bytes(8))
        self.contended = True

    def pause(self, seconds: float) -> None:
        super().pause(seconds)
        self._writing -= 1
        if self._writing == 0:
            self._write("sys/kernel/kexec_crash_loaded", f"{int(self.loaded)}\n")
            if self._image:
                self.write_memory(self.symbols["kexec_crash_image"], self._image)
            self.contended = False

    def lock_down(self, mode: str) -> None:
        self._write("sys/kernel/security/lockdown", f"none [{mode}] other\n")
        self.refuse("kexec_load", errno.EPERM)
        self.accepts_files = errno.EPERM

    @property
    def keeps(self) -> bool:
        """Whether it updates the loaded image."""
        return self._elfcorehdr is not None and self.loaded

    # --- the kernel's own updates ------------------------------------------------------

    def hot_add_memory(self, added: Range, name: str = "System RAM") -> None:
        super().hot_add_memory(added, name)
        self._update("memory added")

    def hot_remove_memory(self, removed: Range) -> None:
        self._update("memory removed")  # too early: it is still in iomem
        super().hot_remove_memory(removed)

    def hot_add_cpu(self, number: int, registered: bool = True) -> None:
        super().hot_add_cpu(number, registered)
        self._update_cpus("cpu added")

    def hot_remove_cpu(self, number: int) -> None:
        super().hot_remove_cpu(number)
        self._update_cpus("cpu removed")

    def _update_cpus(self, what: str) -> None:
        if not self._all_cpus:
            self._update(what)

    def _update(self, what: str) -> None:
        if self._elfcorehdr is None or not self.loaded:
            return
        if self._dropped:
            self._dropped -= 1
            return
        content = self._kernel_header()
        if len(content) > self._elfcorehdr.memsz:
            return
        self.write_memory(self._elfcorehdr.mem, content)
        self._all_cpus = True
        self.updated.append(what)

    def _kernel_header(self) -> bytes:
        holes = [Range(0, MIB - 1), self.reservation]
        holes += [self.low_reservation] if self.low_reservation else []
        holes += self.cma
        ram = fake_files.without(self.ram, holes)
        notes = [(self.crash_notes(cpu), 368) for cpu in range(self.possible)]
        notes.append((self.vmcoreinfo, 0x1024))
        loads = fake_files.kcore_loads(self.text, ram, self.page_offset)
        return fake_files.elfcorehdr(notes, loads)

    # --- kexec -------------------------------------------------------------------------

    def _load(
        self, entry: int, segments: Sequence[SegmentLike], places: tuple[Place, ...], flags: int
    ) -> None:
        try:
            super()._load(entry, segments, places, flags)
            # By its first bytes (crash_core.c, crash_handle_hotplug_event).
            header = [one for one in places if self.read_memory(one.mem, 4) == b"\x7fELF"]
            asked = bool(flags & HOTPLUG_SUPPORT) and len(header) == 1
            self._elfcorehdr = header[0] if asked else None
            self._all_cpus = False
        finally:
            self._show()

    def unload(self) -> None:
        super().unload()
        self._elfcorehdr = None
        self._show()

    def kexec_file_load(
        self, kernel_fd: int, initrd_fd: int, command_line: bytes, flags: int
    ) -> int:
        """kexec_file_load(2): microseconds, of its own making, or OSError."""
        kind = "crash" if flags & FILE_ON_CRASH else "reboot"
        try:
            self._file_load(kernel_fd, initrd_fd, command_line, flags)
        except OSError as error:
            self.file_calls.append((kind, error.errno or 0))
            raise
        finally:
            self._show()
        self.file_calls.append((kind, 0))
        return 2_500_000

    def _file_load(self, kernel_fd: int, initrd_fd: int, command_line: bytes, flags: int) -> None:
        self._permit("kexec_file_load", flags)
        crash = bool(flags & FILE_ON_CRASH)
        injected = self._failures.pop(0) if crash and self._failures else (0, True)
        _raise_if(injected[0] if injected[1] else 0)
        if crash:
            self.unload()
        # kimage_file_prepare_segments, kernel/kexec_file.c: read, probe, signature, initrd.
        kernel = _content(kernel_fd)
        self.handed.append(("crash" if crash else "reboot", kernel))
        if not (self.takes_unified and kernel[:2] == b"MZ"):
            _raise_if(fake_kexec.probe_errno(kernel))
        accepts = self.accepts_files
        _raise_if(accepts(kernel) if callable(accepts) else accepts)
        initrd = _content(initrd_fd)
        if not crash:
            raise AssertionError("nobody means to reboot")
        _raise_if(injected[0])
        self._place_files(kernel, initrd, command_line)
        self._set_loaded(True)

    def _place_files(self, kernel: bytes, initrd: bytes, command_line: bytes) -> None:
        """The order of bzImage64_load; EADDRNOTAVAIL, EINVAL or ENOMEM without a place.

        The image that was loaded has been freed by then (kexec_file_load,
        kimage_file_alloc_init in kernel/kexec_file.c).
        """
        kernel = kernel[max(kernel.find(b"HdrS") - 0x202, 0) :]  # of a unified kernel image
        size = _ELFCOREHDR_SIZE + 64
        keys = self._file(_KEYS)
        ways = replace(self.ways, keys=int(keys.read_text()) if keys.exists() else 0)
        _raise_if(command_line_errno(kernel, command_line, ways))
        buffers = searches(kernel, len(initrd), command_line, size, ways)
        tables = fake_kexec.page_tables(self.pfn_mapped, self.gbpages)
        _raise_if(load_errno(self.reservation, buffers, ways, self.total_ram_pages, tables))
        places = {one.name: one for one in add_buffers(self.reservation, buffers, ways)}
        pages = fake_kexec.control_pages(list(places.values()), self.reservation, tables)
        for page in pages or ():
            self.write_memory(page, b"\xcc" * PAGE)
        self.file_places = places
        self._elfcorehdr = places["elfcorehdr"]
        params = places["boot_params"]
        text = b"elfcorehdr=0x%x " % self._elfcorehdr.mem + command_line + b"\0"
        page = bytearray(PAGE)
        page[0x202:0x206] = b"HdrS"
        struct.pack_into("<I", page, 0x228, params.mem + PAGE)
        contents = {
            "elfcorehdr": self._kernel_header(),
            "purgatory": hashlib.sha256(kernel + initrd + text).digest() * 8,
            "boot_params": bytes(page) + text,
            "kernel": kernel[((kernel[0x1F1] or 4) + 1) * 512 :],
            "initrd": initrd,
        }
        for name, content in contents.items():
            # The rest of a segment is zeros (kernel/kexec_core.c, kimage_load_crash_segment).
            self.write_image(places[name].mem, content.ljust(places[name].memsz, b"\0"))
        self.entry = places["purgatory"].mem
        self._all_cpus = True

    def foreign_load(self, style: str = "kexec_load") -> Any:
        found = super().foreign_load(style)
        self._elfcorehdr = None
        if style == "kexec_file_load":
            self._elfcorehdr = Place("elfcorehdr", found.elfcorehdr, _ELFCOREHDR_SIZE, 0)
        self._show()
        return found

    def _show(self) -> None:
        for name in _HOTPLUG:
            self._write(name, f"{int(self.keeps and not self._contended)}\n")


def _raise_if(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))


def _content(fd: int) -> bytes:
    _raise_if(errno.EBADF if fd == _NO_FILE else 0)
    return os.pread(fd, os.fstat(fd).st_size, 0)
