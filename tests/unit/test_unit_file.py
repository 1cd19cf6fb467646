"""The systemd unit: its syntax, and what would break the daemon."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from kdumphpd.distribution import udev_rules
from kdumphpd.errors import ExitCode

UNIT = Path(__file__).parents[2] / "systemd" / "kdumphpd.service"


def settings() -> dict[str, str]:
    """Keys and values; none of them is used twice."""
    pairs = re.findall(r"^([A-Za-z]+)=(.*)$", UNIT.read_text(), flags=re.MULTILINE)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_it_is_a_notify_service_with_a_watchdog() -> None:
    unit = settings()
    assert unit["Type"] == "notify"
    assert unit["ExecStart"] == "/usr/bin/kdumphpd run"
    assert unit["WatchdogSec"]
    assert unit["RuntimeDirectory"] == "kdumphpd"
    assert unit["RuntimeDirectoryPreserve"] == "restart"


@pytest.mark.parametrize("code", [0, 66, 78])
def test_a_reload_ends_as_the_check_and_signals_in_any_case(tmp_path: Path, code: int) -> None:
    """ExecReload= with a shell, as systemd would run it: the daemon says what it refuses."""
    command = re.search(r"^ExecReload=/bin/sh -c '(.*?)'$", UNIT.read_text(), re.M | re.S)
    assert command is not None
    check = tmp_path / "kdumphpd"
    check.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\necho usable\nexit {code}\n')
    check.chmod(0o755)
    script = command[1].replace("\\\n", " ").replace("$$", "$").replace("/usr/bin", str(tmp_path))
    # Whoever runs the tests may ignore it, and that is inherited.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    daemon = subprocess.Popen(["sleep", "60"])
    signal.signal(signal.SIGHUP, before)
    with daemon:
        environment = {**os.environ, "MAINPID": str(daemon.pid)}
        done = subprocess.run(
            ["sh", "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        assert daemon.wait() == -signal.SIGHUP
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert (tmp_path / "asked").read_text() == "check\n"
    gone = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, check=False)
    assert gone.returncode != 0, "there is nobody to signal"


def test_its_documentation_is_packaged() -> None:
    named = re.findall(r"man:([a-z.]+)\((\d)\)", settings()["Documentation"])
    pages = {path.name for path in (UNIT.parents[1] / "packaging/man").iterdir()}
    assert {f"{name}.{number}" for name, number in named} == pages


def test_it_restarts_only_where_that_can_help() -> None:
    unit = settings()
    assert unit["Restart"] == "on-failure"
    prevented = {int(code) for code in unit["RestartPreventExitStatus"].split()}
    may_pass = {ExitCode.SOFTWARE, ExitCode.LOAD_FAILED, ExitCode.IO_ERROR, ExitCode.BUSY}
    assert prevented == set(ExitCode) - may_pass - {ExitCode.OK, ExitCode.INTERRUPTED}
    assert int(unit["StartLimitBurst"]) > 0, "a restart may cost a full load"


def test_capabilities_are_those_that_are_needed() -> None:
    assert set(settings()["CapabilityBoundingSet"].split()) == {
        "CAP_SYS_BOOT",
        "CAP_SYS_ADMIN",
        "CAP_SYS_RAWIO",
        "CAP_IPC_LOCK",
        "CAP_SYS_NICE",
        "CAP_SYSLOG",
    }


@pytest.mark.parametrize(
    "setting",
    [
        "ProtectKernelTunables",  # hides /proc/kcore
        "ProcSubset",  # hides /proc/kcore and /proc/iomem
        "ProtectKernelModules",  # hides vmlinuz below /usr/lib/modules
        "PrivateDevices",  # takes CAP_SYS_RAWIO away
        "RestrictRealtime",  # forbids SCHED_FIFO for the load
        "ProtectKernelLogs",  # takes CAP_SYSLOG away
        "PrivateUsers",  # capabilities would not count
        "User",
    ],
)
def test_hardening_leaves_the_daemon_what_it_reads(setting: str) -> None:
    assert setting not in settings()


def test_kexec_is_allowed_and_reboot_is_not() -> None:
    allowed = settings()["SystemCallFilter"].split()
    assert {"kexec_load", "kexec_file_load"} <= set(allowed)
    assert "@reboot" not in allowed
    assert "reboot" not in allowed


def test_the_rules_are_given_back_however_it_ends(tmp_path: Path) -> None:
    """ExecStopPost= with a shell, as systemd would run it, on a directory of ours."""
    command = re.search(r"^ExecStopPost=-/bin/sh -c '(.*?)'$", UNIT.read_text(), re.M | re.S)
    assert command is not None
    script = command[1].replace("\\\n", " ").replace("$$", "$")
    assert set(udev_rules.RULES) == {f"{word}.rules" for word in re.findall(r"\d\d-[\w-]+", script)}
    rules = tmp_path / "rules.d"
    rules.mkdir()
    for name in udev_rules.RULES:
        (rules / name).write_text(udev_rules.shadow_text())
    saved = rules / (udev_rules.RULES[2] + udev_rules.SAVED_SUFFIX)
    saved.write_text("theirs")
    (rules / "10-other.rules").write_text("# kdumphpd has no part in this")
    script = script.replace(udev_rules.RUN_DIRECTORY, str(rules))
    for _ in range(2):
        subprocess.run(["sh", "-c", script.replace("udevadm", "true")], check=True)
        left = {path.name: path.read_text() for path in rules.iterdir()}
        assert left.keys() == {"10-other.rules", udev_rules.RULES[2]}
        assert left[udev_rules.RULES[2]] == "theirs"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_its_exposure_stays_low() -> None:
    run = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=40", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unrecognized option" in run.stderr:
        pytest.skip("systemd-analyze security reads no files before 250")
    assert run.returncode == 0, run.stdout


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_takes_it(tmp_path: Path) -> None:
    # The program need not be installed where the tests run, so another stands
    # in for it; everything else is verified as it is.
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/kdumphpd", "/bin/true"))
    run = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Failed to initialize manager" in run.stderr:
        pytest.skip(run.stderr.strip())
    assert "kdumphpd.service" not in run.stderr
    assert run.returncode == 0, run.stderr
