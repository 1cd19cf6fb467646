"""What the kernel has armed: a kimage laid out by ctypes, memory from a dictionary of pages."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.distribution import armed
from kdumphpd.distribution.adoption import Whose
from kdumphpd.distribution.armed import Armed, Content
from kdumphpd.errors import MachineError
from kdumphpd.image.source import ImageSpec
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import AddressMap, Mapping
from kdumphpd.machine.ranges import Range

RESERVED = (Range(0x30000000, 0x3FFFFFFF),)
PAGE_OFFSET = 0xFFFF888000000000
TEXT = Mapping(paddr=0x1000000, vaddr=0xFFFFFFFF81000000, size=0x3000000)
ADDRESSES = AddressMap(TEXT, PAGE_OFFSET, ())
POINTER = TEXT.vaddr + 0x2ABCDE8
KIMAGE = 0x7654000


class Segment(ctypes.Structure):
    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("bufsz", ctypes.c_size_t),
        ("mem", ctypes.c_ulong),
        ("memsz", ctypes.c_size_t),
    )


def kimage(extra_pointers: int) -> type[ctypes.Structure]:
    """struct kimage with this many pointers between start and nr_segments."""

    class Kimage(ctypes.Structure):
        _fields_ = (
            ("head", ctypes.c_ulong),
            ("entry", ctypes.c_void_p),
            ("last_entry", ctypes.c_void_p),
            ("start", ctypes.c_ulong),
            ("pointers", ctypes.c_void_p * extra_pointers),
            ("nr_segments", ctypes.c_ulong),
            ("segment", Segment * 16),
            ("rest", ctypes.c_ulong * 32),
        )

    return Kimage


class Memory:
    """Physical memory that holds ``parts``; the rest is zero, and below ``end``."""

    def __init__(self, parts: dict[int, bytes], end: int = 0x80000000) -> None:
        self.parts, self.end = parts, end

    def read(self, address: int, size: int) -> bytes:
        if not 0 <= address <= address + size <= self.end:
            raise MachineError("not there")
        data = bytearray(size)
        for start, part in self.parts.items():
            first, last = max(start, address), min(start + len(part), address + size)
            if first < last:
                data[first - address : last - address] = part[first - start : last - start]
        return bytes(data)


def packed(segments: list[Range], entry: int, extra_pointers: int = 3) -> bytes:
    image = kimage(extra_pointers)()
    image.start = entry
    image.nr_segments = len(segments)
    for index in range(extra_pointers):
        image.pointers[index] = 0xFFFFEA0000001000 + index
    for index, one in enumerate(segments):
        image.segment[index] = Segment(0x7F0000000000, one.size, one.start, one.size)
    return bytes(image)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/kallsyms").write_text(
        "ffffffff81000000 T _text\nffffffff81000010 D not_kexec_crash_image_x\n"
        f"{POINTER:x} B kexec_crash_image\nffffffffc0000000 t late\t[module]\n"
    )
    return Root(tmp_path, pause=lambda seconds: None)


def memory(parts: dict[int, bytes], kimage_bytes: bytes) -> Memory:
    pointer = TEXT.paddr + POINTER - TEXT.vaddr
    head = struct.pack("<Q", PAGE_OFFSET + KIMAGE)
    return Memory({pointer: head, KIMAGE: kimage_bytes, **parts})


PARAMS = Range(0x30100000, 0x30107FFF)
INITRD = Range(0x30200000, 0x30200FFF)
SEGMENTS = [INITRD, PARAMS, Range(0x3FF00000, 0x3FFFFFFF)]


def boot_params(command_line: str, initrd_size: int, above: int = 0) -> bytes:
    params = bytearray(0x8000)
    params[0x1FE:0x206] = b"\x55\x00\xeb\x6aHdrS"  # as kexec-tools leaves it
    struct.pack_into("<II", params, 0x218, (INITRD.start + above) & 0xFFFFFFFF, initrd_size)
    struct.pack_into("<I", params, 0x228, (PARAMS.start + above + 0x1000) & 0xFFFFFFFF)
    struct.pack_into("<III", params, 0x0C0, above >> 32, 0, above >> 32)
    encoded = command_line.encode()
    params[0x1000 : 0x1000 + len(encoded)] = encoded
    return bytes(params)


@pytest.mark.parametrize("extra_pointers", [2, 3, 4])
def test_segments_are_read_whatever_the_layout(root: Root, extra_pointers: int) -> None:
    ram = memory({}, packed(SEGMENTS, 0x3FF00040, extra_pointers))
    found = armed.read_armed(root, ram, ADDRESSES, RESERVED)
    assert found == Armed(0x3FF00040, tuple(SEGMENTS))


def test_low_reservation_counts() -> None:
    segments = [Range(0x1000000, 0x1000FFF), *SEGMENTS]
    data = packed(segments, 0x3FF00040)
    assert armed.parse_kimage(data, RESERVED) is None
    both = (Range(0x1000000, 0x1FFFFFF), *RESERVED)
    assert armed.parse_kimage(data, both) == Armed(0x3FF00040, tuple(segments))


@pytest.mark.parametrize(
    "kallsyms", ["", "0000000000000000 B kexec_crash_image\n", "x kexec_crash_image\n", None]
)
def test_hidden_symbols_are_not_known(root: Root, kallsyms: str | None) -> None:
    path = root.path("/proc/kallsyms")
    path.unlink() if kallsyms is None else path.write_text(kallsyms)
    ram = memory({}, packed(SEGMENTS, 0x3FF00040))
    assert armed.read_armed(root, ram, ADDRESSES, RESERVED) is None


@pytest.mark.parametrize("pointer", [0, 4096, 2**64 - 8, PAGE_OFFSET + 2**40])
def test_pointer_that_leads_nowhere(root: Root, pointer: int) -> None:
    ram = memory({}, b"")
    ram.parts[TEXT.paddr + POINTER - TEXT.vaddr] = struct.pack("<Q", pointer)
    assert armed.read_armed(root, ram, ADDRESSES, RESERVED) is None


@given(st.binary(max_size=800))
def test_any_bytes_are_no_reason_to_fail(data: bytes) -> None:
    found = armed.parse_kimage(data, RESERVED)
    assert found is None or all(RESERVED[0].contains(one) for one in found.segments)


def test_content_is_that_of_the_armed_segments_only() -> None:
    """An earlier image's boot_params, whole and in place, do not count."""
    ram = Memory({PARAMS.start: boot_params("elfcorehdr=0x30000000 ro quiet", 5)})
    assert armed.read_content(ram, Armed(0x3FF00000, (SEGMENTS[2],))) is None
    assert armed.read_content(ram, Armed(0x3FF00000, tuple(SEGMENTS))) == Content(
        "elfcorehdr=0x30000000 ro quiet", Range(INITRD.start, INITRD.start + 4)
    )


