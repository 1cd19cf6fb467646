"""source = "auto": the service follows what the host's kdump loads, and nobody else."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kdumphpd import cli
from kdumphpd.distribution.watch import Changed
from kdumphpd.errors import KdumphpdError
from kdumphpd.load.segments import Segment
from kdumphpd.report.records import Kind, Priority
from kdumphpd.service import Service
from tests.unit.fake_kdump import FakeKdump
from tests.unit.fake_kernel import MIB
from tests.unit.host_fixture import COMMAND_LINE, DIMM, INITRD, FakeHost, uevents

LOST = Changed(frozenset(), lost=True)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path, crashkernel=64 * MIB)


@pytest.fixture
def kdump(host: FakeHost) -> FakeKdump:
    return FakeKdump(host)


@pytest.fixture
def service(host: FakeHost, kdump: FakeKdump) -> Service:
    """Has adopted kdump's image and is at rest; its records so far are forgotten."""
    kdump.load()
    service = host.service()
    service.start()
    host.settle(service)
    host.assert_complete()
    host.records.clear()
    host.kernel.calls.clear()
    return service


def loads(host: FakeHost) -> list[tuple[str, ...]]:
    """Segments of each load that was ours."""
    return [call.names for call in host.kernel.calls]


def hint(host: FakeHost, service: Service, changed: Changed) -> None:
    """Files changed, and the daemon's loop passes that on."""
    host.hints.say(changed)
    service.files_changed()


def is_ours(host: FakeHost) -> bool:
    return host.audit().managed_by == "kdumphpd"


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


def test_start_has_the_hotplug_rules_before_it_looks(host: FakeHost, kdump: FakeKdump) -> None:
    kdump.load()

    class Late(type(host.rules)):  # type: ignore[misc]
        def take_over(self) -> str:
            host.kernel.hot_add_memory(DIMM)
            return str(super().take_over())

    host.rules = Late()
    host.service().start()
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
    assert host.rules.ours

    hint(host, service, kdump.load())
    host.settle(service)
    assert host.records.kinds[2:] == [Kind.ADOPTED]
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


@pytest.mark.parametrize(("running", "ours"), [(True, True), (False, False), (None, False)])
def test_start_asks_for_kdumps_service_where_the_kernel_says_nothing(
    host: FakeHost, kdump: FakeKdump, running: bool | None, ours: bool
) -> None:
    kdump.load()
    host.root.path("/proc/kallsyms").unlink()
    host.running = running
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
    host.running = True
    host.kernel.fail_next(errno.ENOMEM, before_free=False, times=3)
    service = host.service()
    service.start()
    assert host.records.of(Kind.DISARMED)[0].priority is Priority.CRIT
    host.settle(service)
    host.assert_complete()


@pytest.mark.parametrize("needs_file_load", [False, True])
def test_plan_says_where_each_value_comes_from(
    host: FakeHost, kdump: FakeKdump, capsys: pytest.CaptureFixture[str], needs_file_load: bool
) -> None:
    kdump.ask_for()
    if needs_file_load:
        host.root.path("/sys/kernel/config/crash_dm_crypt_keys/luks-1").mkdir(parents=True)
    assert cli.main(["plan", "--json"], host.root, host.kernel) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["origin"] == "kdump-tools"
    assert set(plan["origins"]) == {"kernel", "initrd", "command_line", "kexec_arguments"}
    assert str(kdump.command_path) in plan["origins"]["command_line"]
    assert bool(plan["needs_file_load"]) == needs_file_load
    assert cli.main(["plan"], host.root, host.kernel) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(
        f"{name.replace('_', ' ')}: {origin}" in shown for name, origin in plan["origins"].items()
    )
    assert ("LUKS luks-1" in shown) == needs_file_load


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


def test_what_changes_during_a_look_is_looked_at_again(
    host: FakeHost, kdump: FakeKdump, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint(host, service, kdump.load("root=/dev/vdy nr_cpus=1"))
    drain = host.hints.drain

    def overtaken() -> Changed:
        host.hints.say(kdump.ask_for("root=/dev/vdz nr_cpus=1"))
        return drain()

    monkeypatch.setattr(host.hints, "drain", overtaken)
    service.turn()
    monkeypatch.undo()
    assert "root=/dev/vdy" in host.command_line()
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


@pytest.mark.parametrize("running", [True, False])
def test_an_image_that_we_lost_comes_back_unless_kdump_was_stopped(
    host: FakeHost, kdump: FakeKdump, service: Service, running: bool
) -> None:
    host.running = running
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
    assert host.kernel.loaded == running
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
        # Before its first load kdump-tools cannot say what it would load.
        assert self.host.rules.ours or not self.kdump.command_path.exists()
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
