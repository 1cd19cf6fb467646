"""Numbers of 64 bits, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.errors import MachineError
from kdumphpd.header import elf
from kdumphpd.machine import cpus, snapshot
from kdumphpd.machine.files import Root
from kdumphpd.machine.numbers import parse_u64
from tests.unit.fake_kernel import FakeKernel


@given(st.integers(0, (1 << 64) - 1))
def test_numbers_are_read_back(number: int) -> None:
    assert parse_u64(str(number)) == number
    assert parse_u64(f"{number:x}", 16) == number
    assert parse_u64(f"{number:#x}", 16) == number


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", " 1", "1_0", "0x1", "٣", str(1 << 64), "9" * 5000, "1\n"]
)
def test_no_numbers(text: str) -> None:
    assert parse_u64(text) is None


@given(st.text(max_size=30))
def test_any_text_is_a_number_of_64_bits_or_none(text: str) -> None:
    for base in (10, 16):
        number = parse_u64(text, base)
        assert number is None or 0 <= number < 1 << 64


@pytest.mark.parametrize("text", ["1" * 17, "-1", "9" * 5000])
def test_crash_notes_over_64_bits_are_an_error(root: Root, text: str) -> None:
    """They would not fit into a program header: struct.error, long after the reading."""
    root.path("/sys/devices/system/cpu/cpu0/crash_notes").write_text(text)
    with pytest.raises(MachineError, match="is not a number of 64 bits"):
        cpus.read_note(root, 0)


@pytest.mark.parametrize("text", ["1" * 17 + " 1", "-1 1", "1 -1", "1", "1 2 3", "1 " + "9" * 5000])
def test_vmcoreinfo_over_64_bits_is_an_error(text: str) -> None:
    with pytest.raises(MachineError, match="vmcoreinfo"):
        snapshot.parse_vmcoreinfo(text)


def test_a_header_of_the_largest_numbers_can_be_packed() -> None:
    largest = (1 << 64) - 1
    assert elf.pack_core([elf.ProgramHeader(4, 0, largest, 0, largest, largest, largest)])


@pytest.fixture
def root(tmp_path: object) -> Root:
    return FakeKernel.q35(tmp_path).root  # type: ignore[arg-type]
