"""EFI handed over: what is read of it, what the capture kernel is told, and when it is not."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd import cli
from kdumphpd.image import boot_params, bzimage
from kdumphpd.image import efi as efi_info
from kdumphpd.image.boot_params import BOOT_PARAMS_SIZE, build, parse, segment_size
from kdumphpd.image.e820 import E820Entry, E820Type
from kdumphpd.machine import efi
from kdumphpd.machine.efi import Efi, EfiState, RuntimeRange
from kdumphpd.machine.ranges import Range
from tests.unit import fake_efi
from tests.unit.fake_efi import BOOT_PARAMS, EFI, FIELDS, RANGES, SYSTAB, add_efi
from tests.unit.host_fixture import COMMAND_LINE, KERNEL, FakeHost
from tests.unit.host_fixture import bzimage as bzimage_file
from tests.unit.synthetic import SyntheticBzImage

IMAGE = bzimage.parse(SyntheticBzImage().image())
BASE = bytes(4096)
ADDRESS = 0x7EFF0000
STATE = EfiState(
    SYSTAB,
    0x7F52AA18,
    0x7F5EBB98,
    0x7F5EBC98,
    0x7F520000,
    tuple(RuntimeRange(*one) for one in RANGES),
)


@pytest.fixture
def firmware(host: FakeHost) -> FakeHost:
    add_efi(host)
    return host


def nodes(segment: bytes) -> Iterator[tuple[int, int, int]]:
    """Type, offset of the content and its size, as parse_setup_data (arch/x86/kernel/setup.c)."""
    (following,) = struct.unpack_from("<Q", segment, 0x250)
    while following:
        offset = following - ADDRESS
        following, kind, size = struct.unpack_from("<QII", segment, offset)
        yield kind, offset + 16, size


# --- reading it --------------------------------------------------------------------------


def test_what_the_running_kernel_shows_is_read(firmware: FakeHost) -> None:
    assert efi.read(firmware.root) == Efi(STATE)


def test_ranges_are_in_the_kernels_order(firmware: FakeHost) -> None:
    for number in range(len(RANGES), 12):
        for field, value in zip(FIELDS, RANGES[1]):
            firmware.write(f"{EFI}/runtime-map/{number}/{field}", f"{value:#x}\n")
    state = efi.read(firmware.root).state
    assert state is not None
    assert state.ranges == STATE.ranges + (STATE.ranges[1],) * 7


def test_without_smbios_there_is_none(firmware: FakeHost) -> None:
    firmware.write(f"{EFI}/systab", "ACPI20=0x7f77d014\nSMBIOS3=0x7f51e000\n")
    state = efi.read(firmware.root).state
    assert state is not None
    assert state.smbios == 0


def test_without_efi_nothing_is_said(host: FakeHost) -> None:
    assert efi.read(host.root) == Efi()


@pytest.mark.parametrize(
    ("name", "content", "obstacle"),
    [
        ("fw_platform_size", "32\n", "the firmware is 32-bit"),
        ("fw_vendor", "0x0\n", "fw_vendor is 0x0"),
        ("runtime", "0xffffffffffffffff\n", "runtime is 0xffff"),
        ("config_table", "soon\n", "config_table: 'soon' is not a number"),
        ("config_table", None, "No such file"),
        ("systab", None, "No such file"),
        ("runtime-map/2/type", None, "No such file"),
        ("runtime-map/2/type", "6", "is not a number"),
        ("runtime-map/2/num_pages", "0x0\n", "maps 0 pages"),
        ("runtime-map/2/num_pages", "0xffffffffffffffff\n", "runtime-map/2 maps"),
        ("runtime-map/2/phys_addr", "0x7f5ec001\n", "runtime-map/2 maps"),
        # efi=old_map: in the direct map, which moves with each boot.
        ("runtime-map/2/virt_addr", "0xffff8a15bf5ec000\n", "runtime-map/2 maps"),
        ("runtime-map/2/virt_addr", "0xfffffffefffff000\n", "runtime-map/2 maps"),
        ("runtime-map/9/type", "0x6\n", "6 entries that are not numbered"),
        ("runtime-map/3/phys_addr", "0x10000000\n", "no runtime range holds its system table"),
    ],
)
def test_what_is_missing_or_odd_is_an_obstacle(
    firmware: FakeHost, name: str, content: str | None, obstacle: str
) -> None:
    if content is None:
        firmware.root.path(f"{EFI}/{name}").unlink()
    else:
        firmware.write(f"{EFI}/{name}", content)
    found = efi.read(firmware.root)
    assert found.state is None
    assert obstacle in found.obstacle


@pytest.mark.parametrize(
    ("info", "obstacle"),
    [
        (bytes(32), "not told of it by its boot loader"),
        (fake_efi.efi_info(signature=b"EL32"), "not told of it"),
        (fake_efi.efi_info(systab=0), "not told of it"),
        (fake_efi.efi_info(map_size=0), "not told of it"),
        (fake_efi.efi_info(version=2), "descriptors have version 2"),
        (fake_efi.efi_info(systab=SYSTAB + (1 << 32)), "no runtime range holds"),
    ],
)
def test_what_the_boot_loader_said_counts(host: FakeHost, info: bytes, obstacle: str) -> None:
    add_efi(host, info)
    assert obstacle in efi.read(host.root).obstacle


@pytest.mark.parametrize("empty", [True, False])
def test_without_runtime_services_there_is_nothing_to_hand_over(
    firmware: FakeHost, empty: bool
) -> None:
    directory = firmware.root.path(f"{EFI}/runtime-map")
    shutil.rmtree(directory)
    if empty:
        directory.mkdir()
    assert efi.read(firmware.root).state is None
    assert efi.read(firmware.root).obstacle


def test_boot_params_cut_short(firmware: FakeHost) -> None:
    firmware.write(BOOT_PARAMS, bytes(0x1D0))
    assert "cut short" in efi.read(firmware.root).obstacle


@given(st.sampled_from([*fake_efi.FILES, *(f"runtime-map/1/{one}" for one in FIELDS)]), st.binary())
def test_no_content_of_a_file_is_an_error(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        host = FakeHost(Path(directory))
        add_efi(host)
        host.write(f"{EFI}/{name}", content)
        found = efi.read(host.root)
        assert (found.state is None) == bool(found.obstacle)


# --- handing it over ---------------------------------------------------------------------


numbers = st.integers(0, (1 << 64) - 1)
states = st.builds(
    EfiState,
    *(numbers,) * 5,
    st.lists(
        st.builds(RuntimeRange, st.integers(0, (1 << 32) - 1), *(numbers,) * 4), max_size=40
    ).map(tuple),
)


@given(
    states,
    st.binary(max_size=200).map(lambda line: line.replace(b"\0", b" ")),
    st.integers(0, 300),
    st.integers(0, 1 << 44).map(lambda unit: unit * 4096),
)
def test_parse_reads_the_firmware_that_build_wrote(
    state: EfiState, line: bytes, entries: int, address: int
) -> None:
    e820 = tuple(E820Entry(number << 20, 4096, E820Type.RAM) for number in range(entries))
    segment = build(BASE, IMAGE, address, line, Range(1 << 30, 2 << 30), e820, state)
    assert len(segment) == segment_size(line, e820, state)
    found = parse(segment, address)
    assert found.efi == state
    assert found.command_line == line
    assert sorted(found.e820) == sorted(e820)


@pytest.mark.parametrize("entries", [3, 200])
def test_a_kernel_finds_it_as_the_sources_say(entries: int) -> None:
    e820 = tuple(E820Entry(number << 20, 4096, E820Type.RAM) for number in range(entries))
    segment = build(BASE, IMAGE, ADDRESS, b"quiet", None, e820, STATE)
    signature, low, size, version, at, length, high, at_high = struct.unpack_from(
        "<4s7I", segment, 0x1C0
    )
    assert (signature, version, size) == (b"EL64", 1, 40)
    assert high << 32 | low == SYSTAB
    assert length == 40 * len(RANGES)
    start = (at_high << 32 | at) - ADDRESS
    assert start % 8 == 0
    assert start + length == len(segment)
    for number, expected in enumerate(RANGES):
        found = struct.unpack_from("<IIQQQQ", segment, start + 40 * number)
        assert (found[0], *found[2:]) == expected
    listed = {kind: (offset, length) for kind, offset, length in nodes(segment)}
    assert sorted(listed) == ([1, 4] if entries > 128 else [4])
    offset, length = listed[4]
    assert length == 96
    assert struct.unpack_from("<4Q", segment, offset) == (
        STATE.fw_vendor,
        STATE.runtime,
        STATE.tables,
        STATE.smbios,
    )
    assert not any(segment[offset + 32 : offset + 96])
    if entries > 128:
        assert listed[1][1] == (entries - 128) * 20
    # Nothing lies over anything else.
    spans = sorted([(o - 16, o + n) for o, n in listed.values()] + [(start, len(segment))])
    assert spans[0][0] >= BOOT_PARAMS_SIZE + len(b"quiet\0")
    assert all(one[1] <= other[0] for one, other in zip(spans, spans[1:]))


def test_nothing_is_said_of_it_without_a_state() -> None:
    base = bytearray(BASE)
    base[0x1C0:0x1E0] = fake_efi.efi_info()
    segment = build(bytes(base), IMAGE, ADDRESS, b"quiet", None, ())
    assert not any(segment[0x1C0:0x1E0])
    assert parse(segment, ADDRESS).efi is None
    assert list(nodes(segment)) == []


@given(st.binary(max_size=400), st.integers(0, 32), st.binary(max_size=32))
def test_parse_of_a_damaged_segment(garbage: bytes, at: int, info: bytes) -> None:
    segment = bytearray(build(BASE, IMAGE, ADDRESS, b"quiet", None, (), STATE))
    segment[0x1C0 + at : 0x1C0 + at + len(info)] = info
    segment[BOOT_PARAMS_SIZE : BOOT_PARAMS_SIZE + len(garbage)] = garbage
    try:
        found = parse(bytes(segment), ADDRESS)
    except ValueError:
        return
    assert found.efi is None or len(found.efi.ranges) * 40 <= len(segment)


def test_a_list_of_setup_data_that_does_not_end_is_refused() -> None:
    segment = bytearray(build(BASE, IMAGE, ADDRESS, b"quiet", None, (), STATE))
    (first,) = struct.unpack_from("<Q", segment, 0x250)
    struct.pack_into("<Q", segment, first - ADDRESS, first)
    with pytest.raises(ValueError, match="does not end"):
        parse(bytes(segment), ADDRESS)


@pytest.mark.parametrize(
    ("flags", "line", "obstacle"),
    [
        (0x7F, "root=/dev/vda1 noefi", "says noefi"),
        (0x7F & ~0x10, "root=/dev/vda1", "no XLF_EFI_KEXEC"),
        (0x7F, "root=/dev/vda1 noefix efi=debug", ""),
    ],
)
def test_kernel_and_command_line_have_a_say(flags: int, line: str, obstacle: str) -> None:
    kernel = bzimage.parse(SyntheticBzImage(xloadflags=flags).image())
    found = efi_info.usable(Efi(STATE), kernel, line)
    assert (found.state is None) == bool(obstacle)
    assert obstacle in found.obstacle
    told = Efi(obstacle="it is 32-bit")
    assert efi_info.usable(told, kernel, line) == told


# --- the whole of it ---------------------------------------------------------------------


def loaded(host: FakeHost) -> boot_params.BootParams:
    host.load()
    region = host.live_block().regions[2]
    return parse(host.kernel.read_memory(region.start, region.size), region.start)


def test_an_image_is_loaded_with_it_and_known_again(firmware: FakeHost) -> None:
    found = loaded(firmware)
    assert found.efi == STATE
    assert found.acpi_rsdp_addr == 0x7F77D014
    firmware.assert_complete()
    keeper = firmware.open().keeper
    assert keeper.matches(keeper.look())


def test_where_it_cannot_be_the_tables_are_still_found(firmware: FakeHost) -> None:
    firmware.configure(command_line=f"{COMMAND_LINE} noefi")
    found = loaded(firmware)
    assert found.efi is None
    assert found.acpi_rsdp_addr == 0x7F77D014
    firmware.assert_complete()


def test_plan_says_what_is_handed_over(
    firmware: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan"], firmware.root, firmware.kernel) == 0
    assert "EFI           handed over, 5 ranges of memory" in capsys.readouterr().out
    assert cli.main(["plan", "--json"], firmware.root, firmware.kernel) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["efi"] == {"handed_over": True, "because": None}


def test_plan_says_what_is_lost_where_it_is_not(
    firmware: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    firmware.write(KERNEL, bzimage_file(SyntheticBzImage(xloadflags=0x6F)))
    assert cli.main(["plan"], firmware.root, firmware.kernel) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "EFI not handed over: the kernel cannot take it over (no XLF_EFI_KEXEC)" in shown
    assert "has no EFI variables" in shown
    assert cli.main(["plan", "--json"], firmware.root, firmware.kernel) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not plan["efi"]["handed_over"]
    assert "XLF_EFI_KEXEC" in plan["efi"]["because"]


def test_plan_says_nothing_without_efi(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan"], host.root, host.kernel) == 0
    assert "EFI" not in capsys.readouterr().out
