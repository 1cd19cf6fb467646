"""Running other programs: real ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd import processes
from kdumphpd.processes import as_unit, last_line, run


def test_output_and_errors_are_told_apart() -> None:
    done = run(("/bin/sh", "-c", "echo out; echo err >&2; exit 3"), 20)
    assert (done.status, done.output, done.errors) == (3, "out\n", "err\n")
    assert done.last_line == "err"


def test_one_that_takes_too_long_is_ended() -> None:
    assert run(("/bin/sh", "-c", "sleep 60 & sleep 60"), 0.2).status is None


def test_a_signal_is_a_negative_status() -> None:
    assert run(("/bin/sh", "-c", "kill $$"), 20).status == -15


def test_no_variable_of_ours_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASH_ENV", "/nonexistent")
    names = {one.partition("=")[0] for one in run(("env",), 20).output.split()}
    assert names == set(processes.ENVIRONMENT)


def test_no_variable_is_replaced_in_a_unit() -> None:
    """systemd.service(5): $$ is a dollar sign."""
    assert as_unit(("/opt/load", "$HOME"), "a.service", "A", 60)[-2:] == ("/opt/load", "$$HOME")


@given(st.text())
def test_last_line_is_one_printable_line(text: str) -> None:
    assert last_line(text).isprintable()


def test_last_line_leaves_blank_lines_out() -> None:
    assert last_line("first\n last \n\n") == "last"
