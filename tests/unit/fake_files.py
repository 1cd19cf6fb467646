"""The text and bytes of the files of a fake kernel: pure functions, sharing no code with kdumphpd.

Formats: ``kernel/resource.c`` (iomem), ``fs/proc/kcore.c`` (kcore),
``Documentation/arch/x86/zero-page.rst`` (boot_params).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from kdumphpd.machine.ranges import Range

PAGE = 4096
ALL_ONES = 0xFFFFFFFFFFFFFFFF
#: As KASLR would move it, at a multiple of 1 GiB; the fixed one is 0xffff888000000000.
PAGE_OFFSET = 0xFFFF8A1540000000
#: arch/x86/include/asm/page_64_types.h, __START_KERNEL_map, moved by KASLR.
TEXT_MAP = 0xFFFFFFFF80000000
TEXT_KASLR = 0x1B000000

#: Top-level lines of a q35 machine that are not RAM.
Q35_DEVICES = (
    (Range(0x0, 0xFFF), "Reserved"),
    (Range(0x9FC00, 0x9FFFF), "Reserved"),
    (Range(0xA0000, 0xBFFFF), "PCI Bus 0000:00"),
    (Range(0xC0000, 0xC99FF), "Video ROM"),
    (Range(0xF0000, 0xFFFFF), "Reserved"),
    (Range(0xF0000, 0xFFFFF), "System ROM"),
    (Range(0xB0000000, 0xBFFFFFFF), "PCI MMCONFIG 0000 [bus 00-ff]"),
    (Range(0xB0000000, 0xBFFFFFFF), "Reserved"),
    (Range(0xC0000000, 0xFEBFFFFF), "PCI Bus 0000:00"),
    (Range(0xFEC00000, 0xFEC003FF), "IOAPIC 0"),
    (Range(0xFEE00000, 0xFEE00FFF), "Local APIC"),
    (Range(0xFFFC0000, 0xFFFFFFFF), "Reserved"),
)


def iomem(resources: Iterable[tuple[Range, str]]) -> str:
    """``/proc/iomem``: each resource below the smallest one that holds it."""
    lines = []
    open_ranges: list[Range] = []
    for one, name in sorted(resources, key=lambda item: (item[0].start, -item[0].end)):
        while open_ranges and not open_ranges[-1].contains(one):
            open_ranges.pop()
        lines.append(f"{'  ' * len(open_ranges)}{one.start:08x}-{one.end:08x} : {name}\n")
        open_ranges.append(one)
    return "".join(lines)


def kallsyms(symbols: Mapping[str, int]) -> str:
    """``/proc/kallsyms`` with ``symbols``, all variables, among others (kernel/kallsyms.c)."""
    first = f"{min(symbols.values(), default=0):016x} T _text\n"
    listed = "".join(f"{address:016x} B {name}\n" for name, address in symbols.items())
    return f"{first}{listed}ffffffffc0000000 t late\t[module]\n"


def vmcoreinfo(sme_mask: int) -> bytes:
    """The note at vmcoreinfo's address (kernel/vmcore_info.c, append_elf_note) of an x86_64 kernel.

    arch/x86/kernel/vmcore_info_64.c, arch_crash_save_vmcoreinfo: numbers are %ld.
    """
    text = f"OSRELEASE=6.1.0-fake\nPAGESIZE={PAGE}\nNUMBER(phys_base)=-16777216\n"
    text += f"KERNELOFFSET={TEXT_KASLR:x}\nNUMBER(KERNEL_IMAGE_SIZE)=1073741824\n"
    text += f"NUMBER(sme_mask)={sme_mask}\n"
    head = struct.pack("<III", len(b"VMCOREINFO") + 1, len(text), 0) + b"VMCOREINFO\0\0"
    return head + text.encode()


@dataclass(frozen=True)
class Load:
    """A PT_LOAD of kcore; ``paddr`` is None for what is no direct mapping."""

    vaddr: int
    paddr: int | None
    size: int


def kcore_loads(text: Range, ram: Sequence[Range], page_offset: int) -> list[Load]:
    """The PT_LOADs in the kernel's order: text, vsyscall, vmalloc, modules, then RAM.

    Behind each RAM range comes the vmemmap that describes it (``kclist_add_private``).
    """
    loads = [
        Load(TEXT_MAP + TEXT_KASLR, text.start, text.size),
        Load(0xFFFFFFFFFF600000, None, PAGE),
        Load(0xFFFFA58740000000, None, 1 << 45),
        Load(0xFFFFFFFFC0000000, None, 0x3F000000),
    ]
    for one in ram:
        first, last = -(-one.start // PAGE), (one.end + 1) // PAGE
        if last > first:
            start, size = first * PAGE, (last - first) * PAGE
            loads.append(Load(page_offset + start, start, size))
            loads.append(
                Load(0xFFFFCF5480000000 + first * 64, None, max(PAGE, (last - first) * 64))
            )
    return loads


def kcore_head(loads: Sequence[Load]) -> bytes:
    """Everything in kcore before its first PT_LOAD: its length is where memory begins.

    As in the kernel, it grows by whole pages with the number of mappings, so
    that hotplug can move the offset of everything.
    """
    note = struct.pack("<III", 11, 24, 0) + b"VMCOREINFO\0\0" + b"OSRELEASE=6.1.0-fake\n\0\0\0\0"
    table = 64 + 56 * (len(loads) + 1)
    base = -(-(table + len(note)) // PAGE) * PAGE
    head = elf_header(len(loads) + 1)
    head += struct.pack("<IIQQQQQQ", 4, 0, table, 0, 0, len(note), len(note), 4)
    for one in loads:
        # Physical memory lies at base + address; what is not kept lies beyond the file's end.
        offset = base + (one.vaddr & (1 << 47) - 1 if one.paddr is None else one.paddr)
        paddr = ALL_ONES if one.paddr is None else one.paddr
        head += struct.pack("<IIQQQQQQ", 1, 7, offset, one.vaddr, paddr, one.size, one.size, PAGE)
    return (head + note).ljust(base, b"\0")


def elf_header(phnum: int) -> bytes:
    """An Elf64_Ehdr of an x86_64 core file with ``phnum`` program headers behind it."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    return ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, phnum, 0, 0, 0)


