"""The compiled purgatory on an emulated CPU: same bytes, same entry state as in a crash."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import unicorn
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unicorn import x86_const as x86

from kdumphpd.image.parameter_block import (
    DIGEST_OFFSET,
    PAGE_SIZE,
    STACK_SIZE,
    ParameterBlock,
    purgatory_code_size,
    purgatory_segment,
    purgatory_size,
    seal,
)
from kdumphpd.machine.ranges import Range

# Above 4 GiB: an address cut to 32 bits shows.
RESERVATION = Range(0x123_4000_0000, 0x123_403F_FFFF)
PAD = Range(RESERVATION.start, RESERVATION.start + 0xFFFF)
HEADER = Range(PAD.end + 1, PAD.end + 0x10000)
KERNEL = RESERVATION.start + 0x100000
VGA = 0xB8000
COM1 = 0x3F8
REGISTERS = ("RAX", "RBX", "RCX", "RDX", "RDI", "RBP", *(f"R{number}" for number in range(8, 16)))


@dataclass(frozen=True)
class Outcome:
    """State of the machine when it stopped."""

    rip: int
    registers: dict[str, int]
    selectors: dict[str, int]
    serial: bytes
    screen: str
    ports_read: int
    segment: bytes
    elfcorehdr: bytes

    @property
    def entered_kernel(self) -> bool:
        return self.rip == KERNEL + 0x200 + 1  # behind the hlt at its entry point

    @property
    def said(self) -> str:
        assert self.serial.startswith(b"\r\n")
        return self.serial.strip().decode("ascii")


def run(
    segment: bytes,
    contents: tuple[tuple[Range, bytes], ...],
    line_status: int = 0x60,
    header: bytes = b"",
) -> Outcome:
    """Enter ``segment`` at the reservation's end, as relocate_kernel does."""
    machine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    machine.mem_map(RESERVATION.start, RESERVATION.size)
    machine.mem_map(VGA, 0x8000)
    machine.mem_write(KERNEL + 0x200, b"\xf4")
    for place, content in contents:
        machine.mem_write(place.start, content)
    machine.mem_write(HEADER.start, header)
    entry = RESERVATION.end + 1 - len(segment)
    machine.mem_write(entry, segment)
    for name in REGISTERS:
        machine.reg_write(getattr(x86, f"UC_X86_REG_{name}"), 0xDEAD_BEEF_DEAD_BEEF)
    machine.reg_write(x86.UC_X86_REG_RSP, 0x1234567)
    machine.reg_write(x86.UC_X86_REG_EFLAGS, 0x402)  # the direction flag is set

    sent = bytearray()
    reads = [0]

    def read_port(_: object, port: int, size: int, __: object) -> int:
        assert (port, size) == (COM1 + 5, 1)
        reads[0] += 1
        return line_status

    def write_port(_: object, port: int, size: int, value: int, __: object) -> None:
        assert (port, size) == (COM1, 1)
        sent.append(value)

    machine.hook_add(unicorn.UC_HOOK_INSN, read_port, None, 1, 0, x86.UC_X86_INS_IN)
    machine.hook_add(unicorn.UC_HOOK_INSN, write_port, None, 1, 0, x86.UC_X86_INS_OUT)
    machine.emu_start(entry, 0)
    cells = machine.mem_read(VGA, 80 * 25 * 2)
    return Outcome(
        rip=machine.reg_read(x86.UC_X86_REG_RIP),
        registers={
            name: machine.reg_read(getattr(x86, f"UC_X86_REG_{name}"))
            for name in (*REGISTERS, "RSI", "EFLAGS")
        },
        selectors={
            name: machine.reg_read(getattr(x86, f"UC_X86_REG_{name}"))
            for name in ("CS", "DS", "ES", "SS", "FS", "GS")
        },
        serial=bytes(sent),
        screen=bytes(cells[::2]).decode("ascii").replace("\0", " ").rstrip(),
        ports_read=reads[0],
        segment=bytes(machine.mem_read(entry, len(segment))),
        elfcorehdr=bytes(machine.mem_read(HEADER.start, len(header))),
    )


def block_for(contents: tuple[tuple[Range, bytes], ...], serial_port: int = COM1) -> ParameterBlock:
    block = ParameterBlock(
        nonce=bytes(range(16)),
        kernel_entry=KERNEL + 0x200,
        boot_params=RESERVATION.start + 0x300000,
        elfcorehdr=HEADER,
        control_pad=PAD,
        serial_port=serial_port,
        regions=tuple(place for place, _ in contents),
    )
    return seal(block, [content for _, content in contents])


def place_all(pieces: list[bytes]) -> tuple[tuple[Range, bytes], ...]:
    """Regions with these contents, each at an odd distance from the last."""
    placed = []
    at = RESERVATION.start + 0x200000
    for piece in pieces:
        placed.append((Range(at, at + len(piece) - 1), piece))
        at += len(piece) + 4099
    return tuple(placed)


