"""The audit's verdict on every state that a host can be in, and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdumphpd.audit.audit import audit
from kdumphpd.audit.compare import Verdict
from kdumphpd.machine.ranges import Range
from kdumphpd.report import text
from tests.unit.fake_kernel import MIB
from tests.unit.host_fixture import DIMM, GIB, OTHER_DIMM, FakeHost

STYLES = ["kexec_load", "kexec_file_load"]


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path, cpus=(0, 2), crashkernel=64 * MIB)


def test_a_fresh_load_is_complete(host: FakeHost) -> None:
    host.load()
    found = host.audit()
    assert found.verdict is Verdict.COMPLETE
    assert (found.loaded, found.managed_by, found.verified) == (True, "kdumphpd", True)
    assert found.header is not None
    assert found.header.address == host.live_header()
    assert found.header.cpus == (0, 2)
    assert found.header.memory == host.machine_ram()
    assert not found.missing
    assert not found.extra
    assert not found.reasons


def test_nothing_loaded(host: FakeHost) -> None:
    found = host.audit()
    assert (found.verdict, found.loaded, found.managed_by) == (Verdict.UNLOADED, False, None)


def test_what_came_is_missing_and_what_went_is_extra(host: FakeHost) -> None:
    host.kernel.hot_add_memory(DIMM)
    parts = host.load()
    host.kernel.hot_remove_memory(DIMM)
    host.kernel.hot_add_memory(OTHER_DIMM)
    host.kernel.hot_add_cpu(5)
    host.kernel.hot_remove_cpu(2)
    found = host.audit()
    assert found.verdict is Verdict.STALE
    assert found.missing.memory == (OTHER_DIMM,)
    assert found.missing.cpus == (5,)
    assert found.extra.memory == (DIMM,)
    assert len(found.reasons) == 3
    assert any(str(OTHER_DIMM) in one for one in found.reasons)
    assert any("lacks CPUs 5" in one for one in found.reasons)
    parts.keeper.mend(parts.keeper.look())
    assert host.audit().verdict is Verdict.COMPLETE


def test_notes_of_a_cpu_that_is_gone_do_no_harm(host: FakeHost) -> None:
    host.load()
    host.kernel.hot_remove_cpu(2)
    found = host.audit()
    assert found.verdict is Verdict.COMPLETE
    assert found.header is not None
    assert (found.header.cpus, found.header.notes) == ((0,), 2)


def test_part_of_a_dimm(host: FakeHost) -> None:
    host.kernel.hot_add_memory(DIMM)
    host.load()
    gone = Range(DIMM.start + 256 * MIB, DIMM.start + 384 * MIB - 1)
    host.kernel.hot_remove_memory(gone)
    assert host.audit().extra.memory == (gone,)


@pytest.mark.parametrize("region", range(4))
@pytest.mark.parametrize("where", ["first", "last"])
def test_one_flipped_bit_is_damage(host: FakeHost, region: int, where: str) -> None:
    host.load()
    place = host.live_block().regions[region]
    host.flip(place.start if where == "first" else place.end)
    found = host.audit()
    assert found.verdict is Verdict.DAMAGED
    assert found.verified is False
    assert "purgatory would not start it" in found.reasons[0]


@pytest.mark.parametrize("offset", [0, 4, 16, 18, 20, 32, 52, 54, 56])
def test_a_damaged_elf_header_is_damage(host: FakeHost, offset: int) -> None:
    host.load()
    host.flip(host.live_header() + offset)
    found = host.audit()
    # One more or one less program header shows in what it lists.
    assert found.verdict in (Verdict.DAMAGED, Verdict.STALE)


def test_a_flipped_bit_in_a_program_header_is_stale(host: FakeHost) -> None:
    host.load()
    host.flip(host.live_header() + 64 + 8 + 2)  # p_offset of the first CPU's note
    found = host.audit()
    assert found.verdict is Verdict.STALE
    assert found.missing.cpus == (0,)


def test_a_flipped_bit_in_the_unused_tail_does_no_harm(host: FakeHost) -> None:
    host.load()
    host.flip(host.live_block().elfcorehdr.end)
    host.flip(host.live_block().control_pad.end)
    assert host.audit().verdict is Verdict.COMPLETE


def test_without_hashing_nothing_is_said_of_the_image(host: FakeHost) -> None:
    host.load()
    host.flip(host.live_block().regions[0].start)
    found = audit(host.root, host.open().reader, verify=False)
    assert (found.verdict, found.verified) == (Verdict.COMPLETE, None)


@pytest.mark.parametrize("style", STYLES)
def test_a_foreign_image_is_judged_by_its_header(host: FakeHost, style: str) -> None:
    image = host.kernel.foreign_load(style)
    found = host.audit()
    assert found.verdict is Verdict.COMPLETE, found.reasons
    assert found.managed_by == "other"
    assert found.verified is None
    assert found.header is not None
    assert found.header.address == image.elfcorehdr
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_add_cpu(1)
    stale = host.audit()
    assert stale.verdict is Verdict.STALE
    assert stale.missing.memory == (DIMM,)
    assert stale.missing.cpus == (1,)


@pytest.mark.parametrize("style", STYLES)
def test_our_old_header_is_not_taken_for_a_foreign_image_s(host: FakeHost, style: str) -> None:
    """It lies between the first and the last MiB and survives the other's load."""
    host.kernel.hot_add_memory(DIMM)
    host.load()
    ours = host.live_header()
    host.kernel.hot_remove_memory(DIMM)
    image = host.kernel.foreign_load(style)
    found = host.audit()
    assert found.verdict is Verdict.COMPLETE, found.reasons
    assert found.header is not None
    assert found.header.address == image.elfcorehdr != ours


