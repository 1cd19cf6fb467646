"""The main job: the loaded image follows hotplug, and a crash leaves a complete vmcore."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vm.rig import (
    GIB,
    GuestImage,
    Journal,
    Machine,
    Overlay,
    cpu_notes_in_vmcore,
    expected_ram,
    find_pattern,
    hold_pattern,
    ram_in_vmcore,
)

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

CONFIG = "/etc/kdumphpd/kdumphpd.toml"
CONTENT = b"memory that was plugged in after the crash kernel was loaded"


def audit(vm: Machine) -> dict[str, Any]:
    code, stdout, stderr = vm.guest.try_run("kdumphpd audit --json")
    assert stdout, stderr
    found: dict[str, Any] = json.loads(stdout)
    found["exit_code"] = code
    return found


def test_image_follows_hotplug(bookworm: GuestImage, product: Overlay, tmp_path: Path) -> None:
    product.enable("kdumphpd.service")
    with Machine(bookworm, tmp_path / "vm", product) as vm:
        journal = Journal(vm.guest)
        vm.guest.wait_for_unit("kdumphpd.service")
        assert journal.records("started")[0]["KDUMPHPD_BACKEND"] == "full"

        first = vm.hot_add_dimm(2 * GIB)
        vm.wait_for_memory(first)
        journal.wait_for(1, "updated")
        vm.hot_add_cpu()
        vm.wait_for_cpus(2)
        journal.wait_for(2, "updated")
        second = vm.hot_add_dimm(2 * GIB)
        vm.wait_for_memory(second)
        journal.wait_for(3, "updated")
        vm.hot_remove_dimm(second)
        journal.wait_for(4, "updated")
        # The burst's last word: no event of it is still to come.
        (closing,) = journal.wait_for(1, "audited", timeout=120)

        updates = journal.records("updated")
        assert [record["KDUMPHPD_CHANGE"] for record in updates] == [
            f"memory {first.start:#x}-{first.end:#x}, 2 GiB, 16 blocks added",
            "cpu 1 added",
            f"memory {second.start:#x}-{second.end:#x}, 2 GiB, 16 blocks added",
            f"memory {second.start:#x}-{second.end:#x}, 2 GiB, 16 blocks removed",
        ]
        assert {record["KDUMPHPD_BACKEND"] for record in updates} == {"delta"}
        assert closing["KDUMPHPD_VERDICT"] == "complete"
        assert int(closing["KDUMPHPD_UEVENTS"]) >= 3 * 16 + 1
        found = audit(vm)
        assert (found["verdict"], found["managed_by"]) == ("complete", "kdumphpd")
        assert found["exit_code"] == 0
        assert found["image"]["verified"] is True
        assert [second.start, second.end] not in found["header"]["memory"]

        pattern = hold_pattern(vm.guest, first, CONTENT)
        iomem, addresses = vm.guest.read("/proc/iomem"), pattern.addresses()
        with vm.freeze() as memory:
            segments = {one["name"]: one for one in found["image"]["segments"]}
            reserve = segments["elfcorehdr"]
            memory.flip(reserve["address"] + reserve["size"] - 1)
        capture = vm.crash()

    assert ram_in_vmcore(capture.header) == expected_ram(iomem)
    assert cpu_notes_in_vmcore(capture.header) == 2
    assert all(first.start <= address <= first.end for address in addresses)
    assert find_pattern(capture.vmcore, addresses, CONTENT)


@pytest.mark.parametrize("part", ["kernel", "initrd", "boot_params"])
def test_purgatory_refuses_a_damaged_image(
    bookworm: GuestImage, product: Overlay, tmp_path: Path, part: str
) -> None:
    with Machine(bookworm, tmp_path / "vm", product) as vm:
        vm.guest.run("kdumphpd load")
        segments = {one["name"]: one for one in audit(vm)["image"]["segments"]}
        with vm.freeze() as memory:
            memory.flip(segments[part]["address"] + segments[part]["size"] // 2)
        damaged = audit(vm)
        assert (damaged["verdict"], damaged["exit_code"]) == ("damaged", 1)
        assert damaged["image"]["verified"] is False
        vm.trigger_crash()
        vm.console.wait_for("kdumphpd purgatory: SHA-256 mismatch", 60)
        assert "CAPTURE-BEGIN" not in vm.console.text()


def test_signals_and_commands(bookworm: GuestImage, product: Overlay, tmp_path: Path) -> None:
    product.enable("kdumphpd.service")
    with Machine(bookworm, tmp_path / "vm", product) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        guest.wait_for_unit("kdumphpd.service")
        for command in ("load", "update"):
            code, _, stderr = guest.try_run(f"kdumphpd {command}")
            assert code == 75
            assert "another kdumphpd is running" in stderr

        guest.run("systemctl kill --kill-whom=main -s USR1 kdumphpd")
        (status,) = journal.wait_for(1, "status")
        assert status["KDUMPHPD_VERDICT"] == "complete"
        guest.run("systemctl reload kdumphpd")
        journal.wait_for(1, "adopted")
        # A configuration that cannot be used fails the reload, and shows until it is mended.
        guest.run(f"cp {CONFIG} /run/good.toml; echo 'sauce = 3' >{CONFIG}")
        assert guest.try_run("systemctl reload kdumphpd")[0] != 0
        journal.wait_for(2, "status")
        shown = guest.run("systemctl show -p ActiveState -p SubState -p StatusText kdumphpd")
        assert "ActiveState=active\nSubState=running\n" in shown
        assert "the old configuration stays" in shown
        assert "sauce is not a known key" in shown
        guest.run(f"cat /run/good.toml >{CONFIG}; systemctl reload kdumphpd")
        journal.wait_for(2, "adopted")
        guest.run("systemctl stop kdumphpd")
        journal.wait_for(1, "stopped")
        assert audit(vm)["verdict"] == "complete"

        # A restarted daemon knows its image, and needs no full load even if it is stale.
        vm.hot_add_cpu()
        vm.wait_for_cpus(2)
        assert audit(vm)["missing"]["cpus"] == [1]
        guest.run("systemctl start kdumphpd")
        (repaired,) = journal.wait_for(1, "repaired")
        assert repaired["KDUMPHPD_BACKEND"] == "delta"

        # An administrator's decisions stay: unloaded is unloaded, foreign is foreign.
        guest.run("kexec -p -u")
        vm.hot_add_cpu()
        vm.wait_for_cpus(3)
        journal.wait_for(1, "disarmed")
        assert audit(vm)["verdict"] == "unloaded"
        guest.run("kexec -c -p /boot/vmlinuz --initrd=/boot/capture.img --append=console=ttyS0")
        vm.hot_add_cpu()
        vm.wait_for_cpus(4)
        journal.wait_for(1, "foreign")
        foreign = audit(vm)
        assert (foreign["verdict"], foreign["managed_by"]) == ("stale", "other")
        assert foreign["missing"]["cpus"] == [3]
        guest.run("systemctl reload kdumphpd")
        assert audit(vm)["managed_by"] == "kdumphpd"
        assert audit(vm)["verdict"] == "complete"
