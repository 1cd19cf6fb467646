"""The command line: what it prints, its exit codes, and bad input, which never costs the image."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdumphpd import cli
from kdumphpd.load.lock import LOCK, single_instance
from tests.unit.fake_kdump import FakeKdump
from tests.unit.fake_kernel import MIB
from tests.unit.host_fixture import CONFIG, DIMM, INITRD, KERNEL, FakeHost, bzimage
from tests.unit.synthetic import SyntheticBzImage


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path / "host")


def run(host: FakeHost, *arguments: str) -> int:
    return cli.main(arguments, host.root, host.kernel)


def run_json(host: FakeHost, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code = run(host, *arguments, "--json")
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, json.loads(captured.out)


# --- what works ------------------------------------------------------------------------


def test_load_audit_update(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(host, "audit") == 2
    assert run(host, "load") == 0
    host.assert_complete()
    assert run(host, "audit") == 0
    assert run(host, "update") == 0
    assert "unchanged" in capsys.readouterr().out
    host.kernel.hot_add_memory(DIMM)
    assert run(host, "audit") == 1
    assert run(host, "update") == 0
    shown = capsys.readouterr().out
    assert "delta load: 2 CPUs, 3.7 GiB of memory in 3 ranges; not armed for" in shown
    assert all(len(line) < 80 for line in shown.splitlines())
    host.assert_complete()


def test_json(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    code, loaded = run_json(host, capsys, "load")
    assert code == 0
    assert loaded["backend"] == "full"
    assert loaded["changed"] is True
    assert loaded["verdict"] == "complete"
    assert loaded["cpus"] == [0, 1]
    assert loaded["memory"] == [[one.start, one.end] for one in host.machine_ram()]
    assert run_json(host, capsys, "update") == (0, {"changed": False, "verdict": "complete"})
    host.kernel.hot_add_cpu(3)
    code, updated = run_json(host, capsys, "update")
    assert (code, updated["backend"], updated["cpus"]) == (0, "delta", [0, 1, 3])
    host.flip(host.live_block().regions[0].start)
    code, found = run_json(host, capsys, "audit")
    assert (code, found["verdict"], found["image"]["verified"]) == (1, "damaged", False)
    code, repaired = run_json(host, capsys, "update")
    assert (code, repaired["backend"], repaired["verdict"]) == (0, "full", "complete")
    assert "damaged" in repaired["failures"][0]


def test_a_load_that_needed_two_attempts_says_what_failed(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    run(host, "load")
    host.kernel.hot_add_memory(DIMM)
    host.kernel.fail_next(errno.ENOMEM, before_free=False)
    capsys.readouterr()
    assert run(host, "update") == 0
    captured = capsys.readouterr()
    assert "ENOMEM" in captured.out
    assert "full load" in captured.out
    assert all(len(line) < 80 for line in captured.out.splitlines())
    host.assert_complete()


def test_audit_exit_codes(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    run(host, "load")
    host.root.path("/proc/kcore").unlink()
    assert run(host, "audit") == 3
    assert "unknown" in capsys.readouterr().out


def test_check_says_whether_the_configuration_can_be_used(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(host.root.path(str(CONFIG)))
    assert run(host, "check") == 0
    assert capsys.readouterr().out.split()[:2] == ["usable", path]
    code, found = run_json(host, capsys, "check")
    assert (code, found["usable"], found["problem"]) == (0, True, None)
    assert (found["file"], found["source"], found["origin"]) == (path, "explicit", path)
    host.write(str(CONFIG), "[image]\nkernle = 1\n")
    code, found = run_json(host, capsys, "check")
    assert (code, found["usable"], found["remedy"]) == (78, False, "correct the file")
    assert "image.kernle" in found["problem"]


def test_check_asks_nobody_and_takes_no_lock(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    """kdump may be at work for minutes; what it would load is no matter of our file."""
    FakeKdump(host)
    host.root.path(str(CONFIG)).unlink()
    with single_instance(host.root):
        code, found = run_json(host, capsys, "check")
    assert (code, found["file"], found["source"]) == (0, None, "auto")
    assert found["origin"] == "kdump-tools"
    host.root.path("/proc/kcore").unlink()
    assert run(host, "check") == 0
    assert "the defaults" in capsys.readouterr().out


# --- bad input: one line with the file, the value and the remedy; the image stays --------


def bad(
    host: FakeHost, capsys: pytest.CaptureFixture[str], command: str, code: int, *words: str
) -> None:
    """Run ``command`` and expect this exit code and one line with these words."""
    loaded, entry = host.kernel.loaded, host.kernel.entry
    calls = len(host.kernel.calls)
    assert run(host, command) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("kdumphpd: ")
    for word in words:
        assert word in line
    assert "; " in line, "the remedy comes behind the problem"
    assert (host.kernel.loaded, host.kernel.entry) == (loaded, entry)
    assert len(host.kernel.calls) == calls


@pytest.fixture
def armed(host: FakeHost) -> FakeHost:
    """With an image of ours loaded; only the entry point tells that it is still that one."""
    host.load()
    return host


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x7fELF" + bytes(9000), ("vmlinux", "vmlinuz file")),
        (bytes(9000), ("not a bzImage",)),
        (b"", ("is empty",)),
        (bzimage(SyntheticBzImage(xloadflags=0)), ("32-bit", "x86_64")),
        (bzimage()[:30000], ("truncated: 30000 bytes", "reinstall")),
        (bzimage(SyntheticBzImage(relocatable_kernel=0)), ("not relocatable", "CONFIG_RELOC")),
        (bzimage(SyntheticBzImage(xloadflags=1)), ("XLF_CAN_BE_LOADED_ABOVE_4G",)),
    ],
)
@pytest.mark.parametrize("command", ["load", "plan", "check"])
def test_a_kernel_that_cannot_be_used(
    armed: FakeHost,
    capsys: pytest.CaptureFixture[str],
    command: str,
    content: bytes,
    words: tuple[str, ...],
) -> None:
    path = armed.write(KERNEL, content)
    bad(armed, capsys, command, 65, str(path), *words)
    armed.assert_complete()


@pytest.mark.parametrize(("name", "key"), [(KERNEL, "kernel"), (INITRD, "initrd")])
@pytest.mark.parametrize("command", ["load", "check"])
def test_a_file_that_is_missing(
    armed: FakeHost, capsys: pytest.CaptureFixture[str], command: str, name: str, key: str
) -> None:
    armed.root.path(name).unlink()
    bad(armed, capsys, command, 66, str(armed.root.path(name)), "No such file", f"[image] {key}")


def test_an_initrd_that_is_empty(armed: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    armed.write(INITRD, b"")
    bad(armed, capsys, "load", 65, str(armed.root.path(INITRD)), "is empty", "rebuild it")


@pytest.mark.parametrize(("name", "key"), [(KERNEL, "kernel"), (INITRD, "initrd")])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_something_else_in_a_file_s_place(
    armed: FakeHost,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    name: str,
    key: str,
) -> None:
    path = armed.root.path(name)
    path.unlink()
    make(path)
    bad(armed, capsys, "load", 66, f"{key} {path} is not a regular file", f"[image] {key}")
    armed.assert_complete()


def test_a_command_line_that_is_too_long(
    armed: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    armed.configure(command_line="x" * 2048)
    bad(armed, capsys, "load", 65, "command line", "2047")


def test_a_command_line_with_an_elfcorehdr_of_its_own(
    armed: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    armed.configure(command_line="elfcorehdr=1M")
    bad(armed, capsys, "load", 65, "elfcorehdr=", "command_line")


def test_no_reservation(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    iomem = host.root.path("/proc/iomem")
    host.write("/proc/iomem", iomem.read_text().replace("Crash kernel", "Something"))
    host.write("/sys/kernel/kexec_crash_size", "0\n")
    bad(host, capsys, "load", 69, "no memory is reserved", "crashkernel=")
    bad(host, capsys, "plan", 69, "no memory is reserved", "crashkernel=")


def test_a_reservation_that_is_too_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = FakeHost(tmp_path, crashkernel=32 * MIB)
    bad(host, capsys, "load", 69, "is 32 MiB", "needs 54 MiB", "crashkernel=192M")
    # What it advises is enough.
    enough = FakeHost(tmp_path / "enough", crashkernel=192 * MIB)
    assert run(enough, "load") == 0


@pytest.mark.parametrize("command", ["load", "update", "plan"])
def test_iomem_that_shows_zeros(
    armed: FakeHost, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    armed.write("/proc/iomem", "00000000-00000000 : System RAM\n")
    bad(armed, capsys, command, 77, "/proc/iomem", "zeros", "CAP_SYS_ADMIN")


@pytest.mark.parametrize("command", ["load", "update", "plan"])
def test_kcore_that_is_not_there(
    armed: FakeHost, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    armed.root.path("/proc/kcore").unlink()
    bad(armed, capsys, command, 66, "/proc/kcore", "CONFIG_PROC_KCORE")


def test_kcore_that_gives_nothing(armed: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    armed.write("/proc/kcore", b"")
    assert run(armed, "load") == 69
    assert "/proc/kcore" in capsys.readouterr().err
    assert armed.kernel.loaded


@pytest.mark.parametrize("command", ["load", "update"])
def test_no_cap_sys_boot(armed: FakeHost, capsys: pytest.CaptureFixture[str], command: str) -> None:
    armed.kernel.permitted = False
    armed.kernel.hot_add_cpu(5)
    bad(armed, capsys, command, 77, "CAP_SYS_BOOT", "run kdumphpd as root", "still is")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[image]\nkernle = 1\n", ("image.kernle", "did you mean kernel")),
        ("[update]\nsettle_seconds = true\n", ("update.settle_seconds is true", "a number")),
        ("image = 3\n", ("image is 3", "a table")),
        ("[image\n", ("not TOML", "line")),
        ('[image]\nkernel = "/k"\n', ("kernel count", 'source = "explicit"')),
        ('[image]\nsource = "explicit"\nkernel = "/k"\n', ("initrd and command_line", "add")),
    ],
)
@pytest.mark.parametrize("command", ["load", "update", "plan", "run", "check"])
def test_a_configuration_that_cannot_be_used(
    armed: FakeHost,
    capsys: pytest.CaptureFixture[str],
    command: str,
    text: str,
    words: tuple[str, ...],
) -> None:
    armed.write(str(CONFIG), text)
    bad(armed, capsys, command, 78, str(armed.root.path(str(CONFIG))), *words)
    armed.assert_complete()


@pytest.mark.parametrize("command", ["load", "update", "plan", "run", "check"])
def test_a_host_whose_kdump_cannot_be_asked(
    armed: FakeHost, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    armed.write(str(CONFIG), "")
    bad(armed, capsys, command, 78, "none that kdumphpd can ask", "kdump-lib.sh", "[image]")
    armed.assert_complete()


def test_a_configuration_that_others_can_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the live host only: nothing is loaded from a recorded tree."""
    path = tmp_path / "kdumphpd.toml"
    path.write_text("")
    path.chmod(0o666)
    assert cli.main(["plan", "--config", str(path)]) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} is writable by others (mode 0666); chmod go-w {path}" in line


