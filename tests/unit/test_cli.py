"""The command line as a whole: arguments, help, and what a process of ours ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdumphpd import cli
from tests.unit.fake_kdump import FakeKdump
from tests.unit.host_fixture import CONFIG, INITRD, KERNEL, FakeHost


@pytest.mark.parametrize(
    "arguments", [[], ["reload"], ["audit", "--jsn"], ["load", "now"], ["plan", "--root"]]
)
def test_wrong_arguments_are_no_verdict(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 64
    assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["run", "--help"]])
def test_help_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("kdumphpd")


def test_the_audit_of_this_very_host_says_something() -> None:
    """As a process, on a host that is what it is: a verdict or unknown, never a traceback."""
    result = subprocess.run(
        [sys.executable, "-m", "kdumphpd.cli", "audit", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode in (0, 1, 2, 3)
    assert result.stderr == ""
    assert json.loads(result.stdout)["verdict"]


def test_a_reader_that_goes_away_early_is_no_error(host: FakeHost) -> None:
    host.load()
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [sys.executable, "-m", "kdumphpd.cli", "plan", "--root", str(host.root.directory)],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    os.close(write_end)
    assert (result.returncode, result.stderr) == (0, "")


def test_root_of_plan_wins_over_the_host(
    host: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = FakeHost(tmp_path / "other", cpus=(0, 1, 2, 3))
    directory = str(other.root.directory)
    assert cli.main(["plan", "--root", directory, "--json"], host.root, host.kernel) == 0
    assert json.loads(capsys.readouterr().out)["cpus"] == [0, 1, 2, 3]


def test_plan_takes_a_recorded_tree_whoever_can_write_it(host: FakeHost) -> None:
    """Nothing is loaded from it, and a checkout is often writable by a group."""
    for name in (KERNEL, INITRD, str(CONFIG)):
        host.root.path(name).chmod(0o666)
    host.root.path(str(CONFIG)).parent.chmod(0o777)
    assert cli.main(["plan", "--root", str(host.root.directory)]) == 0
    assert cli.main(["plan"], host.root, host.kernel) == 65


def test_plan_takes_a_recorded_kdump_tools_whoever_can_write_it(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    kdump = FakeKdump(host)
    kdump.ask_for()
    kdump.command_path.chmod(0o666)
    assert cli.main(["plan", "--root", str(host.root.directory)]) == 0
    assert "kexec_cmd" in capsys.readouterr().out
    assert cli.main(["plan"], host.root, host.kernel) == 78
