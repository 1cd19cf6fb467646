"""source = "auto": the service follows what the host's kdump loads, and nobody else."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence

import pytest

from kdumphpd import cli
from kdumphpd.distribution.unit_state import UnitState
from kdumphpd.distribution.watch import Changed
from kdumphpd.errors import KdumphpdError
from kdumphpd.load.segments import Segment
from kdumphpd.report.records import Kind, Priority
from kdumphpd.service import Service
from tests.unit.fake_kdump import LOST, FakeKdump, hint, is_ours, loads
from tests.unit.host_fixture import COMMAND_LINE, DIMM, INITRD, FakeHost, uevents


@pytest.fixture
def service(kdump: FakeKdump) -> Service:
    """Has adopted kdump's image and is at rest."""
    return kdump.adopted()


# --- start -----------------------------------------------------------------------------


def test_start_takes_over_the_image_that_kdump_loaded(host: FakeHost, kdump: FakeKdump) -> None:
    kdump.load()
    service = host.service()
    service.start()
    assert host.records.kinds == [Kind.STARTED]
    assert host.records[0].details.backend == "full"
    host.assert_complete()
    assert host.command_line().startswith(COMMAND_LINE)
    assert host.rules.ours
    assert {str(path.relative_to(host.root.directory)) for path in host.hints.watched} == {
        "var/crash/kexec_cmd",
        "var/crash/kdump_lock",
        "boot/vmlinuz",
        "boot/initrd",
    }


def test_what_changes_before_the_hotplug_rules_are_ours_is_seen(
    host: FakeHost, kdump: FakeKdump
) -> None:
    """The distribution's rule may not have answered it any more."""
    kdump.load()

    class Late(type(host.rules)):  # type: ignore[misc]
        def take_over(self) -> str:
            host.kernel.hot_add_memory(DIMM)
            return str(super().take_over())

    host.rules = Late()
    service = host.service()
    service.start()
    host.settle(service)
    host.assert_complete()


@pytest.mark.parametrize("asked", [True, False])
def test_start_stays_out_while_kdump_is_stopped(
    host: FakeHost, kdump: FakeKdump, asked: bool
) -> None:
    if asked:
        kdump.ask_for()
    service = host.service()
    service.start()
    host.settle(service)
    assert host.records.kinds == [Kind.DISARMED, Kind.STARTED]
    assert "kdump is stopped" in host.records[0].message
    assert "kdump-config reload" in host.records[0].message
    assert not host.kernel.loaded
    assert not host.rules.ours, "there is nothing that we keep"

    hint(host, service, kdump.load())
    host.settle(service)
    assert host.records.kinds[2:] == [Kind.ADOPTED]
    assert host.rules.ours
    host.assert_complete()


def test_a_restarted_service_keeps_its_image(host: FakeHost, service: Service) -> None:
    service.stop()
    host.kernel.hot_add_memory(DIMM)
    again = host.service()
    again.start()
    assert host.records.kinds == [Kind.STOPPED, Kind.ADOPTED, Kind.REPAIRED, Kind.STARTED]
    assert loads(host) == [("elfcorehdr",)]
    host.assert_complete()


def test_start_leaves_an_administrators_image_alone(host: FakeHost, kdump: FakeKdump) -> None:
    kdump.ask_for()
    kdump.by_hand("init=/bin/sh")
    service = host.service()
    service.start()
    host.pass_time(service, 8000)
    assert not is_ours(host)
    assert loads(host) == []
    (foreign,) = host.records.of(Kind.FOREIGN)
    assert "neither ours nor what kdump would load" in foreign.message
    hint(host, service, kdump.load())
    host.settle(service)
    host.assert_complete()


@pytest.mark.parametrize(
    ("unit", "ours"),
    [(UnitState.ACTIVE, True), (UnitState.STOPPED, False), (UnitState.UNKNOWN, False)],
)
def test_start_asks_for_kdumps_service_where_the_kernel_says_nothing(
    host: FakeHost, kdump: FakeKdump, unit: UnitState, ours: bool
) -> None:
    kdump.load()
    host.root.path("/proc/kallsyms").unlink()
    host.unit = unit
    host.service().start()
    assert is_ours(host) == ours
    assert host.asked_units == ["kdump-tools.service"]


def test_start_that_cannot_load_leaves_it_to_the_distribution(
    host: FakeHost, kdump: FakeKdump
) -> None:
    kdump.load()
    host.kernel.fail_next(errno.EPERM, before_free=True, times=3)
    with pytest.raises(KdumphpdError, match="still is"):
        host.service().start()
    assert host.kernel.loaded


def test_start_whose_load_leaves_nothing_goes_on_until_it_is_armed(
    host: FakeHost, kdump: FakeKdump
) -> None:
    kdump.load()
    host.unit = UnitState.ACTIVE
    host.kernel.fail_next(errno.ENOMEM, before_free=False, times=3)
    service = host.service()
    service.start()
    assert host.records.of(Kind.DISARMED)[0].priority is Priority.CRIT
    host.settle(service)
    host.assert_complete()