THREE = place_all([b"kernel" * 1000, b"initrd" * 333, b"boot_params and command line"])
MISMATCH = (
    "kdumphpd purgatory: SHA-256 mismatch: the crash kernel in memory is damaged, not starting it."
)


def test_an_intact_image_is_entered_as_the_boot_protocol_asks() -> None:
    segment = purgatory_segment(block_for(THREE))
    outcome = run(segment, THREE)
    assert outcome.entered_kernel
    assert outcome.registers.pop("RSI") == RESERVATION.start + 0x300000
    flags = outcome.registers.pop("EFLAGS")
    assert flags & 0x200 == 0, "interrupts are off"
    assert flags & 0x400 == 0, "string instructions go upwards"
    assert set(outcome.registers.values()) == {0}
    assert outcome.selectors.pop("CS") == 0x10
    assert set(outcome.selectors.values()) == {0x18}
    assert outcome.serial == b""
    assert outcome.screen == ""


def test_nothing_but_the_stack_page_is_written_to() -> None:
    segment = purgatory_segment(block_for(THREE))
    after = run(segment, THREE).segment
    code = purgatory_code_size()
    assert after[:code] == segment[:code]
    assert after[code + STACK_SIZE :] == segment[code + STACK_SIZE :]
    assert after != segment, "the stack was in its page"
    # Far from full: the lower half has never been touched.
    assert after[code : code + STACK_SIZE // 2] == segment[code : code + STACK_SIZE // 2]


def test_the_code_may_cover_itself() -> None:
    entry = RESERVATION.end + 1 - purgatory_size()
    code = Range(entry, entry + purgatory_code_size() - 1)
    unsealed = purgatory_segment(block_for(()))
    contents = (*THREE, (code, unsealed[: code.size]))
    segment = purgatory_segment(block_for(contents))
    assert run(segment, contents).entered_kernel


@pytest.mark.parametrize("which", range(len(THREE)))
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_bit_in_any_region_stops_it(which: int, where: str) -> None:
    place, content = THREE[which]
    offset = {"first": 0, "middle": place.size // 2, "last": place.size - 1}[where]
    damaged = bytearray(content)
    damaged[offset] ^= 0x10
    contents = tuple((one, bytes(damaged) if one == place else intact) for one, intact in THREE)
    outcome = run(purgatory_segment(block_for(THREE)), contents)
    assert not outcome.entered_kernel
    assert outcome.said == MISMATCH
    assert outcome.screen == MISMATCH
    assert outcome.registers["EFLAGS"] & 0x200 == 0


def test_the_elfcorehdr_may_change() -> None:
    segment = purgatory_segment(block_for(THREE))
    for header in (b"\x7fELF old", b"\x7fELF new and longer"):
        assert run(segment, THREE, header=header).entered_kernel


@pytest.mark.parametrize("offset", [24, 39, 40, 48, 56, 64, 80, 90, 92, 105, 352, 383])
def test_a_changed_parameter_stops_it(offset: int) -> None:
    segment = bytearray(purgatory_segment(block_for(THREE)))
    segment[-PAGE_SIZE + offset] ^= 1
    outcome = run(bytes(segment), THREE)
    assert not outcome.entered_kernel
    # A port beyond 16 bits is cut off; no other field changes what is said where.
    assert outcome.said == MISMATCH


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"K", "no parameter block: memory is damaged"),
        (15, b"\1", "no parameter block: memory is damaged"),
        (16, b"\2", "the parameter block has another version"),
        (20, b"\x11", "the region table is damaged"),
        (23, b"\xff", "the region table is damaged"),
        (103, b"\x80", "the region table is damaged"),  # the first address, beyond the block
        (101, b"\0", "the region table is damaged"),  # and far below the reservation
        (109, b"\1", "the region table is damaged"),  # the first size
    ],
)
def test_a_block_that_makes_no_sense_has_its_own_message(
    offset: int, value: bytes, message: str
) -> None:
    page = bytearray(block_for(THREE).pack())
    assert page[offset] != value[0]
    page[offset] = value[0]
    segment = purgatory_segment(block_for(THREE))[:-PAGE_SIZE] + bytes(page)
    outcome = run(segment, THREE)
    assert not outcome.entered_kernel
    assert outcome.said == f"kdumphpd purgatory: {message}, not starting the crash kernel."
    assert outcome.screen.startswith("kdumphpd purgatory: ")


def test_a_region_may_end_where_the_block_begins_and_no_later() -> None:
    block_at = RESERVATION.end + 1 - PAGE_SIZE
    stack = Range(block_at - 16, block_at - 1)
    outcome = run(purgatory_segment(block_for(((stack, bytes(16)),))), ())
    assert "SHA-256" in outcome.said, "accepted as a region; the stack's content is another matter"
    beyond = Range(block_at - 16, block_at)
    outcome = run(purgatory_segment(block_for(((beyond, bytes(17)),))), ())
    assert "region table" in outcome.said


