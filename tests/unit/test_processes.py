"""Running other programs: real ones."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

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


#: Puts two processes beside what it belongs to: one in a group of its own, one a daemon with
#: a session of its own, whose parent is init. Each says so by a file, and holds the FIFO open.
_STRAYS = r"""
exec 8>"$1"
set -m
sh -c ': >"$0.group"; exec sleep 600' "$1" &
set +m
setsid --fork sh -c ': >"$0.session"; exec sleep 600' "$1"
until [ -e "$1.group" ] && [ -e "$1.session" ]; do sleep 0.01; done
"""


@pytest.mark.parametrize("late", [False, True], ids=["through", "too late"])
def test_what_left_its_process_group_is_killed_too(tmp_path: Path, late: bool) -> None:
    """The end of the FIFO says that nobody is left."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    script = _STRAYS + ("sleep 600" if late else "")
    done = run(("/bin/bash", "-c", script, "bash", str(fifo)), 5 if late else 60, to_the_last=True)
    assert done.status == (None if late else 0)
    assert select.select([reader], [], [], 60)[0], "somebody still holds it open"
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_what_another_run_started_is_left_alone() -> None:
    with subprocess.Popen(("sleep", "600"), env={"KDUMPHPD_RUN": "1-1"}) as other:
        run(("/bin/true",), 20, to_the_last=True)
        assert other.poll() is None
        other.kill()


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