def elfcorehdr(notes: Iterable[tuple[int, int]], loads: Iterable[Load]) -> bytes:
    """A crash header as another loader would build it; notes are (address, size)."""
    headers = [
        struct.pack("<IIQQQQQQ", 4, 0, address, 0, address, size, size, 0)
        for address, size in notes
    ]
    headers += [
        struct.pack("<IIQQQQQQ", 1, 7, one.paddr, one.vaddr, one.paddr, one.size, one.size, 0)
        for one in loads
        if one.paddr is not None
    ]
    return elf_header(len(headers)) + b"".join(headers)


@dataclass(frozen=True)
class Found:
    """Addresses of notes, and (address, vaddr, memsz) of memory, each by its p_offset.

    p_offset is where the crash kernel reads from; p_paddr it only hands on.
    """

    notes: tuple[int, ...]
    loads: tuple[tuple[int, int, int], ...]


class NoVmcoreError(Exception):
    """The crash kernel would find no usable header."""


def read_elfcorehdr(data: bytes) -> Found:
    """What ``fs/proc/vmcore.c`` makes of ``data``: its checks, and pyelftools' reading.

    parse_crash_elf64_headers takes nothing else than what is checked here, and
    wherever e_phoff points, it reads the program headers behind the ELF header. It does not
    look for section headers; pyelftools would, so what is said of them is left out.
    """
    blank = bytearray(data)
    blank[40:48], blank[58:64] = bytes(8), bytes(6)  # e_shoff; e_shentsize to e_shstrndx
    try:
        core = ELFFile(io.BytesIO(blank[: len(data)]))
    except ELFError as error:
        raise NoVmcoreError(str(error)) from error
    sane = {
        "e_type": "ET_CORE",
        "e_machine": "EM_X86_64",
        "e_version": "EV_CURRENT",
        "e_ehsize": 64,
        "e_phentsize": 56,
    }
    for field, value in sane.items():
        if core[field] != value:
            raise NoVmcoreError(f"{field} is {core[field]}")
    if core["e_ident"]["EI_VERSION"] != "EV_CURRENT" or not core.little_endian:
        raise NoVmcoreError("e_ident")
    if core.elfclass != 64 or not core["e_phnum"]:
        raise NoVmcoreError("no program headers")
    core.header["e_phoff"] = 64
    if len(data) < 64 + 56 * core["e_phnum"]:
        raise NoVmcoreError("cut off")
    headers = [core._get_segment_header(number) for number in range(core["e_phnum"])]
    notes = tuple(one["p_offset"] for one in headers if one["p_type"] == "PT_NOTE")
    loads = tuple(
        (one["p_offset"], one["p_vaddr"], one["p_memsz"])
        for one in headers
        if one["p_type"] == "PT_LOAD"
    )
    return Found(notes, loads)


