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
  freed (EPERM, EBUSY) or after it (ENOMEM, EFAULT).
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
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.machine.files import Root
from kdumphpd.machine.ranges import Range
from tests.unit import fake_files, fake_kexec
from tests.unit.fake_kcore import KcoreFile
from tests.unit.fake_kexec import FILE_ON_CRASH, ON_CRASH, PAGE, Place

MIB = 1 << 20
_TEXT_SIZE = 0x2800000
#: sizeof(note_buf_t): a prstatus note, and an empty one that ends the list.
_CRASH_NOTES_SIZE = 368
#: VMCOREINFO_NOTE_SIZE, include/linux/crash_core.h.
_VMCOREINFO_SIZE = 0x1024
_GARBAGE = b"\xcc"
_CPUS = "sys/devices/system/cpu"
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


class FakeKernel:
    """See the module's docstring."""

    known_flags = fake_kexec.KNOWN_FLAGS

    def __init__(
        self,
        directory: Path,
        ram: Sequence[Range],
        reservation: Range,
        low_reservation: Range | None = None,
        cpus: Sequence[int] = (0,),
        possible: int = 8,
        *,
        page_offset: int = fake_files.PAGE_OFFSET,
        gbpages: bool = False,
        block_size: int = 128 * MIB,
        text: Range | None = None,
    ) -> None:
        self.directory = directory
        self.root = Root(directory)
        self.reservation = reservation
        self.low_reservation = low_reservation
        self.page_offset = page_offset
        self.gbpages = gbpages
        self.possible = possible
        self.permitted = True
        self.refusals = {"kexec_file_load": errno.ENOSYS}
        self.calls: list[Call] = []
        self.control_pages: tuple[int, ...] = ()
        self.entry: int | None = None
        self._resources = [(one, "System RAM") for one in sorted(ram)]
        self._cpus: set[int] = set()
        self._failures: list[tuple[int, bool]] = []
        self.text = text or self._place_text()
        self.vmcoreinfo = self.text.end + 1
        self._kcore = KcoreFile(self._file("proc/kcore"))
        self._write_fixed(block_size)
        self._write_memory_files()
        for number in cpus:
            self.hot_add_cpu(number)
        self._set_loaded(False)

    @classmethod
    def q35(
        cls,
        directory: Path,
        memory: int = 2 << 30,
        crashkernel: int = 256 * MIB,
        cpus: Sequence[int] = (0,),
        possible: int = 8,
        *,
        gbpages: bool = False,
    ) -> FakeKernel:
        """A q35 guest under SeaBIOS: RAM up to 2 GiB, the rest from 4 GiB on."""
        low = min(memory, 2 << 30)
        ram = [Range(0x1000, 0x9FBFF), Range(MIB, low - 0x21001)]
        if memory > low:
            ram.append(Range(4 << 30, (4 << 30) + memory - low - 1))
        end = (low - 16 * MIB) // (16 * MIB) * (16 * MIB)
        reservation = Range(end - crashkernel, end - 1)
        return cls(directory, ram, reservation, None, cpus, possible, gbpages=gbpages)

    # --- the machine -------------------------------------------------------------------

    @property
    def ram(self) -> tuple[Range, ...]:
        """System RAM resources, sorted; neighbours are not merged."""
        return tuple(sorted(one for one, _ in self._resources))

    @property
    def cpus(self) -> tuple[int, ...]:
        return tuple(sorted(self._cpus))

    @property
    def loaded(self) -> bool:
        return self._file("sys/kernel/kexec_crash_loaded").read_text() == "1\n"

    @property
    def total_ram_pages(self) -> int:
        """totalram_pages(), MemTotal: without what was taken at boot, the reservations first."""
        taken = self.reservation.size + (self.low_reservation.size if self.low_reservation else 0)
        total = sum(one.size for one in self.ram)
        return (total - taken - total // 64 - self.text.size) // PAGE

    def crash_notes(self, cpu: int) -> int:
        """Address of a CPU's note buffer: made at boot for every possible CPU."""
        return self.vmcoreinfo + 2 * PAGE + cpu * 2 * PAGE + 0x400

    def hot_add_memory(self, added: Range, name: str = "System RAM") -> None:
        """Add a DIMM (or with another name virtio_mem, kmem): all of it shows at once."""
        if any(added.overlaps(one) for one in self.ram):
            raise ValueError(f"{added} is there already")
        self._resources.append((added, name))
        self._write_memory_files()

    def hot_remove_memory(self, removed: Range) -> None:
        """Take memory away: one or more resources, or an end or middle of one."""
        left = [
            (piece, name)
            for one, name in self._resources
            for piece in fake_files.without([one], [removed])
        ]
        gone = sum(one.size for one in self.ram) - sum(one.size for one, _ in left)
        if gone != removed.size:
            raise ValueError(f"{removed} is not all there")
        self._resources = left
        self._write_memory_files()

    def hot_add_cpu(self, number: int, registered: bool = True) -> None:
        if not 0 <= number < self.possible or number in self._cpus:
            raise ValueError(f"cpu {number} cannot be added")
        self._cpus.add(number)
        self._write(f"{_CPUS}/present", fake_files.cpu_list(self._cpus))
        if registered:
            self.register_cpu(number)

    def register_cpu(self, number: int) -> None:
        """Make the directory of a CPU that is present."""
        self._write(f"{_CPUS}/cpu{number}/crash_notes", f"{self.crash_notes(number):x}\n")
        self._write(f"{_CPUS}/cpu{number}/crash_notes_size", f"{_CRASH_NOTES_SIZE}\n")

    def hot_remove_cpu(self, number: int) -> None:
        self._cpus.remove(number)
        self._write(f"{_CPUS}/present", fake_files.cpu_list(self._cpus))
        shutil.rmtree(self._file(f"{_CPUS}/cpu{number}"), ignore_errors=True)

    # --- physical memory ---------------------------------------------------------------

    def read_memory(self, address: int, size: int) -> bytes:
        self._check_mapped(address, size)
        return self._kcore.read(address, size)

    def write_memory(self, address: int, data: bytes) -> None:
        self._check_mapped(address, len(data))
        self._kcore.write(address, data)

    def _check_mapped(self, address: int, size: int) -> None:
        if not any(one.start <= address and address + size - 1 <= one.end for one in self.ram):
            raise ValueError(f"{size} bytes at {address:#x} are not in one RAM range")

    # --- kexec -------------------------------------------------------------------------

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
        tables = fake_kexec.page_tables(self.ram, self.gbpages)
        pages = fake_kexec.control_pages(places, self.reservation, tables)
        if pages is None:
            raise _error(errno.ENOMEM)
        for page in pages:
            self.write_memory(page, _GARBAGE * PAGE)
        _raise_if(injected[0])
        self._copy(segments)
        self.control_pages = tuple(pages)
        self.entry = entry
        self._set_loaded(True)

    def _copy(self, segments: Sequence[SegmentLike]) -> None:
        for one in segments:
            with one.content.view() as content:
                size = len(content)
                self.write_memory(one.place.start, bytes(content))
            if size < one.place.size:
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
        self.write_memory(command_line, text + b"\0")
        self.write_memory(header, self._foreign_header())
        self.entry = last + 0x2000
        self._set_loaded(True)
        return ForeignImage(header, command_line, text)

    def _foreign_header(self) -> bytes:
        holes = [Range(0, MIB - 1), self.reservation]
        holes += [self.low_reservation] if self.low_reservation else []
        ram = fake_files.without(self.ram, holes)
        notes = [(self.crash_notes(cpu), _CRASH_NOTES_SIZE) for cpu in self.cpus]
        notes.append((self.vmcoreinfo, _VMCOREINFO_SIZE))
        return fake_files.elfcorehdr(
            notes, fake_files.kcore_loads(self.text, ram, self.page_offset)
        )

    def crash(self, elfcorehdr: int) -> fake_files.Found | None:
        """What ``fs/proc/vmcore.c`` would make of the header at ``elfcorehdr``."""
        if not self.loaded:
            return None
        size = min(1 << 22, self.reservation.end + 1 - elfcorehdr)
        return fake_files.read_elfcorehdr(self.read_memory(elfcorehdr, size))

    # --- files -------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write(self, name: str, content: str | bytes) -> None:
        """Replace a file in one step: a reader sees the old content or the new."""
        path = self._file(name)
        beside = path.with_name(path.name + ".new")
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        beside.replace(path)

    def _set_loaded(self, loaded: bool) -> None:
        self._write("sys/kernel/kexec_crash_loaded", f"{int(loaded)}\n")

    def _place_text(self) -> Range:
        for one in self.ram:
            start = max(one.start + 2 * MIB - 1, 16 * MIB) // (2 * MIB) * (2 * MIB)
            place = Range(start, start + _TEXT_SIZE - 1)
            if one.contains(place) and not place.overlaps(self.reservation):
                return place
        raise ValueError("no RAM range has room for the kernel text; name one with text=")

    def _write_fixed(self, block_size: int) -> None:
        self._write("sys/kernel/vmcoreinfo", f"0x{self.vmcoreinfo:016x} {_VMCOREINFO_SIZE:x}\n")
        self._write("sys/kernel/kexec_crash_size", f"{self.reservation.size}\n")
        self._write(f"{_CPUS}/possible", fake_files.cpu_list(range(self.possible)))
        self._write("sys/devices/system/memory/block_size_bytes", f"{block_size:x}\n")
        devices = [one for one, name in fake_files.Q35_DEVICES if name == "Reserved"]
        self._write("sys/kernel/boot_params/data", fake_files.boot_params(self.ram, devices))
        self._write("sys/kernel/boot_params/version", "0x020f\n")

    def _write_memory_files(self) -> None:
        self._write("proc/iomem", fake_files.iomem(self._iomem_resources()))
        self._write("proc/meminfo", f"MemTotal:       {self.total_ram_pages * 4:8} kB\n")
        loads = fake_files.kcore_loads(self.text, self.ram, self.page_offset)
        end = max(one.end for one in self.ram) + 1
        self._kcore.show(fake_files.kcore_head(loads), end)

    def _iomem_resources(self) -> list[tuple[Range, str]]:
        text, half = self.text.start, self.text.size // 2
        inner = [
            (Range(text, text + half - 1), "Kernel code"),
            (Range(text + half, text + half + 0xB44FFF), "Kernel rodata"),
            (self.reservation, "Crash kernel"),
        ]
        if self.low_reservation:
            inner.append((self.low_reservation, "Crash kernel"))
        return [*self._resources, *fake_files.firmware_resources(self.ram), *inner]


def _place(segment: SegmentLike) -> Place:
    return Place(segment.name, segment.place.start, segment.place.size, len(segment.content))


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _raise_if(code: int) -> None:
    if code:
        raise _error(code)
