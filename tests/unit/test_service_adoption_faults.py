"""source = "auto": what goes wrong between the service and the host's kdump, in any order."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kdumphpd.distribution.unit_state import UnitState
from kdumphpd.distribution.watch import Changed
from kdumphpd.report.records import Kind, Priority
from kdumphpd.service import Service
from tests.unit.fake_kdump import LOST, FakeKdump, hint, is_ours, loads
from tests.unit.fake_kernel import MIB
from tests.unit.host_fixture import COMMAND_LINE, DIMM, FakeHost, uevents


@pytest.fixture
def service(kdump: FakeKdump) -> Service:
    """Has adopted kdump's image and is at rest."""
    return kdump.adopted()


# --- what goes wrong -------------------------------------------------------------------


def test_a_kdump_that_cannot_say_is_one_record_and_deltas_go_on(
    host: FakeHost, kdump: FakeKdump, service: Service
) -> None:
    good = kdump.command_path.read_text()
    host.write("/var/crash/kexec_cmd", "kexec -p 'unfinished\n")
    hint(host, service, Changed(frozenset({kdump.command_path}), lost=False))
    host.pass_time(service, 1000)
    (status,) = host.records.of(Kind.STATUS)
    assert "what is loaded stays" in status.message
    assert str(kdump.command_path) in status.message
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(16))
    host.pass_time(service, 60)
    host.assert_complete()
    assert loads(host) == [("elfcorehdr",)]
    host.write("/var/crash/kexec_cmd", good)
    host.pass_time(service, 1000)
    assert loads(host) == [("elfcorehdr",)], "it is what was wanted all along"
    assert host.rules.ours


def test_where_nothing_can_be_done_the_distributions_rule_stays(
    host: FakeHost, kdump: FakeKdump
) -> None:
    kdump.load()
    host.write("/var/crash/kexec_cmd", "kexec -p 'unfinished\n")
    service = host.service()
    service.start()
    assert not host.rules.ours
    host.pass_time(service, 1000)
    assert not host.rules.ours
    assert "take over" not in host.rules.calls
    assert len(host.records.of(Kind.STATUS)) == 1
    kdump.ask_for()
    host.pass_time(service, 1000)
    assert host.rules.ours
    host.assert_complete()


def test_a_rule_that_cannot_be_shadowed_is_one_record(host: FakeHost, kdump: FakeKdump) -> None:
    kdump.load()
    host.rules.problem = "/run/udev/rules.d: Read-only file system"
    service = host.service()
    service.start()
    hint(host, service, LOST)
    host.settle(service)
    (status,) = host.records.of(Kind.STATUS)
    assert status.priority is Priority.WARNING
    assert "Read-only file system" in status.message
    host.assert_complete()


def test_an_update_waits_for_kdumps_lock(
    host: FakeHost, kdump: FakeKdump, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdumphpd.service.LOCK_SECONDS", 0.0)
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(16))
    with kdump.busy():
        host.pass_time(service, 60)
        assert loads(host) == []
        assert "kdump_lock" in service.status
        assert host.records.kinds == []
        host.pass_time(service, 600)
        assert host.records.kinds == [Kind.STATUS], "held for ever is worth one record"
    host.settle(service)
    assert loads(host) == [("elfcorehdr",)]
    host.assert_complete()


