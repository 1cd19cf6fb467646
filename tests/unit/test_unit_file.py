"""The systemd unit: its syntax, and what would break the daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

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
    assert prevented == set(ExitCode) - {ExitCode.OK, ExitCode.LOAD_FAILED, ExitCode.BUSY}
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