@pytest.mark.parametrize("line_status", [0x00, 0xFF])
def test_without_a_serial_port_it_stops_and_tells_the_screen(line_status: int) -> None:
    segment = purgatory_segment(replace(block_for(THREE), digest=bytes(32)))
    outcome = run(segment, THREE, line_status=line_status)
    assert not outcome.entered_kernel
    assert outcome.serial == b""
    assert outcome.screen == MISMATCH
    assert 1 <= outcome.ports_read <= 100_000, "waits once, and not for ever"


def test_port_zero_means_no_serial_port() -> None:
    segment = purgatory_segment(replace(block_for(THREE, serial_port=0), digest=bytes(32)))
    outcome = run(segment, THREE)
    assert not outcome.entered_kernel
    assert outcome.ports_read == 0
    assert outcome.screen == MISMATCH


def test_no_regions_at_all() -> None:
    segment = purgatory_segment(block_for(()))
    assert run(segment, ()).entered_kernel


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=16), st.data())
def test_sha256_is_the_one_of_hashlib(pieces: list[bytes], data: st.DataObject) -> None:
    contents = place_all(pieces)
    block = block_for(contents)
    expected = hashlib.sha256(block.pack()[:DIGEST_OFFSET] + b"".join(pieces)).digest()
    assert block.digest == expected
    assert run(purgatory_segment(block), contents).entered_kernel
    bit = data.draw(st.integers(0, 255))
    wrong = bytearray(expected)
    wrong[bit // 8] ^= 1 << bit % 8
    other = replace(block, digest=bytes(wrong))
    assert not run(purgatory_segment(other), contents).entered_kernel


@pytest.mark.parametrize("size", [*range(1, 4), *range(53, 70), 95, 96, 97, 127, 128, 129])
def test_sha256_at_the_edges_of_its_blocks(size: int) -> None:
    contents = place_all([bytes(range(size))])
    assert run(purgatory_segment(block_for(contents)), contents).entered_kernel


def test_the_segment_is_whole_pages_under_16_kib(purgatory_binary: bytes) -> None:
    assert purgatory_size() == len(purgatory_binary) + PAGE_SIZE
    assert purgatory_size() % PAGE_SIZE == 0
    assert len(purgatory_binary) < 16384
    assert not any(purgatory_binary[-STACK_SIZE:])
    assert len(purgatory_segment(block_for(THREE))) == purgatory_size()


def test_the_linked_file_is_position_independent(purgatory_build: Path) -> None:
    with (purgatory_build / "purgatory.elf").open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_type"] == "ET_DYN"
        assert elf["e_entry"] == 0
        assert not [one for one in elf.iter_sections() if isinstance(one, RelocationSection)]
        symbols = elf.get_section_by_name(".symtab")
        undefined = [one.name for one in symbols.iter_symbols() if one["st_shndx"] == "SHN_UNDEF"]
        assert undefined == [""], "the null symbol alone"
        (load,) = (one for one in elf.iter_segments() if one["p_type"] == "PT_LOAD")
        assert load["p_flags"] == 5, "nothing is writable"
        assert load.data() == (purgatory_build / "purgatory.bin").read_bytes()


@pytest.mark.parametrize(
    ("addition", "complaint"),
    [
        ("static const char *volatile const names[] = {NAME};", "relocations are left"),
        ("volatile int counter; static int use(void) { return counter++; }", "writable data"),
        ("void nowhere(void); static void use(void) { nowhere(); }", "undefined"),
    ],
)
def test_the_build_refuses_what_needs_relocation(
    purgatory_build: Path, tmp_path: Path, addition: str, complaint: str
) -> None:
    build = purgatory_build.parents[2]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    ninja = shutil.which("ninja", path=tools)
    assert ninja
    command = subprocess.run(
        [ninja, "-C", str(build), "-t", "commands", "kdumphpd/image/purgatory/purgatory.elf"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()[-1]
    sources = Path(__file__).resolve().parents[2] / "kdumphpd" / "image" / "purgatory"
    copy = shutil.copytree(sources, tmp_path / "purgatory")
    with (copy / "purgatory.c").open("a") as file:
        file.write(f"{addition}\n")
        reference = "use" if " use(" in addition else "names"
        file.write(
            f"const void *reference(void); const void *reference(void) "
            f"{{ return (const void *)&{reference}; }}\n"
        )
    # The sources and the output, but not the option that names the linker script.
    words = [
        str(copy / Path(word).name)
        if Path(word).parent.name == "purgatory" and not word.startswith("-")
        else word
        for word in shlex.split(command)
    ]
    result = subprocess.run(
        words, cwd=build, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode != 0
    assert complaint in result.stderr