def test_the_kernel_manages_what_it_says_it_does(host: FakeHost) -> None:
    host.write("/sys/devices/system/memory/crash_hotplug", "1\n")
    host.kernel.foreign_load("kexec_file_load")
    assert host.audit().managed_by == "kernel"
    host.load()
    assert host.audit().managed_by == "kdumphpd"


def test_a_foreign_image_without_a_header_is_unknown(host: FakeHost) -> None:
    image = host.kernel.foreign_load()
    host.kernel.write_memory(image.elfcorehdr, bytes(64))
    found = host.audit()
    assert (found.verdict, found.loaded, found.managed_by) == (Verdict.UNKNOWN, True, "other")
    assert "no crash header" in found.reasons[0]


def test_two_foreign_headers_that_differ_are_unknown(host: FakeHost) -> None:
    first = host.kernel.foreign_load("kexec_file_load")
    header = host.kernel.read_memory(first.elfcorehdr, 4096)
    host.kernel.hot_add_memory(DIMM)
    host.kernel.foreign_load("kexec_load")
    left = host.kernel.reservation.start + 32 * MIB
    host.kernel.write_memory(left, header)
    host.kernel.write_memory(left + MIB, f" elfcorehdr={left >> 10}K ".encode())
    found = host.audit()
    assert found.verdict is Verdict.UNKNOWN
    assert f"{left:#x}" in found.reasons[0]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("/proc/kcore", None, "kcore"),
        ("/proc/kcore", b"", "kcore"),
        ("/proc/iomem", b"00000000-00000000 : System RAM\n", "zeros"),
        ("/proc/iomem", b"", "no System RAM"),
        ("/sys/devices/system/cpu/present", b"?\n", "list of CPUs"),
        ("/sys/kernel/vmcoreinfo", b"\n", "vmcoreinfo"),
    ],
)
def test_what_cannot_be_read_is_unknown_and_says_why(
    host: FakeHost, name: str, content: bytes | None, reason: str
) -> None:
    host.load()
    if content is None:
        host.root.path(name).unlink()
    else:
        host.write(name, content)
    found = host.audit()
    assert (found.verdict, found.loaded) == (Verdict.UNKNOWN, True)
    assert reason in found.reasons[0]


def test_json_has_the_contract_s_keys(host: FakeHost) -> None:
    host.load()
    host.kernel.hot_add_memory(Range(4 * GIB, 5 * GIB - 1))
    host.kernel.hot_add_cpu(7)
    data = json.loads(json.dumps(host.audit().to_json()))
    assert data["verdict"] == "stale"
    assert data["loaded"] is True
    assert data["managed_by"] == "kdumphpd"
    assert {"address", "size", "cpus", "memory"} <= set(data["header"])
    assert data["header"]["cpus"] == [0, 2]
    assert data["missing"] == {"cpus": [7], "memory": [[4 * GIB, 5 * GIB - 1]]}
    assert data["extra"] == {"cpus": [], "memory": []}
    assert data["image"]["verified"] is True
    names = [one["name"] for one in data["image"]["segments"]]
    assert names == ["elfcorehdr", "kernel", "initrd", "boot_params", "purgatory"]


@pytest.mark.parametrize("state", ["unloaded", "foreign", "unknown"])
def test_json_has_the_same_keys_in_every_state(host: FakeHost, state: str) -> None:
    host.load()
    whole = host.audit().to_json()
    if state == "unloaded":
        host.kernel.unload()
    elif state == "foreign":
        host.kernel.foreign_load()
    else:
        host.root.path("/proc/kcore").unlink()
    other = host.audit().to_json()
    assert set(other) == set(whole)
    assert other["image"]["verified"] is None
    assert set(other["missing"]) == set(whole["missing"]) == {"cpus", "memory"}


def test_the_text_begins_with_the_verdict_and_names_what_lacks(host: FakeHost) -> None:
    host.load()
    host.kernel.hot_add_memory(DIMM)
    lines = text.audit(host.audit()).splitlines()
    assert lines[0] == "verdict       stale"
    assert any(line.startswith("missing") and str(DIMM) in line for line in lines)