KERNEL = Range(0x30400000, 0x30401FFF)


@pytest.mark.parametrize(
    ("line", "initrd", "kernel", "whose"),
    [
        ("ro quiet", b"initrd", b"kernel", Whose.KDUMPS),
        ("ro quiet rd.debug", b"initrd", b"kernel", Whose.LIKE_KDUMPS),
        ("ro quiet", b"earlie", b"kernel", Whose.LIKE_KDUMPS),
        ("ro quiet kdump_test_id=17-3", b"initrd", b"kernel", Whose.TEST),
        ("ro quiet", b"initrd", b"keener", Whose.OTHER),
        ("ro quiet kdump_test_id=17-3", b"initrd", b"keener", Whose.OTHER),
    ],
)
def test_image_is_identified_by_its_kernel_command_line_and_initrd(
    root: Root, tmp_path: Path, line: str, initrd: bytes, kernel: bytes, whose: Whose
) -> None:
    parts = {
        PARAMS.start: boot_params(f"elfcorehdr=0x1 {line}", 6),
        INITRD.start: initrd,
        KERNEL.start: kernel,
    }
    ram = memory(parts, packed([*SEGMENTS, KERNEL], 0x3FF00040))
    assert identify(root, tmp_path, ram) is whose


def test_only_what_is_armed_counts(root: Root, tmp_path: Path) -> None:
    """The bytes of kdump's image are still there, but what is armed is something else."""
    parts = {
        PARAMS.start: boot_params("ro quiet", 6),
        INITRD.start: b"initrd",
        KERNEL.start: b"kernel",
    }
    ram = memory(parts, packed(SEGMENTS, 0x3FF00040))
    assert identify(root, tmp_path, ram) is Whose.OTHER
    assert identify(root, tmp_path, memory(parts, bytes(800))) is Whose.UNKNOWN


def identify(root: Root, directory: Path, ram: Memory) -> Whose:
    path = directory / "initrd"
    path.write_bytes(b"initrd")
    spec = ImageSpec(directory / "kernel", path, "ro quiet", "test")
    return armed.identify(root, ram, ADDRESSES, RESERVED, spec, b"kernel")


