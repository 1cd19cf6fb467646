"""What a file load wants to place, read from the running kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdumphpd.image.layout import PAGE
from kdumphpd.load import file_needs
from kdumphpd.load.file_placement import Buffer, FileNeeds
from kdumphpd.machine.ranges import Range
from tests.unit import fake_file_load
from tests.unit.fake_file_load import Ways
from tests.unit.fake_kernel import MIB, FakeKernel
from tests.unit.host_fixture import COMMAND_LINE, FakeHost, bzimage

KEYS = "/sys/kernel/config/crash_dm_crypt_keys/count"
IMA = "/sys/kernel/security/ima/binary_runtime_measurements"
ELFCOREHDR_SIZE = "/sys/kernel/crash_elfcorehdr_size"
INITRD = 20 * MIB


def read(host: FakeHost) -> FileNeeds:
    parts = host.open()
    machine = parts.reader.snapshot()
    kernel = parts.source.kernel(parts.reader)
    line = COMMAND_LINE.encode()
    return file_needs.read(host.root, parts.reader, machine, kernel, INITRD, line)


def by_name(needs: FileNeeds) -> dict[str, Buffer]:
    return {one.name: one for one in needs.buffers()}


@pytest.mark.parametrize("keys", [0, 3])
@pytest.mark.parametrize("efi_map", [0, 6 * 48])
def test_nothing_is_smaller_than_what_the_kernel_takes(
    host: FakeHost, keys: int, efi_map: int
) -> None:
    host.write(KEYS, f"{keys}\n")
    host.write(ELFCOREHDR_SIZE, "917616\n")
    for number in range(efi_map // 48):
        host.write(f"/sys/firmware/efi/runtime-map/{number}/type", "0x6\n")
    params = bytearray(host.root.read_bytes("/sys/kernel/boot_params/data"))
    params[0x1C8] = 48
    host.write("/sys/kernel/boot_params/data", bytes(params))
    needs = read(host)
    ways = Ways(keys=keys, efi_map=efi_map, setup_data=80)
    kernel, line = bzimage(), COMMAND_LINE.encode()
    for one in fake_file_load.searches(kernel, INITRD, line, 917616 + 64, ways):
        if one.name == "keys":
            assert one.memsz <= needs.keys <= one.memsz + 8
            continue
        asked = by_name(needs)[one.name]
        assert asked.size >= one.memsz, one.name
        assert asked.memory <= one.memsz + 12 * PAGE, one.name
        assert (asked.alignment, asked.upwards) == (one.align, not one.top_down)
        assert max(asked.lowest, 1 << 20) == max(one.low, 1 << 20)
        assert not asked.content or asked.content == one.bufsz
    assert bool(needs.keys) == bool(keys)


def test_the_header_of_a_kernel_that_does_not_update_it(tmp_path: Path) -> None:
    """As crash_prepare_elf64_headers counts: neighbours are two, the first MiB is none."""
    ram = [
        Range(0x1000, 0x9FBFF),
        Range(MIB, 0x3FFFFFFF),
        Range(0x40000000, 0x7FFDEFFF),
        Range(0x100000000, 0x13FFFFFFF),
    ]
    kernel = FakeKernel(tmp_path, ram, Range(0x6F000000, 0x7EFFFFFF), cpus=(0, 1), possible=6)
    needs = read(FakeHost(tmp_path, kernel=kernel))
    # 6 possible CPUs, vmcoreinfo, the kernel's text; 2 ranges of which one is cut in two, 1.
    assert by_name(needs)["elfcorehdr"].size == 64 + 56 * (6 + 2 + 4)
    # crashkernel=...,cma cuts one more range in two.
    kernel.reserve_cma(Range(0x20000000, 0x2FFFFFFF))
    needs = read(FakeHost(tmp_path, kernel=kernel))
    assert by_name(needs)["elfcorehdr"].size == 64 + 56 * (6 + 2 + 5)


def test_memory_that_was_removed_still_has_its_page_tables(host: FakeHost) -> None:
    host.kernel.show_mapped()
    before = read(host).control_pages
    host.kernel.hot_add_memory(Range(1 << 42, (1 << 42) + 300 * (1 << 30) - 1))
    host.kernel.hot_remove_memory(Range(1 << 42, (1 << 42) + 300 * (1 << 30) - 1))
    assert read(host).control_pages >= before + 300


def test_a_list_of_measurements_counts(host: FakeHost) -> None:
    assert read(host).measurements is None
    host.write(IMA, b"m" * (3 * MIB + 1))
    measurements = read(host).measurements
    assert measurements is not None
    assert measurements.memory == 3 * MIB + PAGE


@pytest.mark.parametrize("count", ["", "x\n", "-1\n", "9" * 5000])
def test_a_count_of_keys_that_is_none(host: FakeHost, count: str) -> None:
    host.write(KEYS, count)
    assert read(host).keys == 0
