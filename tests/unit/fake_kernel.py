"""A machine whose kernel is made of files: hotplug, kexec_load and its traps, without a VM.

::

    kernel = FakeKernel(tmp_path, ram=[Range(0x1000, 0x9fbff), Range(0x100000, 0x7ffdefff)],
                        reservation=Range(0x6f000000, 0x7effffff), cpus=(0, 1))
    kernel = FakeKernel.q35(tmp_path, memory=2 << 30, crashkernel=256 << 20)  # the same, shorter

    root = Root(tmp_path)       # what kdumphpd reads; kernel is a syscalls.Kernel
    kernel.root                 # the same

What it is:

* ``ram``: top-level System RAM of ``/proc/iomem``. ``reservation`` (crashk_res), and the
  low one if any, lie in it. ``text``, ``crash_notes(cpu)``, ``vmcoreinfo``: where things are.
* ``page_offset``, ``gbpages`` (1 GiB pages for the page tables of a load: fewer control pages).
* ``proc/kcore`` is a sparse file with the real header; ``read_memory``/``write_memory`` go to the
  same bytes that kdumphpd reads there.

What can be done to it:

* ``hot_add_memory``, ``hot_remove_memory`` (whole resources or a part), ``hot_add_cpu`` (with
  ``registered=False`` for the moment at which its directory is not there yet; ``register_cpu``
  makes it), ``hot_remove_cpu``.
* ``kexec_load`` as ``kernel/kexec.c`` has it: what is refused early leaves the old image;
  after that it is gone, whatever happens. Control pages come from the lowest hole that
  overlaps no segment *of this call* and are filled with 0xCC. ``calls`` lists what was asked
  and what came of it, ``control_pages`` what the last load took, ``entry`` where the loaded
  image is entered.
* ``may_load()`` and EPERM follow ``permitted``; ``load_limit`` is kernel.kexec_load_limit_panic.
  ``refuse("kexec_load", ENOSYS)`` lets every call of one kind fail; kexec_file_load does so from
  the start (`tests.unit.fake_crash_hotplug` has a kernel that knows it).
* ``fail_next(errno, before_free, times)``: the next calls fail with errno, before the old image is
  freed (EPERM, EBUSY) or after it (ENOMEM; EFAULT, when half is copied).
* ``foreign_load("kexec_load" | "kexec_file_load")``: an image of kexec-tools, as it was seen to
  overwrite the first and the last MiB and nothing between.
* ``unload()``: ``kexec -p -u``; the reservation's content stays.
* ``crash(elfcorehdr)``: what a crash now would find in the header there (read by pyelftools);
  None with nothing loaded, ``fake_files.NoVmcoreError`` for a header that the crash kernel
  could not use.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.machine.ranges import Range
from tests.unit import fake_files, fake_kexec
from tests.unit.fake_kexec import FILE_ON_CRASH, ON_CRASH, PAGE, Place
from tests.unit.fake_machine import CRASH_NOTES_SIZE, MIB, VMCOREINFO_SIZE, FakeMachine

_GARBAGE = b"\xcc"
_LIMIT = "proc/sys/kernel/kexec_load_limit_panic"


class SegmentLike(Protocol):
    """What is read of kdumphpd.load.segments.Segment."""

    @property
    def name(self) -> str: ...
    @property
    def content(self) -> LockedBuffer: ...
    @property
    def place(self) -> Range: ...


@dataclass(frozen=True)
class Call:
    """One kexec_load; ``error`` is 0 or the errno."""

    entry: int
    places: tuple[Place, ...]
    flags: int
    error: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.places)


@dataclass(frozen=True)
class ForeignImage:
    """Where a foreign loader put its header and command line."""

    elfcorehdr: int
    command_line: int
    text: bytes


class FakeKernel(FakeMachine):
    """See the module's docstring; arguments as `FakeMachine`."""

    known_flags = fake_kexec.KNOWN_FLAGS

    def __init__(self, directory: Path, *arguments: Any, **options: Any) -> None:
        super().__init__(directory, *arguments, **options)
        self.permitted = True
        self.refusals = {"kexec_file_load": errno.ENOSYS}
        self.calls: list[Call] = []
        self.control_pages: tuple[int, ...] = ()
        self.entry: int | None = None
        self.loaded = False
        self._failures: list[tuple[int, bool]] = []
        self._set_loaded(False)

    def _set_loaded(self, loaded: bool) -> None:
        self.loaded = loaded
        self._write("sys/kernel/kexec_crash_loaded", f"{int(loaded)}\n")

    def fail_next(self, code: int, before_free: bool, times: int = 1) -> None:
        """Make the next ``times`` loads fail with errno ``code``."""
        self._failures.extend([(code, before_free)] * times)

    def may_load(self) -> bool:
        return self.permitted

    def refuse(self, call: str, code: int) -> None:
        """Let every ``call`` (kexec_load, kexec_file_load) fail with errno ``code``; 0 ends it."""
        self.refusals[call] = code

    @property
    def load_limit(self) -> int:
        """kernel.kexec_load_limit_panic; -1 for no limit."""
        path = self.directory / _LIMIT
        return int(path.read_text()) if path.exists() else -1

    @load_limit.setter
    def load_limit(self, limit: int) -> None:
        self._write(_LIMIT, f"{limit}\n")

    def _permit(self, call: str, flags: int) -> None:
        """The system call's number, then kexec_load_permitted and its like."""
        if self.refusals.get(call) == errno.ENOSYS:
            raise _error(errno.ENOSYS)
        if not self.permitted or self.load_limit == 0:
            raise _error(errno.EPERM)
        if self.load_limit > 0 and flags & (ON_CRASH if call == "kexec_load" else FILE_ON_CRASH):
            self.load_limit -= 1
        _raise_if(self.refusals.get(call, 0))

    def kexec_load_refusal(self, flags: int) -> int:
        return self._refusal("kexec_load", flags)

    def kexec_file_load_refusal(self, flags: int) -> int:
        return self._refusal("kexec_file_load", flags)

    def _refusal(self, call: str, flags: int) -> int:
        try:
            self._permit(call, flags)
        except OSError as error:
            return error.errno or 0
        return errno.EINVAL

    def kexec_file_load(
        self, kernel_fd: int, initrd_fd: int, command_line: bytes, flags: int
    ) -> int:
        """kexec_file_load(2), which this kernel has not."""
        self._permit("kexec_file_load", flags)
        raise AssertionError("it is refused")

    def kexec_load(self, entry: int, segments: Sequence[SegmentLike], flags: int) -> int:
        """kexec_load(2): microseconds, of its own making, or OSError."""
        places = tuple(_place(one) for one in segments)
        try:
            self._load(entry, segments, places, flags)
        except OSError as error:
            self.calls.append(Call(entry, places, flags, error.errno or 0))
            raise
        self.calls.append(Call(entry, places, flags))
        return 1000 + sum(one.memsz for one in places) // 1024

    def _load(
        self, entry: int, segments: Sequence[SegmentLike], places: tuple[Place, ...], flags: int
    ) -> None:
        injected = self._failures.pop(0) if self._failures else (0, True)
        self._permit("kexec_load", flags)
        _raise_if(fake_kexec.early_errno(len(places), flags, self.known_flags))
        if not flags & ON_CRASH:
            raise _error(errno.EINVAL)  # not of the kernel: no test means to replace kexec_image
        if injected[1]:
            _raise_if(injected[0])
        self._set_loaded(False)
        self.entry = None
        if not places:
            return
        total = self.total_ram_pages
        _raise_if(fake_kexec.late_errno(entry, places, self.reservation, total))
        tables = fake_kexec.page_tables(self.pfn_mapped, self.gbpages)
        pages = fake_kexec.control_pages(places, self.reservation, tables)
        if pages is None:
            raise _error(errno.ENOMEM)
        for page in pages:
            self.write_memory(page, _GARBAGE * PAGE)
        if injected[0] == errno.EFAULT:
            # kernel/kexec_core.c, kimage_load_crash_segment: page by page, so what lies before
            # the page that cannot be read has been copied by then.
            self._copy(segments, sum(len(one.content) for one in segments) // 2)
        _raise_if(injected[0])
        self._copy(segments)
        self.control_pages = tuple(pages)
        self.entry = entry
        self._set_loaded(True)

    def _copy(self, segments: Sequence[SegmentLike], limit: int | None = None) -> None:
        """Copy all, or whole pages of the first ``limit`` bytes."""
        for one in segments:
            with one.content.view() as content:
                size = len(content)
                if limit is not None and limit < size:
                    self.write_image(one.place.start, bytes(content[: limit // PAGE * PAGE]))
                    return
                self.write_image(one.place.start, bytes(content))
            limit = None if limit is None else limit - size
            if size < one.place.size and self.sme_mask:
                self.write_image(one.place.start + size, bytes(one.place.size - size))
            elif size < one.place.size:
                self._kcore.clear(one.place.start + size, one.place.size - size)

    def unload(self) -> None:
        """``kexec -p -u``: the content of the reservation stays as it is."""
        self._set_loaded(False)
        self.entry = None

    def foreign_load(self, style: str = "kexec_load") -> ForeignImage:
        """Another loader's image, as `kexec -p` or `kexec -s -p` leave the reservation.

        Both write the first MiB and the last one and leave the middle alone (where
        kdumphpd's kernel and initrd lie); kexec_file_load has its header in the first, and
        leaves the last page alone (measured on 6.1).
        """
        first = self.reservation.start
        last = self.reservation.end + 1 - MIB
        self.write_memory(first, _GARBAGE * MIB)
        self.write_memory(last, _GARBAGE * (MIB - (PAGE if style == "kexec_file_load" else 0)))
        header = {"kexec_load": last + 0x61000, "kexec_file_load": first + 0x8000}[style]
        command_line = last + 0xFD000
        text = f"root=/dev/vda1 irqpoll nr_cpus=1 elfcorehdr={header // 1024}K".encode()
        self.write_image(command_line, text + b"\0")
        self.write_image(header, self._foreign_header(style))
        self.entry = last + 0x2000
        self._set_loaded(True)
        return ForeignImage(header, command_line, text)

    def _foreign_header(self, style: str) -> bytes:
        holes = [self.reservation]
        # kexec-tools lists the first MiB too (measured), the kernel leaves it out.
        holes += [Range(0, MIB - 1)] if style == "kexec_file_load" else []
        holes += [self.low_reservation] if self.low_reservation else []
        # elf_header_exclude_ranges, arch/x86/kernel/crash.c; kexec-tools knows nothing of it.
        holes += self.cma if style == "kexec_file_load" else ()
        ram = fake_files.without(self.ram, holes)
        notes = [(self.crash_notes(cpu), CRASH_NOTES_SIZE) for cpu in self.cpus]
        notes.append((self.vmcoreinfo, VMCOREINFO_SIZE))
        return fake_files.elfcorehdr(
            notes, fake_files.kcore_loads(self.text, ram, self.page_offset)
        )

    def crash(self, elfcorehdr: int) -> fake_files.Found | None:
        """What ``fs/proc/vmcore.c`` would make of the header at ``elfcorehdr``."""
        if not self.loaded:
            return None
        size = min(1 << 22, self.reservation.end + 1 - elfcorehdr)
        return fake_files.read_elfcorehdr(self.read_image(elfcorehdr, size))


def _place(segment: SegmentLike) -> Place:
    return Place(segment.name, segment.place.start, segment.place.size, len(segment.content))


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _raise_if(code: int) -> None:
    if code:
        raise _error(code)