def without(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """``ranges`` with ``holes`` cut out."""
    pieces = list(ranges)
    for hole in holes:
        cut = []
        for one in pieces:
            if not one.overlaps(hole):
                cut.append(one)
                continue
            if one.start < hole.start:
                cut.append(Range(one.start, hole.start - 1))
            if one.end > hole.end:
                cut.append(Range(hole.end + 1, one.end))
        pieces = cut
    return pieces


def firmware_resources(ram: Sequence[Range]) -> list[tuple[Range, str]]:
    """What else ``/proc/iomem`` lists around and in ``ram``: devices, ACPI tables, Reserved."""
    found = [
        (one, name) for one, name in Q35_DEVICES if not any(one.overlaps(other) for other in ram)
    ]
    below = [one.end for one in ram if one.end < 4 << 30]
    if below:
        end = max(below)
        found.append((Range(end - 0xFFF, end), "Reserved"))
        tables = Range(end + 1, end + 0x1E000)
        if not any(tables.overlaps(one) for one in [*ram, *(one for one, _ in found)]):
            found.append((tables, "ACPI Tables"))
    return found


def cpu_list(numbers: Iterable[int]) -> str:
    """``%*pbl``: runs of numbers."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs) + "\n"


def boot_params(ram: Sequence[Range], reserved: Sequence[Range]) -> bytes:
    """4096 bytes of struct boot_params as a SeaBIOS guest booted with GRUB shows them."""
    page = bytearray(PAGE)
    struct.pack_into("<BBHHBBHHHBBH", page, 0, 0, 25, 0, 0, 3, 80, 0, 0, 0, 25, 1, 16)
    struct.pack_into("<Q", page, 0x70, 0xF5A50)  # acpi_rsdp_addr
    entries = [(one, 1) for one in ram] + [(one, 2) for one in reserved]
    entries = sorted(entries, key=lambda entry: entry[0])[:128]
    page[0x1E8] = len(entries)
    page[0x1EF] = 0xFF  # sentinel
    struct.pack_into("<BHIHHH", page, 0x1F1, 0x27, 1, 0x7A000, 0, 0xFFFF, 0x801)
    page[0x1FE:0x200] = b"\x55\xaa"
    struct.pack_into("<H4sH", page, 0x200, 0x6AEB, b"HdrS", 0x20F)
    struct.pack_into("<BBH", page, 0x210, 0x72, 0x01, 0)  # type_of_loader, loadflags
    struct.pack_into("<III", page, 0x214, 0x100000, 0x35000000, 0x1000000)  # code32, ramdisk
    struct.pack_into("<I", page, 0x228, 0x20000)  # cmd_line_ptr
    struct.pack_into("<IIBBHI", page, 0x22C, 0x7FFFFFFF, 0x200000, 1, 0x15, 0x3F, 2047)
    struct.pack_into("<Q", page, 0x250, 0x3A5E7000)  # setup_data
    struct.pack_into("<QI", page, 0x258, 0x1000000, 0x3B4F000)  # pref_address, init_size
    for number, (one, kind) in enumerate(entries):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * number, one.start, one.size, kind)
    return bytes(page)
