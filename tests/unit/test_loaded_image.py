"""What a crash would do with an image that was loaded: the real purgatory on an emulated CPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdumphpd.image import boot_params
from kdumphpd.image.parameter_block import purgatory_size
from tests.unit import test_purgatory as emulator
from tests.unit.fake_kernel import MIB
from tests.unit.host_fixture import COMMAND_LINE, DIMM, INITRD, FakeHost


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path, crashkernel=64 * MIB)
    host.load()
    return host


def crash(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> emulator.Outcome:
    """Enter the loaded image where the kernel would, with memory as it is."""
    kernel, block = host.kernel, host.live_block()
    entry = kernel.reservation.end + 1 - purgatory_size()
    assert kernel.entry == entry
    monkeypatch.setattr(emulator, "RESERVATION", kernel.reservation)
    monkeypatch.setattr(emulator, "KERNEL", block.regions[0].start)
    monkeypatch.setattr(emulator, "HEADER", block.elfcorehdr)
    contents = tuple((one, kernel.read_memory(one.start, one.size)) for one in block.regions[:-1])
    return emulator.run(
        kernel.read_memory(entry, purgatory_size()),
        contents,
        header=kernel.read_memory(block.elfcorehdr.start, 4096),
    )


def test_a_full_load_reaches_the_kernel(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = crash(host, monkeypatch)
    assert outcome.entered_kernel, outcome.said
    assert outcome.registers["RSI"] == host.live_block().boot_params


def test_delta_loads_and_damage_outside_the_image_change_nothing(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = host.open().keeper
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_add_cpu(3)
    mended = keeper.mend(keeper.look())
    assert mended.loaded
    assert mended.loaded.backend == "delta"
    host.flip(host.live_block().elfcorehdr.end)
    host.flip(host.live_block().control_pad.end)
    assert crash(host, monkeypatch).entered_kernel


@pytest.mark.parametrize("region", range(4))
@pytest.mark.parametrize("where", ["first", "last"])
def test_one_flipped_bit_stops_it_as_the_audit_said_it_would(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, region: int, where: str
) -> None:
    place = host.live_block().regions[region]
    # The purgatory's first instruction may do anything once damaged; its last byte is padding.
    host.flip(place.start if where == "first" and region < 3 else place.end)
    outcome = crash(host, monkeypatch)
    assert not outcome.entered_kernel
    assert outcome.said == emulator.MISMATCH
    assert host.audit().verified is False


def test_the_kernel_finds_its_command_line_initrd_and_memory(host: FakeHost) -> None:
    block = host.live_block()
    place = block.regions[2]
    params = boot_params.parse(host.kernel.read_memory(place.start, place.size), place.start)
    line = params.command_line.decode()
    assert line.startswith(COMMAND_LINE)
    assert "acpi_no_memhotplug" in line.split()
    assert re.search(rf" elfcorehdr={block.elfcorehdr.start >> 10}K$", line)
    assert params.initrd == block.regions[1]
    assert params.initrd is not None
    initrd = host.kernel.read_memory(params.initrd.start, params.initrd.size)
    assert initrd == host.root.path(INITRD).read_bytes()
    usable = [one.range for one in params.e820 if one.type == 1]
    assert not any(one.overlaps(block.elfcorehdr) for one in usable)
    assert any(one.contains(block.regions[0]) for one in usable)
    above = [one for one in usable if one.end > MIB]
    assert all(host.kernel.reservation.contains(one) for one in above)
