"""source = "auto" beside RHEL's kdump: whose image it is, when it is asked, whose rule holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdumphpd.distribution.unit_state import UnitState
from kdumphpd.distribution.watch import Changed
from kdumphpd.report.records import Kind, Priority
from kdumphpd.service import Service
from tests.unit.fake_kdump import hint, is_ours, loads
from tests.unit.fake_kdump_utils import (
    EARLY_INITRD,
    LINE,
    LOCK,
    OTHER_KERNEL,
    FakeKdumpUtils,
)
from tests.unit.host_fixture import DIMM, INITRD, FakeHost, uevents


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path, crashkernel=64 << 20)


@pytest.fixture
def kdump(host: FakeHost) -> FakeKdumpUtils:
    return FakeKdumpUtils(host)


@pytest.fixture
def service(host: FakeHost, kdump: FakeKdumpUtils) -> Service:
    """Has taken over the image that kdump.service loaded; what led there is forgotten."""
    kdump.start(None)
    service = host.service()
    service.start()
    host.settle(service)
    host.assert_complete()
    assert host.rules.ours
    host.records.clear()
    host.kernel.calls.clear()
    kdump.count.unlink()
    return service


def test_s_in_kexec_args_is_told_once_where_it_is_not_followed(
    host: FakeHost, kdump: FakeKdumpUtils
) -> None:
    kdump.start(None)
    service = host.service()
    service.start()
    host.settle(service)
    kdump.kdumpctl(service, "restart")
    host.settle(service)
    (said,) = [one for one in host.records if "KEXEC_ARGS has -s" in one.message]
    assert said.priority is Priority.INFO
    assert 'syscall = "kexec_file_load"' in said.message


# --- whose image it is -----------------------------------------------------------------


@pytest.mark.parametrize("initrd", [INITRD, EARLY_INITRD])
@pytest.mark.parametrize("more", ["", " rd.debug"])
@pytest.mark.parametrize("unit", [UnitState.ACTIVE, UnitState.STOPPED])
def test_an_image_of_kdumps_kernel_is_kdumps_while_its_service_is_active(
    host: FakeHost, kdump: FakeKdumpUtils, initrd: str, more: str, unit: UnitState
) -> None:
    kdump.by_hand(LINE + more, initrd)
    host.unit = unit
    service = host.service()
    service.start()
    host.settle(service)
    same = initrd == INITRD and not more
    ours = same or unit is UnitState.ACTIVE
    assert is_ours(host) == host.rules.ours == ours
    assert len(host.records.of(Kind.FOREIGN)) == (not ours)
    if ours:
        assert host.command_line().startswith(LINE)
        assert "rd.debug" not in host.command_line()


def test_another_kernel_with_kdumps_initrd_and_command_line_is_foreign(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    kdump.by_hand(LINE, kernel_name=OTHER_KERNEL)
    service.uevents(uevents())
    kdump.kdumpctl(service, "status")
    host.settle(service)
    assert len(host.records.of(Kind.FOREIGN)) == 1
    assert not host.rules.ours
    assert not loads(host)


def test_the_image_of_kdumpctl_test_is_left_alone(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    kdump.kdumpctl(service, "test")
    host.settle(service)
    (foreign,) = host.records.of(Kind.FOREIGN)
    assert foreign.message.startswith("kdumpctl test loaded the image")
    assert not loads(host)
    assert not host.rules.ours
    kdump.kdumpctl(service, "restart")
    host.settle(service)
    host.assert_complete()
    assert host.rules.ours


def test_early_kdump_then_the_service(host: FakeHost, kdump: FakeKdumpUtils) -> None:
    """kdumpctl start takes the early image for its own: "already running"."""
    kdump.early()
    kdump.start(None)
    service = host.service()
    service.start()
    host.settle(service)
    assert is_ours(host)
    host.assert_complete()


def test_xtrace_does_not_leave_the_host_stale(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    kdump.kdumpctl(service, "restart", xtrace=True)
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(16))
    host.settle(service)
    host.assert_complete()
    assert host.rules.ours


def test_an_image_by_hand_is_left_to_the_distributions_rule(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    kdump.by_hand(f"{LINE} hand=1")
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(16))
    host.settle(service)
    assert not is_ours(host)
    assert not host.rules.ours
    kdump.kdumpctl(service, "status")
    host.settle(service)
    assert not is_ours(host), "that is not kdump's doing"
    kdump.kdumpctl(service, "reload")
    host.settle(service)
    host.assert_complete()
    assert host.rules.ours


def test_a_close_of_the_lock_alone_gives_no_image_by_hand_to_kdump(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    """Even if the command was over before it could be seen."""
    kdump.by_hand(f"{LINE} hand=1")
    service.uevents(uevents())
    host.settle(service)
    kdump.kdumpctl(service, "status", seen=False)
    host.settle(service)
    assert not is_ours(host)


# --- nothing loaded --------------------------------------------------------------------


def test_a_reload_that_failed_is_crit_and_mended(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    kdump.breaks = True
    kdump.kdumpctl(service, "reload")
    assert not host.kernel.loaded
    host.settle(service)
    disarmed, repaired = host.records.of(Kind.DISARMED, Kind.REPAIRED)
    assert disarmed.priority is Priority.CRIT
    assert "kdump's service is active" in disarmed.message
    assert repaired.details.backend == "full"
    host.assert_complete()
    assert host.rules.ours


def test_it_is_mended_with_what_was_loaded_where_kdump_cannot_say(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    kdump.breaks = True
    hint(host, service, kdump.damage_library())
    kdump.kdumpctl(service, "reload")
    host.settle(service)
    host.assert_complete()


@pytest.mark.parametrize("restarted", [False, True])
def test_kdumpctl_stop_stays_stopped_with_its_service_active(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service, restarted: bool
) -> None:
    kdump.kdumpctl(service, "stop")
    host.settle(service)
    if restarted:
        service.stop()
        service = host.service()
        service.start()
    host.pass_time(service, 20_000)
    assert host.unit is UnitState.ACTIVE
    assert not host.kernel.loaded
    assert not host.rules.ours
    disarmed = host.records.of(Kind.DISARMED)
    assert len(disarmed) == 1 + restarted
    assert all("kdump is stopped" in one.message for one in disarmed)
    kdump.kdumpctl(service, "start")
    host.settle(service)
    host.assert_complete()
    assert host.rules.ours


def test_a_start_with_the_service_active_and_nothing_loaded_loads(
    host: FakeHost, kdump: FakeKdumpUtils
) -> None:
    host.unit = UnitState.ACTIVE
    service = host.service()
    service.start()
    assert host.records.kinds[0] is Kind.DISARMED
    assert host.records[0].priority is Priority.CRIT
    host.assert_complete()
    assert host.rules.ours


def test_a_service_that_failed_is_crit_and_left_alone(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    kdump.stop(service)
    host.settle(service)
    kdump.breaks = True
    kdump.start(service)
    host.pass_time(service, 60)
    (failed,) = [one for one in host.records if one.priority is Priority.CRIT]
    assert "kdump's service failed; journalctl -u kdump.service says why" in failed.message
    assert not host.kernel.loaded


# --- how often it is asked -------------------------------------------------------------


def test_kdumpctl_status_asks_nothing(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    for _ in range(20):
        kdump.kdumpctl(service, "status")
        host.settle(service)
    assert kdump.questions == 0
    assert host.records == []


def test_one_question_for_each_change(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    hint(host, service, kdump.configure(f"{LINE} more=1"))
    host.settle(service)
    assert kdump.questions == 1
    kdump.kdumpctl(service, "restart")
    host.settle(service)
    assert kdump.questions == 1
    assert "more=1" in host.command_line()
    host.assert_complete()


def test_an_answer_that_no_file_shows_is_asked_for_again(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    """A watchdog's driver, loaded since, is on kdump's command line (prepare_cmdline)."""
    library = host.root.path("/lib/kdump/kdump-lib.sh")
    status = library.stat()
    text = library.read_text()
    library.write_text(text.replace('echo "$1 $3"', 'echo "$1 wd=0"'))
    os.utime(library, ns=(status.st_atime_ns, status.st_mtime_ns))
    kdump.line = f"{LINE} wd=0"
    kdump.kdumpctl(service, "restart")
    host.settle(service)
    assert "wd=0" in host.command_line()
    host.assert_complete()


def test_the_lock_is_watched_for_being_opened(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    assert host.hints.opening == {host.root.path(LOCK)}
    assert host.root.path("/etc/sysconfig/kdump") in host.hints.watched


# --- the duty to re-arm ----------------------------------------------------------------


def test_a_load_that_a_kill_cut_short_is_made_up_for(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    """Killed after the kernel freed the old image, and before anything was said."""

    class KilledError(BaseException):
        pass

    def killed(*_: object) -> int:
        host.kernel.unload()
        raise KilledError

    load = host.kernel.kexec_load
    host.kernel.kexec_load = killed  # type: ignore[method-assign]
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(16))
    with pytest.raises(KilledError):
        service.turn()
    host.kernel.kexec_load = load  # type: ignore[method-assign]
    # Not by kdump's service: the duty is our own.
    host.unit = UnitState.UNKNOWN
    again = host.service()
    again.start()
    host.settle(again)
    host.assert_complete()
    assert host.rules.ours


def test_what_was_stopped_meanwhile_is_no_duty(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    host.write("/run/kdumphpd/duty", "load\n")
    kdump.stop(None)
    again = host.service()
    again.start()
    host.pass_time(again, 5000)
    assert not host.kernel.loaded
    assert not host.root.path("/run/kdumphpd/duty").exists()


def test_lost_hints_count_as_kdumps(
    host: FakeHost, kdump: FakeKdumpUtils, service: Service
) -> None:
    kdump.kdumpctl(None, "restart")
    hint(host, service, Changed(frozenset(), lost=True))
    host.settle(service)
    host.assert_complete()
