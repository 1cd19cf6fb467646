from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.errors import MachineError
from kdumphpd.header.elfcorehdr import Note
from kdumphpd.machine import cpus
from tests.unit import fake_files
from tests.unit.fake_kernel import FakeKernel


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0\n", (0,)), ("0-3,8\n", (0, 1, 2, 3, 8)), ("", ()), ("7,0-1", (0, 1, 7))],
)
def test_lists(text: str, numbers: tuple[int, ...]) -> None:
    assert cpus.parse_list(text) == numbers


@given(st.sets(st.integers(0, 8191)))
def test_what_the_kernel_prints_is_read_back(numbers: set[int]) -> None:
    assert cpus.parse_list(fake_files.cpu_list(numbers)) == tuple(sorted(numbers))


@pytest.mark.parametrize("text", ["x", "3-1", "-1", "0-99999999999", "1-2-3", "0 1", "0;1"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(MachineError, match="not a list of CPUs"):
        cpus.parse_list(text)


@given(st.one_of(st.text(), st.text(alphabet="0123456789-,\n ")))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(MachineError):
        numbers = cpus.parse_list(text)
        assert list(numbers) == sorted(set(numbers))


def test_present_possible_and_notes(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path, cpus=(0, 3), possible=6)
    assert cpus.present(kernel.root) == (0, 3)
    assert cpus.possible_count(kernel.root) == 6
    assert cpus.read_note(kernel.root, 3) == Note(kernel.crash_notes(3), 368)
    assert cpus.read_note(kernel.root, 1) is None


def test_a_note_that_is_no_number_is_refused(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    (tmp_path / "sys/devices/system/cpu/cpu0/crash_notes").write_text("(null)\n")
    with pytest.raises(MachineError, match="cpu0/crash_notes"):
        cpus.read_note(kernel.root, 0)
