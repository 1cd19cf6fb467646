from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kdumphpd.errors import MachineError
from kdumphpd.header import elf, elfcorehdr
from kdumphpd.header.elfcorehdr import Note
from kdumphpd.machine.kcore import Mapping
from kdumphpd.machine.ranges import Range
from tests.unit import fake_files
from tests.unit.fake_files import NoVmcoreError
from tests.unit.strategies import separate_ranges

_VMCOREINFO = Note(0x3800000, 0x1024)
_TEXT = Mapping(0x1000000, 0xFFFFFFFF9B000000, 0x2800000)
_PAGE_OFFSET = fake_files.PAGE_OFFSET
_NOTES = st.lists(
    st.builds(Note, st.integers(1, 1 << 46), st.just(368)),
    max_size=10,
    unique_by=lambda n: n.address,
).filter(lambda notes: _VMCOREINFO.address not in {note.address for note in notes})
_SAMPLE = elfcorehdr.build(
    [Note(0x3A00400 + cpu * 0x2000, 368) for cpu in range(4)],
    _VMCOREINFO,
    _TEXT,
    [Range(0x100000, 0x6EFFFFFF), Range(0x100000000, 0x17FFFFFFF)],
    _PAGE_OFFSET,
)


def _build(notes: list[Note], ram: tuple[Range, ...]) -> bytes:
    return elfcorehdr.build(notes, _VMCOREINFO, _TEXT, ram, _PAGE_OFFSET)


def _loads(ram: tuple[Range, ...]) -> tuple[tuple[int, int, int], ...]:
    text = (_TEXT.paddr, _TEXT.vaddr, _TEXT.size)
    return (text, *((one.start, _PAGE_OFFSET + one.start, one.size) for one in ram))


@given(_NOTES, separate_ranges())
def test_what_is_built_is_parsed_back(notes: list[Note], ram: tuple[Range, ...]) -> None:
    header = elfcorehdr.parse(_build(notes, ram))
    assert header is not None
    assert header.notes == (*notes, _VMCOREINFO)
    assert (header.text, header.ram) == (_TEXT, ram)
    assert header.page_offset == (_PAGE_OFFSET if ram else None)


@given(_NOTES, separate_ranges())
def test_pyelftools_reads_what_was_meant(notes: list[Note], ram: tuple[Range, ...]) -> None:
    found = fake_files.read_elfcorehdr(_build(notes, ram))
    assert found.notes == (*(note.address for note in notes), _VMCOREINFO.address)
    assert found.loads == _loads(ram)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_NOTES, separate_ranges())
