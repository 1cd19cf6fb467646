"""A machine made of files: memory and CPUs that come and go, and what the kernel shows of them.

`tests.unit.fake_kernel` adds kexec, and says what all of it is.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from kdumphpd.machine.files import Root
from kdumphpd.machine.ranges import Range, merge
from tests.unit import fake_files
from tests.unit.fake_kcore import KcoreFile
from tests.unit.fake_kexec import PAGE

MIB = 1 << 20
_TEXT_SIZE = 0x2800000
#: sizeof(note_buf_t): a prstatus note, and an empty one that ends the list.
CRASH_NOTES_SIZE = 368
#: VMCOREINFO_NOTE_SIZE, include/linux/crash_core.h.
VMCOREINFO_SIZE = 0x1024
#: Where in the kernel image its variables lie: behind the text, in .bss.
_BSS_OFFSET = 0x2400000
_CMA_COUNT, _CMA_RANGES = _BSS_OFFSET, _BSS_OFFSET + 0x20
_MAPPED_COUNT, _MAPPED = _BSS_OFFSET + 0x1000, _BSS_OFFSET + 0x2000
_CPUS = "sys/devices/system/cpu"

#: Stands for a cipher: undone by doing it again.
_NOISE = bytes(one ^ 0xA5 for one in range(256))

_Machine = TypeVar("_Machine", bound="FakeMachine")


class FakeMachine:
    """Memory, CPUs, and the files under /proc and /sys that tell of them."""

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
        self.root = Root(directory, self.pause)
        self.paused = 0
        self.reservation = reservation
        self.low_reservation = low_reservation
        self.page_offset = page_offset
        self.gbpages = gbpages
        self.possible = possible
        self._resources = [(one, "System RAM") for one in sorted(ram)]
        self.devices: list[tuple[Range, str]] = []
        # The first MiB is mapped whole (arch/x86/mm/init.c, init_mem_mapping).
        self.pfn_mapped = merge([Range(0, MIB - 1), *map(_whole_pages, ram)])
        self._cpus: set[int] = set()
        self.symbols: dict[str, int] = {}  # physical addresses of variables
        self.cma: tuple[Range, ...] = ()
        self.sme_mask = 0
        self.text = text or self._place_text()
        self.vmcoreinfo = self.text.end + 1
        self._kcore = KcoreFile(self._file("proc/kcore"))
        self._write_fixed(block_size)
        self._write_memory_files()
        self.encrypt(0)
        for number in cpus:
            self.hot_add_cpu(number)

    @classmethod
    def q35(
        cls: type[_Machine],
        directory: Path,
        memory: int = 2 << 30,
        crashkernel: int = 256 * MIB,
        cpus: Sequence[int] = (0,),
        possible: int = 8,
        *,
        gbpages: bool = False,
    ) -> _Machine:
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
        self._map(added)
        self._write_memory_files()

    def map_device_memory(self, added: Range, name: str = "Persistent Memory") -> None:
        """A device's memory gets struct pages: mapped, and no System RAM.

        mm/memremap.c, memremap_pages: persistent memory, a PCI BAR for peer-to-peer DMA.
        """
        self.devices.append((added, name))
        self._map(added)
        self._write_memory_files()

    def unplug_device_memory(self, removed: Range) -> None:
        """Gone from iomem; from pfn_mapped nothing goes."""
        self.devices = [one for one in self.devices if one[0] != removed]
        self._write_memory_files()

    def _map(self, added: Range) -> None:
        """init_memory_mapping: add_pfn_range_mapped, arch/x86/mm/init.c."""
        self.pfn_mapped = merge([*self.pfn_mapped, _whole_pages(added)])
        if "pfn_mapped" in self.symbols:
            self._write_mapped()

    def show_mapped(self) -> None:
        """Let kallsyms list nr_pfn_mapped and pfn_mapped (CONFIG_KALLSYMS_ALL)."""
        self._write_mapped()
        self.show_symbol("nr_pfn_mapped", self.text.start + _MAPPED_COUNT)
        self.show_symbol("pfn_mapped", self.text.start + _MAPPED)

    def _write_mapped(self) -> None:
        pairs = [(one.start // PAGE, (one.end + 1) // PAGE) for one in self.pfn_mapped]
        self.set_mapped_variables(len(pairs), pairs)

    def set_mapped_variables(self, count: int, pairs: Sequence[tuple[int, int]]) -> None:
        """int nr_pfn_mapped; struct range pfn_mapped[], in pages, end excluded."""
        packed = b"".join(struct.pack("<QQ", *one) for one in pairs)
        self.write_memory(self.text.start + _MAPPED_COUNT, struct.pack("<i", count))
        self.write_memory(self.text.start + _MAPPED, packed)

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

    def reserve_cma(self, *ranges: Range, shown: str = "sysfs") -> None:
        """Be booted with ``crashkernel=...,cma``: ordinary RAM to ``/proc/iomem``.

        kernel/crash_reserve.c, reserve_crashkernel_cma: at most four ranges.

        Args:
            ranges: what was reserved.
            shown: where: in ``sysfs`` (kernel/kexec_core.c, crash_cma_ranges_show), in
                ``memory`` (6.17 to 6.19 have no file), or ``hidden`` (nor symbols' addresses).
        """
        self.cma = ranges
        size = sum(one.size for one in ranges)
        self._write("proc/cmdline", f"ro crashkernel=256M crashkernel={size // MIB}M,cma\n")
        if shown == "sysfs":
            lines = "".join(f"{one.start:08x}-{one.end:08x}\n" for one in ranges)
            self._write("sys/kernel/kexec/crash_cma_ranges", lines)
            return
        self.set_cma_variables(len(ranges), [(one.start, one.end) for one in ranges])
        self.show_symbol("crashk_cma_cnt", self.text.start + _CMA_COUNT)
        self.show_symbol("crashk_cma_ranges", self.text.start + _CMA_RANGES)
        if shown == "hidden":
            self.hide_symbols()

    def set_cma_variables(self, count: int, pairs: Sequence[tuple[int, int]]) -> None:
        """crashk_cma_cnt and crashk_cma_ranges, an array of four."""
        packed = b"".join(struct.pack("<QQ", *one) for one in pairs)
        self.write_memory(self.text.start + _CMA_COUNT, struct.pack("<i", count))
        self.write_memory(self.text.start + _CMA_RANGES, packed.ljust(4 * 16, b"\0"))

    def show_symbol(self, name: str, address: int) -> None:
        """List ``name``, which lies at physical ``address`` in the kernel image."""
        self.symbols[name] = address
        base = fake_files.TEXT_MAP + fake_files.TEXT_KASLR - self.text.start
        shown = {name: base + address for name, address in self.symbols.items()}
        self._write("proc/kallsyms", fake_files.kallsyms(shown))

    def hide_symbols(self) -> None:
        """kptr_restrict, or no CAP_SYSLOG: the names are there, each at 0 (kernel/kallsyms.c)."""
        self._write("proc/kallsyms", fake_files.kallsyms(dict.fromkeys(self.symbols, 0)))

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
        self._write(f"{_CPUS}/cpu{number}/crash_notes_size", f"{CRASH_NOTES_SIZE}\n")

    def hot_remove_cpu(self, number: int) -> None:
        self._cpus.remove(number)
        self._write(f"{_CPUS}/present", fake_files.cpu_list(self._cpus))
        shutil.rmtree(self._file(f"{_CPUS}/cpu{number}"), ignore_errors=True)

    def pause(self, seconds: float) -> None:
        """Let the reader wait; what the kernel is at goes on meanwhile."""
        self.paused += 1

    # --- physical memory ---------------------------------------------------------------

    def read_memory(self, address: int, size: int) -> bytes:
        self._check_mapped(address, size)
        return self._kcore.read(address, size)

    def write_memory(self, address: int, data: bytes) -> None:
        self._check_mapped(address, len(data))
        self._kcore.write(address, data)

    def encrypt(self, sme_mask: int = 1 << 47) -> None:
        """Be booted with ``mem_encrypt=on``; 0 for without."""
        self.sme_mask = sme_mask
        note = fake_files.vmcoreinfo(sme_mask)
        self.write_memory(self.vmcoreinfo, note.ljust(VMCOREINFO_SIZE, b"\0"))

    def write_image(self, address: int, data: bytes) -> None:
        """Write what an image is made of.

        With SME it is written through a mapping without the C-bit, which has it again
        afterwards (kernel/kexec_core.c, kimage_load_crash_segment; arch/x86/kernel/
        machine_kexec_64.c, arch_kexec_post_alloc_pages): kcore shows noise.
        """
        self.write_memory(address, data.translate(_NOISE) if self.sme_mask else data)

    def read_image(self, address: int, size: int) -> bytes:
        """What the crash kernel, which boots without encryption, finds there."""
        data = self.read_memory(address, size)
        return data.translate(_NOISE) if self.sme_mask else data

    def _check_mapped(self, address: int, size: int) -> None:
        if not any(one.start <= address and address + size - 1 <= one.end for one in self.ram):
            raise ValueError(f"{size} bytes at {address:#x} are not in one RAM range")

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

    def _place_text(self) -> Range:
        for one in self.ram:
            start = max(one.start + 2 * MIB - 1, 16 * MIB) // (2 * MIB) * (2 * MIB)
            place = Range(start, start + _TEXT_SIZE - 1)
            if one.contains(place) and not place.overlaps(self.reservation):
                return place
        raise ValueError("no RAM range has room for the kernel text; name one with text=")

    def _write_fixed(self, block_size: int) -> None:
        self._write("sys/kernel/vmcoreinfo", f"0x{self.vmcoreinfo:016x} {VMCOREINFO_SIZE:x}\n")
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
        return [*self._resources, *self.devices, *fake_files.firmware_resources(self.ram), *inner]


def _whole_pages(one: Range) -> Range:
    return Range(one.start // PAGE * PAGE, -(-(one.end + 1) // PAGE) * PAGE - 1)