def test_a_configuration_is_named_from_where_the_user_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text("colour = 1\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", "--config", "mine.toml"]) == 78
    assert f"{tmp_path}/mine.toml: colour" in capsys.readouterr().err


def test_a_configuration_that_was_named_must_exist(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(host, "plan", "--config", "/etc/other.toml") == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert "other.toml does not exist; create it" in line


@pytest.mark.parametrize("command", ["load", "update", "run"])
def test_another_instance_is_running(
    armed: FakeHost, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with single_instance(armed.root):
        pid = armed.root.path(LOCK).read_text().strip()
        assert pid == str(os.getpid())
        bad(armed, capsys, command, 75, f"another kdumphpd is running (pid {pid})", "systemctl")


def test_audit_and_plan_need_no_lock(armed: FakeHost) -> None:
    with single_instance(armed.root):
        assert run(armed, "audit") == 0
        assert run(armed, "plan") == 0


def test_update_leaves_other_programs_decisions(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    bad(host, capsys, "update", 69, "no crash kernel is loaded", "kdumphpd load")
    host.kernel.foreign_load()
    bad(host, capsys, "update", 69, "not loaded by kdumphpd", "kdumphpd load")


@pytest.mark.parametrize("code", [errno.EPERM, errno.EBUSY, errno.ENOSYS])
def test_a_refusal_says_that_the_old_image_is_still_loaded(
    armed: FakeHost, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    armed.kernel.fail_next(code, before_free=True)
    assert run(armed, "load") == 71
    (line,) = capsys.readouterr().err.splitlines()
    assert errno.errorcode[code] in line
    assert line.endswith("the crash kernel that was loaded still is")
    armed.assert_complete()


def test_a_failure_that_disarms_says_so(
    armed: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    armed.kernel.fail_next(errno.ENOMEM, before_free=False)
    assert run(armed, "load") == 71
    assert capsys.readouterr().err.splitlines()[0].endswith("NOTHING is loaded")