def test_readelf_reads_what_was_meant(
    tmp_path: Path, notes: list[Note], ram: tuple[Range, ...]
) -> None:
    path = tmp_path / "header"
    path.write_bytes(_build(notes, ram))
    result = subprocess.run(
        ["readelf", "-hlW", str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "CORE (Core file)" in result.stdout
    assert "Advanced Micro Devices X86-64" in result.stdout
    rows = re.findall(
        r"^  (NOTE|LOAD) +(0x\w+) (0x\w+) (0x\w+) (0x\w+) (0x\w+) (.*?) +(0x?\w*)$",
        result.stdout,
        re.MULTILINE,
    )
    seen = [(kind, *(int(part, 16) for part in parts)) for kind, *parts, _, _ in rows]
    wanted = [("NOTE", n.address, 0, n.address, n.size, n.size) for n in [*notes, _VMCOREINFO]]
    wanted += [("LOAD", paddr, vaddr, paddr, size, size) for paddr, vaddr, size in _loads(ram)]
    assert seen == wanted


def test_the_last_count_that_an_elf_header_holds() -> None:
    ram = tuple(Range(number << 13, (number << 13) + 4095) for number in range(256, 256 + 65531))
    header = elfcorehdr.parse(_build([Note(0x5000, 368)], ram))
    assert header is not None
    assert header.ram == ram


@pytest.mark.parametrize("cpus", [2, 100])
def test_too_many_headers_are_a_clear_error(cpus: int) -> None:
    ram = tuple(Range(number << 13, (number << 13) + 4095) for number in range(256, 256 + 65531))
    notes = [Note(0x5000 + cpu * 512, 368) for cpu in range(cpus)]
    with pytest.raises(MachineError, match=rf"{cpus} CPUs and 65531 memory ranges.*65534"):
        _build(notes, ram)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_header(data: bytes) -> None:
    assert elfcorehdr.parse(data) is None


@given(st.integers(0, len(_SAMPLE) - 1))
def test_a_truncated_header_is_none(size: int) -> None:
    assert elfcorehdr.parse(_SAMPLE[:size]) is None


@given(st.lists(st.tuples(st.integers(0, len(_SAMPLE) - 1), st.integers(0, 255)), max_size=8))
@example([(40, 1)])
@example([(60, 1)])
def test_a_damaged_header_is_read_as_the_crash_kernel_would(edits: list[tuple[int, int]]) -> None:
    data = bytearray(_SAMPLE)
    for position, value in edits:
        data[position] = value
    header = elfcorehdr.parse(bytes(data))
    if header is None:
        return
    found = fake_files.read_elfcorehdr(bytes(data))  # raises if the crash kernel refuses it
    assert {note.address for note in header.notes} == set(found.notes)
    spans = {(address, address + size) for address, _, size in found.loads}
    for one in header.ram:
        # Merged from spans that the crash kernel reads at the same addresses; below 640 KiB
        # they may lie elsewhere, as kexec-tools' backup does.
        assert one.start < 0xA0000 or any(start <= one.start < end for start, end in spans)


@pytest.mark.parametrize(
    ("offset", "what"),
    [
        (0, "magic"),
        (6, "EI_VERSION"),
        (16, "e_type"),
        (18, "e_machine"),
        (20, "e_version"),
        (32, "e_phoff"),
        (52, "e_ehsize"),
        (54, "e_phentsize"),
    ],
)
def test_each_field_the_crash_kernel_checks(offset: int, what: str) -> None:
    data = bytearray(_SAMPLE)
    data[offset] ^= 0x40
    assert elfcorehdr.parse(bytes(data)) is None, what
    if what != "e_phoff":  # which it does not read: it takes 64 for granted
        with pytest.raises(NoVmcoreError):
            fake_files.read_elfcorehdr(bytes(data))


def test_memory_that_would_be_read_elsewhere_is_not_there() -> None:
    headers = elf.program_headers(_SAMPLE)
    assert headers is not None
    moved = [
        replace(one, offset=one.offset + 0x1000) if one.paddr == 0x100000000 else one
        for one in headers
    ]
    header = elfcorehdr.parse(elf.pack_core(moved))
    assert header is not None
    assert header.ram == (Range(0x100000, 0x6EFFFFFF),)


def test_the_backup_region_of_kexec_tools_is_low_memory() -> None:
    headers = elf.program_headers(_SAMPLE)
    assert headers is not None
    backup = elf.ProgramHeader(
        elf.PT_LOAD, elf.PF_RWX, 0x7EF00000, _PAGE_OFFSET + 0x1000, 0x1000, 0x9E000, 0x9E000
    )
    header = elfcorehdr.parse(elf.pack_core([*headers, backup]))
    assert header is not None
    assert header.ram[0] == Range(0x1000, 0x9EFFF)
    assert header.page_offset == _PAGE_OFFSET


@given(st.integers(1, 8192), st.integers(1, 20000), st.sampled_from([0, 459200, 1 << 20]))
def test_the_reserve_holds_what_may_come(cpus: int, ranges: int, kernel_size: int) -> None:
    size = elfcorehdr.reserve_size(cpus, ranges, kernel_size)
    assert size % 4096 == 0
    assert size >= kernel_size + 64
    coming = max(8192, 4 * ranges)
    assert size >= 64 + 56 * min(cpus + 2 + coming, 65534)


@given(st.integers(0, 8))
def test_core_extent_needs_a_whole_elf_header(missing: int) -> None:
    extent = elf.core_extent(_SAMPLE[: 64 - missing])
    assert extent == (None if missing else elf.CoreExtent(64, 8))
