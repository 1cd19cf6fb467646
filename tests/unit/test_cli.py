"""The command line as a whole: arguments, help, and what a process of ours ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdumphpd import cli, commands
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
        [sys.executable, "-m", "kdumphpd", "audit", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode in (0, 1, 2, 3)
    assert result.stderr == ""
    assert json.loads(result.stdout)["verdict"]


COMMANDS = [["plan", "--root", "TREE"], ["audit", "--json"], ["--help"]]
#: How a shell sets up what the command finds, and whether standard error is left to read.
NOWHERE = [">/dev/full", ">&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"]


def shell(
    host: FakeHost, arguments: list[str], redirection: str
) -> subprocess.CompletedProcess[str]:
    tree = str(host.root.directory)
    command = [
        sys.executable,
        "-m",
        "kdumphpd",
        *(tree if one == "TREE" else one for one in arguments),
    ]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("redirection", NOWHERE)
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_what_cannot_be_written_is_no_verdict(
    host: FakeHost, arguments: list[str], redirection: str
) -> None:
    done = shell(host, arguments, redirection)
    assert done.returncode == 74
    heard = "2>" not in redirection
    assert done.stderr.startswith("kdumphpd: standard output: ") == heard
    assert done.stderr.count("\n") == heard, "one line"


def test_a_reader_that_goes_away_early_gets_no_verdict_and_no_complaint(host: FakeHost) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [sys.executable, "-m", "kdumphpd", "audit"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    os.close(write_end)
    assert (result.returncode, result.stderr) == (74, "")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&- 2>&-"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["nonsense"], 64), (["plan", "--root", "/nowhere"], 78), (["plan", "--config", "/no"], 78)],
)
def test_a_complaint_that_nobody_hears_keeps_its_exit_code(
    host: FakeHost, arguments: list[str], code: int, redirection: str
) -> None:
    done = shell(host, arguments, redirection)
    assert (done.returncode, done.stdout) == (code, ""), "nor does it end up in the output"


def test_names_that_no_terminal_can_show_are_written_as_escapes(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file name is bytes: with an escape sequence, a reversal of the line, no UTF-8."""
    nasty = os.fsdecode(b"/etc/\x1b[2Jkdump\xff\xe2\x80\xae\n.toml")
    assert cli.main(["plan", "--config", nasty], host.root, host.kernel) == 78
    said = capfd.readouterr().err
    assert said.endswith("\n")
    assert said[:-1].isprintable()
    assert "/etc/\\x1b[2Jkdump\\xff\\u202e\\x0a.toml does not exist" in said


def test_an_encoding_without_the_letters_shows_them_as_escapes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kdumphpd", "plan", "--config", str(tmp_path / "gr\u00f6\u00dfe")],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 78
    assert "gr\\xf6\\xdfe does not exist" in done.stderr


class Broken:
    """In a command's place: raises what nobody foresaw."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, context: object) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyError("step"), 70, "kdumphpd: KeyError: 'step'; report these lines\n"),
        (OSError(5, "Input/output error"), 70, "Input/output error"),
        (MemoryError(), 70, "MemoryError"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_nobody_foresaw_is_no_verdict(
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(commands, "audit", Broken(error))
    assert cli.main(["audit"], host.root, host.kernel) == code
    heard = capfd.readouterr()
    assert heard.out == ""
    assert said in heard.err
    assert bool(heard.err) == bool(said)


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
