"""The systemd unit: its syntax, and what would break the daemon."""

from __future__ import annotations

import re
import shutil
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
    assert unit["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert unit["WatchdogSec"]
    assert unit["RuntimeDirectory"] == "kdumphpd"
    assert unit["RuntimeDirectoryPreserve"] == "restart"


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
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    if "Failed to initialize manager" in run.stderr:
        pytest.skip(run.stderr.strip())
    assert "kdumphpd.service" not in run.stderr
    assert run.returncode == 0, run.stderr
