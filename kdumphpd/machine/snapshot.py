"""The machine as the running kernel describes it now: what a crash header must say."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kdumphpd.errors import MachineError
from kdumphpd.header import elfcorehdr
from kdumphpd.header.elfcorehdr import Note
from kdumphpd.machine import cpus, crash_cma, encryption, iomem, mapped, symbols
from kdumphpd.machine.files import Root
from kdumphpd.machine.iomem import Resource
from kdumphpd.machine.kcore import AddressMap, PhysicalMemory
from kdumphpd.machine.numbers import parse_u64
from kdumphpd.machine.ranges import Range, merge

_DEFAULT_BLOCK_SIZE = 128 << 20


@dataclass(frozen=True)
class Machine:
    """One look at the machine; two equal ones need the same header.

    Attributes:
        ram: what a vmcore must hold, merged and sorted.
        all_ram: all System RAM.
        cpus: crash_notes of each present CPU, by number.
        missing_notes: present CPUs whose crash_notes could not be read yet.
    """

    ram: tuple[Range, ...]
    all_ram: tuple[Range, ...]
    cpus: tuple[tuple[int, Note], ...]
    missing_notes: tuple[int, ...]
    fixed: Fixed

    @property
    def cpu_numbers(self) -> frozenset[int]:
        """Numbers of the CPUs with crash_notes."""
        return frozenset(number for number, _ in self.cpus)

    def header(self) -> bytes:
        """The elfcorehdr for this machine."""
        return elfcorehdr.build(
            [note for _, note in self.cpus],
            self.fixed.vmcoreinfo,
            self.fixed.addresses.text,
            self.ram,
            self.fixed.addresses.page_offset,
        )


@dataclass(frozen=True)
class Fixed:
    """What does not change while the machine is up.

    Attributes:
        cma: RAM that the crash kernel may use beside the reservation.
    """

    vmcoreinfo: Note
    addresses: AddressMap
    possible_cpus: int
    memory_block_size: int
    cma: tuple[Range, ...] = ()


class MachineReader:
    """Takes snapshots; keeps what cannot change, so that a look costs what changed.

    crash_notes are per-CPU allocations made once at boot (``kernel/kexec_core.c``,
    crash_notes_memory_init): a CPU that comes back has its old one.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._notes: dict[int, Note] = {}
        self._fixed: Fixed | None = None
        self._encryption: str | None = None
        self._mapped: tuple[Range, ...] = ()
        self._addresses: dict[str, int] | None = None  # of the kernel's list of what it mapped

    def resources(self) -> tuple[Resource, ...]:
        """``/proc/iomem`` as it is now."""
        return iomem.parse(self._root.read_text("/proc/iomem"))

    def fixed(self) -> Fixed:
        """What does not change while the machine is up, read once."""
        if self._fixed is None:
            with PhysicalMemory(self._root) as memory:
                addresses = memory.address_map()
                cma = crash_cma.ranges(self._root, memory)
            self._fixed = Fixed(
                vmcoreinfo=parse_vmcoreinfo(self._root.read_text("/sys/kernel/vmcoreinfo")),
                addresses=AddressMap(addresses.text, addresses.page_offset, ()),
                possible_cpus=cpus.possible_count(self._root),
                memory_block_size=self._block_size(),
                cma=cma,
            )
        return self._fixed

    def snapshot(self) -> Machine:
        """Look at the machine: one file for memory, one for the CPUs, two for each new CPU."""
        resources = self.resources()
        present = cpus.present(self._root)
        for number in present:
            if number not in self._notes:
                note = cpus.read_note(self._root, number)
                if note is not None:
                    self._notes[number] = note
        all_ram = iomem.system_ram(resources)
        self._mapped = merge((*self._mapped, *all_ram))
        return Machine(
            ram=iomem.dumpable_ram(resources, self.fixed().cma),
            all_ram=all_ram,
            cpus=tuple((one, self._notes[one]) for one in present if one in self._notes),
            missing_notes=tuple(one for one in present if one not in self._notes),
            fixed=self.fixed(),
        )

    def encryption(self) -> str:
        """Why what is loaded cannot be read back; see `kdumphpd.machine.encryption.active`."""
        if self._encryption is None:
            with PhysicalMemory(self._root) as memory:
                self._encryption = encryption.active(memory, self.fixed().vmcoreinfo)
        return self._encryption

    def mapped(self) -> tuple[Range, ...]:
        """What the page tables of a load now reach, at the most: all that was ever mapped.

        Where the kernel does not show its list, what was seen here, and what may be.
        """
        if self._addresses is None:
            self._addresses = symbols.addresses(self._root, mapped.SYMBOLS)
        resources = self.resources()
        with PhysicalMemory(self._root) as memory:
            more = mapped.of_kernel(memory, self._addresses) or mapped.of_iomem(resources)
        self._mapped = merge((*self._mapped, *iomem.system_ram(resources), *more))
        return self._mapped

    def known_notes(self) -> dict[Note, int]:
        """CPU numbers by note buffer, of every CPU seen so far."""
        return {note: number for number, note in self._notes.items()}

    def _block_size(self) -> int:
        name = "/sys/devices/system/memory/block_size_bytes"
        if not self._root.exists(name):
            return _DEFAULT_BLOCK_SIZE
        text = self._root.read_text(name)
        size = parse_u64(text, 16)
        if size is None:
            raise MachineError(f"{name}: {text[:40]!r} is not a number")
        return size


def total_ram(root: Root) -> int:
    """Bytes of RAM that the kernel has for itself (``MemTotal``), the reservation not counted.

    Raises:
        MachineError: /proc/meminfo does not say.
    """
    match = re.search(
        r"^MemTotal:[ \t]+([0-9]{1,16}) kB$", root.read_text("/proc/meminfo"), re.MULTILINE
    )
    if match is None:
        raise MachineError("/proc/meminfo has no MemTotal", "check that /proc is mounted and whole")
    return int(match[1]) << 10


def parse_vmcoreinfo(text: str) -> Note:
    """``/sys/kernel/vmcoreinfo`` (``kernel/ksysfs.c``): address and size, both hexadecimal.

    Raises:
        MachineError: the content is something else.
    """
    numbers = [parse_u64(part, 16) for part in text.split()]
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        raise MachineError(f"/sys/kernel/vmcoreinfo: {text[:60]!r} is not an address and a size")
    return Note(numbers[0], numbers[1])
