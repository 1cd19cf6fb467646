from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.errors import InputError
from kdumphpd.machine import boot_params
from kdumphpd.machine.files import Root

#: As OVMF's kernel shows it.
_SYSTAB = "ACPI20=0x7f77d014\nACPI=0x7f77d000\nSMBIOS=0x7f520000\n"


def _root(directory: Path, data: bytes, systab: str | None = None) -> Root:
    for name, content in (
        ("sys/kernel/boot_params/data", data),
        ("sys/firmware/efi/systab", systab and systab.encode()),
    ):
        if content is not None:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content)
    return Root(directory)


def test_rsdp_comes_from_the_firmware_where_the_stub_left_none(tmp_path: Path) -> None:
    data = bytes(range(1, 113)) + bytes(8) + bytes(range(120, 248))
    found = boot_params.read(_root(tmp_path, data, _SYSTAB))
    assert found == data[:0x70] + (0x7F77D014).to_bytes(8, "little") + data[0x78:]


def test_what_boot_params_says_stays(tmp_path: Path) -> None:
    data = bytes(0x70) + (0xF5A50).to_bytes(8, "little") + bytes(64)
    assert boot_params.read(_root(tmp_path, data, _SYSTAB)) == data


def test_without_efi_it_is_the_file(tmp_path: Path) -> None:
    assert boot_params.read(_root(tmp_path, bytes(4096))) == bytes(4096)
    with pytest.raises(InputError, match="boot_params/data"):
        boot_params.read(Root(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("systab", "address"),
    [
        (_SYSTAB, 0x7F77D014),
        ("SMBIOS=0x7f520000\nACPI=0x7f77d000\n", 0x7F77D000),
        ("SMBIOS=0x7f520000\n", 0),
        ("XACPI=0x10\nACPI=0x\nACPI20=0x10000000000000000\n", 0),
    ],
)
def test_rsdp_in_systab(systab: str, address: int) -> None:
    assert boot_params.rsdp(systab) == address


@given(st.text())
def test_any_systab_gives_an_address_that_fits(systab: str) -> None:
    assert 0 <= boot_params.rsdp(systab) < 1 << 64


@given(st.binary(max_size=0x100), st.integers(0, (1 << 64) - 1))
def test_only_an_empty_field_is_filled(data: bytes, address: int) -> None:
    found = boot_params.with_rsdp(data, address)
    assert len(found) == len(data)
    assert found[:0x70] == data[:0x70]
    assert found[0x78:] == data[0x78:]
    if len(data) >= 0x78:
        field = int.from_bytes(data[0x70:0x78], "little")
        assert int.from_bytes(found[0x70:0x78], "little") == (field or address)