@given(content=st.binary(min_size=1, max_size=64), at=st.integers(0, 63))
def test_a_kernel_that_differs_in_one_byte_is_another(content: bytes, at: int) -> None:
    found = Armed(0x3FF00000, (KERNEL,))
    assert armed.has_kernel(Memory({KERNEL.start: content}), found, content)
    changed = bytearray(content)
    changed[at % len(content)] ^= 1
    assert not armed.has_kernel(Memory({KERNEL.start: bytes(changed)}), found, content)


def test_a_kernel_longer_than_any_segment_is_another() -> None:
    assert not armed.has_kernel(Memory({}), Armed(0x3FF00000, (KERNEL,)), bytes(0x2001))


def test_content_above_4_gib() -> None:
    above = 0x1_0000_0000
    shifted = tuple(Range(one.start + above, one.end + above) for one in SEGMENTS)
    ram = Memory({PARAMS.start + above: boot_params("ro", 16, above)}, end=2 * above)
    content = armed.read_content(ram, Armed(shifted[2].start, shifted))
    assert content == Content("ro", Range(INITRD.start + above, INITRD.start + above + 15))


@given(st.data())
def test_hostile_boot_params(data: st.DataObject) -> None:
    params = bytearray(boot_params("ro", 16))
    for _ in range(data.draw(st.integers(1, 8))):
        params[data.draw(st.sampled_from([0xC0, 0xC4, 0xC8, 0x218, 0x21C, 0x228, 0x22B]))] = (
            data.draw(st.integers(0, 255))
        )
    content = armed.read_content(
        Memory({PARAMS.start: bytes(params)}), Armed(0x3FF00000, tuple(SEGMENTS))
    )
    assert (
        content is None
        or content.initrd is None
        or INITRD.contains(content.initrd)
        or any(one.contains(content.initrd) for one in SEGMENTS)
    )


@pytest.mark.parametrize(
    ("loaded", "same"),
    [
        ("ro quiet", True),
        ("elfcorehdr=0x30000000 ro quiet", True),
        ("ro  quiet elfcorehdr=785400K", True),
        ("ro quiet acpi_rsdp=0x7fe elfcorehdr=785400K", True),
        ("dmcryptkeys=0x1 elfcorehdr=0x30000000 ro quiet", True),
        ("ro quiet single elfcorehdr=785400K", False),
        ("quiet ro elfcorehdr=785400K", False),
        ("ro elfcorehdr=785400K", False),
        ("init=/bin/sh ro quiet", False),
        ("", False),
    ],
)
def test_command_line_but_for_the_loaders_part(tmp_path: Path, loaded: str, same: bool) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"initrd")
    spec = ImageSpec(tmp_path / "kernel", initrd, "ro quiet ", "test")
    ram = Memory({INITRD.start: b"initrd"})
    content = Content(loaded, Range(INITRD.start, INITRD.start + 5))
    assert armed.is_made_from(ram, content, spec) == same


@given(
    st.lists(st.sampled_from(["a", "b", "memmap=1K", "elfcorehdr=1K", "noefi"]), max_size=6),
    st.lists(st.sampled_from(["elfcorehdr=9K", "acpi_rsdp=0x1", "noefi"]), max_size=3),
    st.lists(st.sampled_from(["elfcorehdr=9K", "acpi_rsdp=0x1", "noefi"]), max_size=3),
)
def test_what_loaders_add_never_matters(
    words: list[str], before: list[str], after: list[str]
) -> None:
    assert armed._same_command_line(" ".join(before + words + after), " ".join(words))
    assert not armed._same_command_line(" ".join([*before, *words, "x", *after]), " ".join(words))


@pytest.mark.parametrize(
    ("content", "same"), [(b"initrd", True), (b"initrx", False), (b"initrd+", False), (b"i", False)]
)
def test_initrd_is_compared(tmp_path: Path, content: bytes, same: bool) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(content)
    spec = ImageSpec(tmp_path / "kernel", initrd, "ro", "test")
    loaded = Content("ro", Range(INITRD.start, INITRD.start + 5))
    assert armed.is_made_from(Memory({INITRD.start: b"initrd"}), loaded, spec) == same
    assert not armed.is_made_from(Memory({}), Content("ro", None), spec)
    initrd.unlink()
    assert not armed.is_made_from(Memory({INITRD.start: b"initrd"}), loaded, spec)


def test_a_fifo_in_the_initrd_s_place_is_another_image(tmp_path: Path) -> None:
    """Opening it would wait for whoever writes to it."""
    os.mkfifo(tmp_path / "initrd")
    spec = ImageSpec(tmp_path / "kernel", tmp_path / "initrd", "ro", "test")
    assert not armed.is_made_from(Memory({}), Content("ro", Range(0, 4095)), spec)
