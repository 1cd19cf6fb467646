"""Every verdict but "complete" says why, and what to do: in text and in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kdumphpd import cli
from kdumphpd.audit.advice import StateOf, unknown_state
from kdumphpd.audit.audit import Audit, audit
from kdumphpd.audit.compare import Verdict
from kdumphpd.distribution.unit_state import UnitState
from kdumphpd.load import duty
from kdumphpd.machine.snapshot import MachineReader
from tests.unit.fake_kdump import FakeKdump
from tests.unit.host_fixture import DIMM, FakeHost


def look(host: FakeHost, state_of: StateOf = unknown_state) -> Audit:
    return audit(host.root, MachineReader(host.root), state_of=state_of)


def no_support(host: FakeHost) -> None:
    """CONFIG_KEXEC_CORE is what makes these files (kernel/ksysfs.c)."""
    for name in ("crash_loaded", "crash_size"):
        host.root.path(f"/sys/kernel/kexec_{name}").unlink()


def not_asked_for(host: FakeHost) -> None:
    host.write("/sys/kernel/kexec_crash_size", "0\n")
    host.write("/proc/cmdline", "root=/dev/vda1 ro\n")


def not_to_be_had(host: FakeHost) -> None:
    host.write("/sys/kernel/kexec_crash_size", "0\n")
    host.write("/proc/cmdline", "ro crashkernel=64G quiet\n")


UNLOADED: dict[str, tuple[Callable[[FakeHost], object], str, str]] = {
    "kernel": (no_support, "running kernel cannot load one", "CONFIG_CRASH_DUMP"),
    "asked": (not_asked_for, "no memory is reserved", "add crashkernel=256M"),
    "granted": (not_to_be_had, "crashkernel=64G on the kernel command line", "-g crashkernel"),
    "ours": (lambda host: duty.begin_load(host.root), "a load by kdumphpd failed", "restart kdump"),
    "no kdump": (lambda host: None, "no kdump that would load", "kdumphpd load"),
    "kdump": (FakeKdump, "kdump-tools.service has loaded none", "kdump-config reload"),
    "unreadable": (
        lambda host: host.write("/sys/kernel/kexec_crash_size", "some\n"),
        "why is not known: /sys/kernel/kexec_crash_size",
        "dmesg",
    ),
}


@pytest.mark.parametrize("case", UNLOADED)
def test_unloaded_says_why_and_what_to_do(host: FakeHost, case: str) -> None:
    prepare, why, do = UNLOADED[case]
    prepare(host)
    found = look(host)
    assert found.verdict is Verdict.UNLOADED
    assert found.reasons[0] == "no crash kernel is loaded"
    assert why in found.reasons[1]
    assert do in found.do[0]


@pytest.mark.parametrize(
    ("state", "why", "do"),
    [
        (UnitState.STOPPED, "is not started", "systemctl start kdump-tools.service"),
        (UnitState.FAILED, "has failed", "journalctl -b -u kdump-tools.service"),
        (UnitState.CHANGING, "starts or stops", "look again"),
        (UnitState.ACTIVE, "has loaded none, or somebody unloaded it", "kdump-config reload"),
    ],
)
def test_the_state_of_kdump_s_service_counts(
    host: FakeHost, state: UnitState, why: str, do: str
) -> None:
    FakeKdump(host)
    asked = []

    def state_of(unit: str) -> UnitState:
        asked.append(unit)
        return state

    found = look(host, state_of)
    assert asked == ["kdump-tools.service"]
    assert why in found.reasons[1]
    assert do in found.do[0]
    duty.note_stop(host.root)
    assert "was told to unload it" in look(host, state_of).reasons[1]


def stale(host: FakeHost) -> None:
    host.load()
    host.kernel.hot_add_memory(DIMM)


def damaged(host: FakeHost) -> None:
    host.load()
    host.flip(host.live_block().regions[0].start)


def torn(host: FakeHost) -> None:
    host.load()
    host.flip(host.kernel.reservation.end - 4095)


def unread(host: FakeHost) -> None:
    host.load()
    host.root.path("/proc/kcore").unlink()


def foreign_and_stale(host: FakeHost) -> None:
    host.kernel.foreign_load()
    host.kernel.hot_add_memory(DIMM)


def foreign_of_kdump(host: FakeHost) -> None:
    FakeKdump(host)
    foreign_and_stale(host)


def encrypted(host: FakeHost) -> None:
    host.kernel.encrypt()
    host.kernel.foreign_load()


@pytest.mark.parametrize(
    ("prepare", "verdict", "do"),
    [
        (stale, "stale", "kdumphpd update"),
        (damaged, "damaged", "systemctl restart kdumphpd"),
        (torn, "damaged", "systemctl restart kdumphpd"),
        (unread, "unknown", "CONFIG_PROC_KCORE"),
        (encrypted, "unknown", "a crash of this host"),
        (foreign_and_stale, "stale", "the program that loaded it"),
        (foreign_of_kdump, "stale", "kdump-config reload"),
    ],
)
def test_each_verdict_says_what_to_do_in_text_and_in_json(
    host: FakeHost,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[FakeHost], None],
    verdict: str,
    do: str,
) -> None:
    prepare(host)
    code = cli.main(["audit", "--json"], host.root, host.kernel)
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == verdict
    assert found["reasons"]
    assert all(isinstance(one, str) and one for one in found["do"])
    assert do in found["do"][0]
    assert cli.main(["audit"], host.root, host.kernel) == code
    shown = capsys.readouterr().out
    assert "\nbecause " in shown
    assert "\ndo " in shown
    assert do in " ".join(shown.split())


def test_a_complete_verdict_asks_for_nothing(host: FakeHost) -> None:
    host.load()
    assert look(host).do == ()


def test_the_daemon_asks_no_service_manager_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It audits between two pets of the watchdog; systemctl may take ten seconds."""
    host = FakeHost(tmp_path)
    FakeKdump(host)
    monkeypatch.setattr("kdumphpd.processes.run", lambda *_: pytest.fail("a process was started"))
    assert host.audit().verdict is Verdict.UNLOADED