def test_kdump_at_work_is_waited_for(
    host: FakeHost, kdump: FakeKdump, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdumphpd.adopter.LOCK_SECONDS", 0.0)
    with kdump.busy():
        kdump.unload()
        service.uevents(uevents())
        host.pass_time(service, 30)
        changed = kdump.load()
        host.pass_time(service, 30)
        assert set(host.records.kinds) <= {Kind.AUDITED}, "half-way through nothing is decided"
        host.pass_time(service, 300)
        (status,) = host.records.of(Kind.STATUS)
        assert "has been held by" in status.message
    hint(host, service, changed)
    host.settle(service)
    assert loads(host)
    host.assert_complete()


def test_what_changes_during_a_load_is_looked_at_again(
    host: FakeHost, kdump: FakeKdump, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint(host, service, kdump.load("root=/dev/vdy nr_cpus=1"))
    load = host.kernel.kexec_load

    def overtaken(*arguments: Any) -> int:
        host.hints.say(kdump.ask_for("root=/dev/vdz nr_cpus=1"))
        return load(*arguments)

    monkeypatch.setattr(host.kernel, "kexec_load", overtaken)
    service.turn()
    monkeypatch.undo()
    assert "root=/dev/vdy" in host.command_line()
    service.files_changed()
    host.settle(service)
    assert "root=/dev/vdz" in host.command_line()
    host.assert_complete()


def test_who_lets_go_of_the_lock_has_acted(
    host: FakeHost, kdump: FakeKdump, service: Service
) -> None:
    """Its end may be told while a look waits for the lock: that is no image by hand."""
    kdump.by_hand(COMMAND_LINE)
    service.uevents(uevents())
    service.turn()
    host.hints.say(kdump.ask_for(COMMAND_LINE))  # not passed on yet
    host.settle(service)
    host.assert_complete()
    assert not host.records.of(Kind.FOREIGN)


@pytest.mark.parametrize("unit", [UnitState.ACTIVE, UnitState.STOPPED])
def test_an_image_that_we_lost_comes_back_unless_kdump_was_stopped(
    host: FakeHost, kdump: FakeKdump, service: Service, unit: UnitState
) -> None:
    host.unit = unit
    host.kernel.fail_next(errno.ENOMEM, before_free=False, times=1000)
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(16))
    service.turn()
    assert host.records.of(Kind.DISARMED)
    hint(host, service, LOST)
    service.turn()
    host.kernel.fail_next(0, before_free=True, times=0)
    host.kernel._failures.clear()
    host.settle(service)
    assert host.kernel.loaded == (unit is UnitState.ACTIVE)
    assert set(host.asked_units) == {"kdump-tools.service"}


def test_reload_asks_as_a_start_does(host: FakeHost, kdump: FakeKdump, service: Service) -> None:
    kdump.by_hand(COMMAND_LINE)
    service.uevents(uevents())
    host.settle(service)
    assert not is_ours(host)
    service.reload()
    host.assert_complete()
    assert host.records.kinds[-1] is Kind.UPDATED


# --- any order of it -------------------------------------------------------------------


class Administered(RuleBasedStateMachine):
    """kdump, an administrator and hotplug in any order: the last decision stands."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.host = FakeHost(Path(self.directory.name), crashkernel=64 * MIB)
        self.kdump = FakeKdump(self.host)
        self.wanted = "nothing"
        self.cpus = 2
        self.service = self.host.service()
        self.service.start()

    def teardown(self) -> None:
        self.directory.cleanup()

    @rule(name=st.sampled_from(["root=/dev/a", "root=/dev/b"]))
    def kdump_loads(self, name: str) -> None:
        hint(self.host, self.service, self.kdump.load(name))
        self.wanted = name

    @rule()
    def kdump_stops(self) -> None:
        self.kdump.unload()
        self.wanted = "nothing"

    @rule(hinted=st.booleans())
    def administrator_loads(self, hinted: bool) -> None:
        self.kdump.by_hand("init=/bin/sh")
        if hinted:
            hint(self.host, self.service, LOST)
        self.wanted = "by hand"

    @rule(count=st.integers(0, 20))
    def hotplug(self, count: int) -> None:
        if self.cpus < 8:
            self.host.kernel.hot_add_cpu(self.cpus)
            self.cpus += 1
        if count:
            self.service.uevents(uevents(count))

    @rule(seconds=st.sampled_from([0.1, 1, 10]))
    def time_passes(self, seconds: float) -> None:
        self.host.pass_time(self.service, seconds)

    @rule(killed=st.booleans())
    def daemon_restarts(self, killed: bool) -> None:
        if not killed:
            self.service.stop()
        self.service = self.host.service()
        self.service.start()

    @precondition(lambda self: self.host.clock.now > 0)
    @rule()
    def settles(self) -> None:
        self.host.pass_time(self.service, 4000)
        self.check_settled()

    def check_settled(self) -> None:
        found = self.host.audit()
        # The distribution's rule is in force unless we keep what is loaded.
        assert self.host.rules.ours == (self.wanted not in ("nothing", "by hand"))
        if self.wanted == "nothing":
            assert not self.host.kernel.loaded
        elif self.wanted == "by hand":
            assert found.managed_by == "other"
        else:
            assert self.host.command_line().startswith(self.wanted)
            self.host.assert_complete()

    @invariant()
    def nobody_is_overruled(self) -> None:
        loaded = self.host.kernel.loaded
        assert loaded == (self.wanted != "nothing"), self.wanted
        if self.wanted == "by hand":
            assert self.host.audit().managed_by == "other"


TestAdministered = Administered.TestCase
TestAdministered.settings = settings(
    max_examples=30, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
