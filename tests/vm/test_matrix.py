"""The part of the matrix that every change must pass, and the matrix's own parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vm.matrix import merged, table
from tests.vm.rig import firmware
from tests.vm.rig.firmware import Firmware
from tests.vm.rows import ROWS, Row, run

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("row", [row for row in ROWS if row.in_test], ids=lambda row: row.id)
def test_row(row: Row, wheel: Path, tmp_path: Path) -> None:
    assert run(row, wheel, tmp_path).unarmed_usec


def test_rows_have_names_of_their_own() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)


def test_newer_results_take_the_place_of_older_ones() -> None:
    older, newer = _result(ROWS[1], passed=False), _result(ROWS[1], passed=True)
    other, gone = _result(ROWS[0], passed=True), {**_result(ROWS[0]), "scenario": "no more"}

    assert merged([older, gone, other], newer) == [other, newer]


def test_table_says_what_failed() -> None:
    header, rule, passed, failed = table(
        [_result(ROWS[0], passed=True), _result(ROWS[1], passed=False)]
    ).splitlines()
    assert len({len(line) for line in (header, rule, passed, failed)}) == 1
    assert "| yes " in passed
    assert "| NO " in failed


def test_firmware_is_found_by_its_descriptors(tmp_path: Path) -> None:
    def describe(name: str, *features: str, executable: str = "raw") -> None:
        mapping = {
            "device": "flash",
            "executable": {"filename": f"/{name}/code", "format": executable},
            "nvram-template": {"filename": f"/{name}/vars", "format": "raw"},
        }
        described = {
            "interface-types": ["uefi"],
            "mapping": mapping,
            "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
            "features": list(features),
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(described))

    describe("10-secure", "secure-boot", "requires-smm")
    describe("20-qcow2", executable="qcow2")
    describe("30-plain", "acpi-s3")
    describe("40-plain", "acpi-s3")

    found = firmware.find(Firmware.OVMF, tmp_path)

    assert found == firmware.Flash(Path("/30-plain/code"), Path("/30-plain/vars"))
    assert firmware.find(Firmware.SEABIOS, tmp_path) is None


def _result(row: Row, passed: bool = True) -> dict[str, object]:
    return {
        "guest": row.guest.name,
        "kernel": "6.1",
        "firmware": row.options.firmware.value,
        "scenario": row.name,
        "rung": "delta",
        "passed": passed,
        "unarmed_usec": 1000,
    }