@pytest.mark.parametrize("encrypted", [False, True])
def test_plan_says_where_each_value_comes_from(
    host: FakeHost, kdump: FakeKdump, capsys: pytest.CaptureFixture[str], encrypted: bool
) -> None:
    kdump.ask_for()
    if encrypted:
        host.root.path("/sys/kernel/config/crash_dm_crypt_keys/luks-1").mkdir(parents=True)
    assert cli.main(["plan", "--json"], host.root, host.kernel) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["origin"] == "kdump-tools"
    assert set(plan["origins"]) == {"kernel", "initrd", "command_line", "kexec_arguments"}
    assert str(kdump.command_path) in plan["origins"]["command_line"]
    assert bool(plan["needs_file_load"]) == encrypted
    assert cli.main(["plan"], host.root, host.kernel) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(
        f"{name.replace('_', ' ')}: {origin}" in shown for name, origin in plan["origins"].items()
    )
    assert ("LUKS luks-1" in shown) == encrypted


# --- what kdump does -------------------------------------------------------------------


def test_hotplug_is_answered_by_a_delta(host: FakeHost, service: Service) -> None:
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(16))
    service.turn()
    assert loads(host) == [("elfcorehdr",)]
    host.assert_complete()
    assert host.asked_units == []


def test_kdump_loads_again(host: FakeHost, kdump: FakeKdump, service: Service) -> None:
    host.kernel.hot_add_memory(DIMM)
    hint(host, service, kdump.load("root=/dev/vdb nr_cpus=1"))
    host.settle(service)
    assert host.records[0].kind is Kind.ADOPTED
    assert host.records[0].message.startswith("kdump loaded its image; full load")
    assert "root=/dev/vdb" in host.command_line()
    host.assert_complete()


def test_kdump_stops_and_it_stays_stopped(
    host: FakeHost, kdump: FakeKdump, service: Service
) -> None:
    kdump.unload()
    service.uevents(uevents())
    host.settle(service)
    host.pass_time(service, 20_000)
    assert not host.kernel.loaded
    assert [one.kind for one in host.records if one.kind is not Kind.AUDITED] == [Kind.DISARMED]
    assert loads(host) == []


def test_kdump_stops_and_starts_again(host: FakeHost, kdump: FakeKdump, service: Service) -> None:
    kdump.unload()
    hint(host, service, LOST)
    host.settle(service)
    assert service.status.startswith("nothing is loaded: kdump is stopped")
    hint(host, service, kdump.load())
    host.settle(service)
    host.assert_complete()


def test_a_rebuilt_initrd_is_loaded_once_it_has_settled(host: FakeHost, service: Service) -> None:
    path = host.write(INITRD, b"rebuilt " * 1000)
    changed = Changed(frozenset({path}), lost=False)
    for _ in range(3):
        hint(host, service, changed)
        service.turn()
    assert loads(host) == []
    host.settle(service)
    assert len(loads(host)) == 1
    assert host.records[0].kind is Kind.ADOPTED
    assert host.records[0].message.startswith("what is to be loaded has changed")
    host.assert_complete()


def test_a_touched_initrd_is_not_loaded(host: FakeHost, service: Service) -> None:
    path = host.root.path(INITRD)
    host.write(INITRD, path.read_bytes())
    hint(host, service, Changed(frozenset({path}), lost=False))
    host.settle(service)
    assert loads(host) == []


@pytest.mark.parametrize("command_line", [COMMAND_LINE, "init=/bin/sh"])
def test_an_image_loaded_by_hand_is_left_alone(
    host: FakeHost, kdump: FakeKdump, service: Service, command_line: str
) -> None:
    kdump.by_hand(command_line)
    host.kernel.hot_add_memory(DIMM)
    for _ in range(5):
        service.uevents(uevents(16))
        host.settle(service)
    host.pass_time(service, 20_000)
    assert loads(host) == []
    assert len(host.records.of(Kind.FOREIGN)) == 1


def test_a_load_waits_after_the_last_one(
    host: FakeHost, kdump: FakeKdump, service: Service
) -> None:
    """Kdump's own image protects meanwhile: at most 1 % of the time without any."""
    took = 200_000

    def slow(entry: int, segments: Sequence[Segment], flags: int) -> int:
        load(entry, segments, flags)
        return took

    load = host.kernel.kexec_load
    host.kernel.kexec_load = slow  # type: ignore[method-assign]
    hint(host, service, kdump.load("root=/dev/vda2 nr_cpus=1"))
    service.turn()
    host.assert_complete()
    began = host.clock.now
    hint(host, service, kdump.load("root=/dev/vda3 nr_cpus=1"))
    service.turn()
    assert not is_ours(host)
    while not is_ours(host):
        host.clock.now = max(host.clock.now, service.deadline)
        service.turn()
    assert host.clock.now - began >= 100 * took
    assert "root=/dev/vda3" in host.command_line()
