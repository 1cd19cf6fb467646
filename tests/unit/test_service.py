"""What the service does and says: start, bursts, faults, other programs, reload, audits."""

from __future__ import annotations

import errno

import pytest

from kdumphpd.errors import ConfigError, ExitCode, InputError, KdumphpdError
from kdumphpd.report.records import Kind, Priority
from kdumphpd.service import Service
from tests.unit.host_fixture import (
    CONFIG,
    DIMM,
    INITRD,
    KERNEL,
    OTHER_DIMM,
    FakeHost,
    change,
    uevents,
)

# --- start -----------------------------------------------------------------------------


def test_start_loads_where_nothing_is(host: FakeHost) -> None:
    service = host.service()
    service.start()
    assert host.records.kinds == [Kind.STARTED]
    assert host.records[0].details.backend == "full"
    assert host.records[0].details.armed is True
    assert service.status.startswith("complete: 2 CPUs")
    host.assert_complete()
    host.settle(service)
    assert host.records.kinds == [Kind.STARTED], "nothing more to say"
    assert len(host.kernel.calls) == 1


def test_start_adopts_the_configured_image(host: FakeHost) -> None:
    host.load()
    service = host.service()
    service.start()
    assert host.records.kinds == [Kind.ADOPTED, Kind.STARTED]
    assert len(host.kernel.calls) == 1


def test_start_adopts_a_stale_image_and_repairs_it_with_a_delta(host: FakeHost) -> None:
    host.load()
    host.kernel.hot_add_memory(DIMM)
    service = host.service()
    service.start()
    assert host.records.kinds == [Kind.ADOPTED, Kind.REPAIRED, Kind.STARTED]
    assert host.records[1].details.backend == "delta"
    host.assert_complete()


def test_start_says_it_if_a_stale_image_cannot_be_repaired_yet(host: FakeHost) -> None:
    host.load()
    host.kernel.hot_add_memory(DIMM)
    host.kernel.fail_next(errno.EPERM, before_free=True, times=2)
    service = host.service()
    service.start()
    assert "complete" not in service.status
    assert host.records.of(Kind.FALLBACK)[0].priority is Priority.CRIT
    host.settle(service)
    host.assert_complete()
    assert service.status.startswith("complete")


@pytest.mark.parametrize("changed", ["kernel", "parameter block", "file"])
def test_start_replaces_what_is_not_the_configured_image(host: FakeHost, changed: str) -> None:
    host.load()
    if changed == "kernel":
        host.flip(host.live_block().regions[1].start)
    elif changed == "parameter block":
        host.flip(host.kernel.reservation.end)
    else:
        host.write(INITRD, b"rebuilt" * 1000)
    service = host.service()
    service.start()
    assert host.records.kinds == [Kind.STARTED]
    assert len(host.kernel.calls) == 2
    host.assert_complete()


def test_start_replaces_a_foreign_image_and_says_so(host: FakeHost) -> None:
    host.kernel.foreign_load()
    host.service().start()
    assert host.records.kinds == [Kind.FOREIGN, Kind.STARTED]
    host.assert_complete()


def test_start_without_a_usable_kernel_leaves_the_loaded_image(host: FakeHost) -> None:
    host.load()
    host.root.path(KERNEL).unlink()
    service = host.service()
    with pytest.raises(InputError, match="vmlinuz"):
        service.start()
    assert host.kernel.loaded
    host.assert_complete()


def test_start_that_leaves_nothing_loaded_is_critical(host: FakeHost) -> None:
    host.kernel.foreign_load()
    host.kernel.fail_next(errno.ENOMEM, before_free=False)
    service = host.service()
    with pytest.raises(KdumphpdError, match="NOTHING is loaded") as caught:
        service.start()
    assert caught.value.exit_code is ExitCode.LOAD_FAILED
    (record,) = host.records.of(Kind.DISARMED)
    assert record.priority is Priority.CRIT
    assert record.details.armed is False


def test_a_configuration_that_cannot_be_used_stops_it_at_once(host: FakeHost) -> None:
    host.configure(more="[update]\nsettle = 3\n")
    with pytest.raises(ConfigError, match="settle_seconds"):
        host.service()


# --- bursts ----------------------------------------------------------------------------


def test_a_burst_makes_one_update_at_its_first_uevent(host: FakeHost, service: Service) -> None:
    change(host, service)
    service.turn()
    host.assert_complete()
    for _ in range(15):
        host.clock.advance(0.2)
        service.uevents(uevents(16))
        service.turn()
    host.settle(service)
    assert [call.names for call in host.kernel.calls] == [("elfcorehdr",)]
    assert host.records.kinds == [Kind.UPDATED, Kind.AUDITED]
    updated, audited = host.records
    assert updated.details.change == f"memory {DIMM}, 2 GiB, 16 blocks added"
    assert updated.details.backend == "delta"
    assert updated.details.latency_usec == 0, "no time passed on this clock"
    assert updated.details.generation == 2
    assert audited.message == "1 update for 256 uevents; complete"
    assert audited.details.verdict == "complete"


def test_every_burst_with_an_update_has_its_verdict_even_if_it_is_the_same(
    host: FakeHost, service: Service
) -> None:
    for _ in range(2):
        change(host, service)
        host.settle(service)
        host.kernel.hot_remove_memory(DIMM)
        service.uevents(uevents(16))
        host.settle(service)
    assert host.records.kinds == [Kind.UPDATED, Kind.AUDITED] * 4
    assert {one.message for one in host.records if one.kind is Kind.AUDITED} == {
        "1 update for 16 uevents; complete"
    }


def test_a_remove_uevent_before_iomem_changes_is_followed_up(
    host: FakeHost, service: Service
) -> None:
    change(host, service)
    host.settle(service)
    host.records.clear()
    service.uevents(uevents(16))  # "remove" comes first
    service.turn()
    assert not host.records
    host.kernel.hot_remove_memory(DIMM)
    host.settle(service)
    assert host.records.kinds[0] is Kind.UPDATED
    host.assert_complete()


def test_uevents_that_change_nothing_are_one_record(host: FakeHost, service: Service) -> None:
    service.uevents(uevents(3))
    host.settle(service)
    assert host.records.kinds == [Kind.UNCHANGED]
    assert host.records[0].message == "3 uevents changed nothing that a vmcore needs"
    assert not host.kernel.calls


def test_lost_uevents_are_a_reason_to_look(host: FakeHost, service: Service) -> None:
    host.kernel.hot_add_cpu(4)
    service.uevents(uevents(0, lost=True))
    service.turn()
    assert host.records.kinds == [Kind.UPDATED]
    host.assert_complete()


def test_a_cpu_whose_notes_come_late_is_in_the_header_in_the_end(
    host: FakeHost, service: Service
) -> None:
    host.kernel.hot_add_cpu(4, registered=False)
    service.uevents(uevents())
    service.turn()
    host.kernel.register_cpu(4)
    host.settle(service)
    host.assert_complete()


def test_updates_are_spaced_by_the_time_that_the_last_one_took(
    host: FakeHost, service: Service
) -> None:
    change(host, service)
    service.turn()
    usec = host.records[0].details.unarmed_usec
    assert usec
    updated_at = host.clock.now
    host.kernel.hot_add_memory(OTHER_DIMM)
    service.uevents(uevents())
    while len(host.kernel.calls) == 1:
        host.clock.now = max(host.clock.now, service.deadline)
        service.turn()
    assert host.clock.now - updated_at >= 100 * usec
    host.settle(service)
    host.assert_complete()


def test_an_update_that_waits_shows_in_the_status(host: FakeHost, service: Service) -> None:
    host.configure(more="[update]\nmax_disarmed_percent = 0.01\n")
    service.reload()
    host.settle(service)
    change(host, service)
    service.turn()
    host.kernel.hot_add_memory(OTHER_DIMM)
    service.uevents(uevents())
    host.clock.now = service.deadline
    service.turn()
    assert service.status.startswith("stale: ")
    host.settle(service)
    assert service.status.startswith("complete")


def test_a_load_for_a_cpu_without_notes_is_not_called_complete(
    host: FakeHost, service: Service
) -> None:
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_add_cpu(3, registered=False)
    service.uevents(uevents())
    service.turn()
    assert [one.details.verdict for one in host.records.of(Kind.UPDATED)] == ["stale"]
    host.kernel.register_cpu(3)
    service.uevents(uevents())
    host.settle(service)
    assert [one.details.verdict for one in host.records.of(Kind.UPDATED)] == ["stale", "complete"]
    host.assert_complete()


# --- the periodic audit ----------------------------------------------------------------


@pytest.mark.parametrize("part", ["static", "parameter block"])
def test_the_audit_repairs_a_damaged_image_with_a_full_load(
    host: FakeHost, service: Service, part: str
) -> None:
    end = host.kernel.reservation.end
    host.flip(host.live_block().regions[0].start if part == "static" else end - 0xF00)
    host.clock.now = service.deadline
    host.settle(service)
    assert host.records.kinds[:2] == [Kind.AUDITED, Kind.REPAIRED]
    assert host.records[0].details.verdict == "damaged"
    assert host.records[0].priority is Priority.WARNING
    assert [len(call.places) for call in host.kernel.calls] == [5]
    host.assert_complete()
    assert host.audit().verified is True


def test_a_look_repairs_an_image_that_cannot_say_what_it_is(
    host: FakeHost, service: Service
) -> None:
    host.flip(host.kernel.reservation.end - 0xFFF)
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents())
    host.settle(service)
    (record,) = host.records.of(Kind.REPAIRED)
    assert (record.details.backend, record.details.armed) == ("full", True)
    host.assert_complete()


def test_a_repair_that_fails_is_tried_again_before_the_next_audit(
    host: FakeHost, service: Service
) -> None:
    host.flip(host.live_block().regions[0].start)
    host.kernel.fail_next(errno.EPERM, before_free=True, times=3)
    host.clock.now = service.deadline
    begun = host.clock.now
    host.settle(service)
    assert host.clock.now - begun < 600e6
    assert host.audit().verified is True
    (fallback,) = host.records.of(Kind.FALLBACK)
    assert fallback.details.verdict == "damaged"


def test_the_audit_repairs_a_stale_header(host: FakeHost, service: Service) -> None:
    host.kernel.hot_add_memory(DIMM)  # and no uevent comes
    host.clock.now = service.deadline
    host.settle(service)
    assert host.records.kinds[:2] == [Kind.AUDITED, Kind.REPAIRED]
    assert host.records[1].details.backend == "delta"
    host.assert_complete()


def test_an_image_that_goes_away_after_the_audit_is_not_repaired(
    host: FakeHost, service: Service
) -> None:
    host.kernel.hot_add_memory(DIMM)
    host.clock.now = service.deadline
    service.turn()
    host.kernel.foreign_load()
    host.settle(service)
    assert not host.kernel.calls
    assert host.records.of(Kind.FOREIGN)


def test_the_audit_notices_what_another_program_did_without_uevents(
    host: FakeHost, service: Service
) -> None:
    host.kernel.foreign_load()  # complete, and no uevent comes
    host.clock.now = service.deadline
    host.settle(service)
    assert len(host.records.of(Kind.FOREIGN)) == 1
    host.kernel.unload()
    host.clock.now = service.deadline
    host.settle(service)
    assert len(host.records.of(Kind.DISARMED)) == 1
    host.clock.now = service.deadline
    host.settle(service)
    assert len(host.records.of(Kind.FOREIGN, Kind.DISARMED)) == 2, "each is said once"
    assert not host.kernel.calls


def test_audits_that_find_the_same_are_said_once(host: FakeHost, service: Service) -> None:
    for _ in range(3):
        host.clock.now = service.deadline
        service.turn()
    assert host.records.kinds == [Kind.AUDITED]
    assert not host.kernel.calls


# --- signals ---------------------------------------------------------------------------


def test_reload_of_the_same_configuration_loads_nothing(host: FakeHost, service: Service) -> None:
    service.reload()
    assert host.records.kinds == [Kind.ADOPTED]
    assert not host.kernel.calls


def test_reload_of_another_image_loads_it(host: FakeHost, service: Service) -> None:
    host.configure(command_line="root=/dev/vda9 nr_cpus=1")
    service.reload()
    assert host.records.kinds == [Kind.UPDATED]
    assert "root=/dev/vda9" in host.command_line()
    host.assert_complete()


@pytest.mark.parametrize("broken", ["config", "kernel"])
def test_reload_of_a_broken_configuration_keeps_the_old_one(
    host: FakeHost, service: Service, broken: str
) -> None:
    if broken == "config":
        host.write(str(CONFIG), "[image]\nsauce = 3\n")
    else:
        host.write(KERNEL, b"no kernel")
    service.reload()
    (record,) = host.records
    assert (record.kind, record.priority) == (Kind.STATUS, Priority.ERR)
    assert "the old configuration stays" in record.message
    change(host, service)
    host.settle(service)
    assert service.status == f"complete; {record.message}", "for as long as it is so"
    assert [call.names for call in host.kernel.calls] == [("elfcorehdr",)]
    host.assert_complete()


def test_a_mended_configuration_leaves_nothing_in_the_status(
    host: FakeHost, service: Service
) -> None:
    host.write(str(CONFIG), "[image]\nsauce = 3\n")
    service.reload()
    assert "image.sauce" in service.status
    host.configure()
    service.reload()
    assert "configuration" not in service.status


def test_reload_that_the_kernel_refuses_is_tried_again(host: FakeHost, service: Service) -> None:
    host.configure(command_line="root=/dev/vda9 nr_cpus=1")
    host.kernel.fail_next(errno.EPERM, before_free=True, times=3)
    service.reload()
    (record,) = host.records
    assert record.details.armed is True
    host.settle(service)
    assert "root=/dev/vda9" in host.command_line()
    host.assert_complete()


def test_status_and_stop(host: FakeHost, service: Service) -> None:
    service.report_status()
    service.stop()
    assert host.records.kinds == [Kind.STATUS, Kind.STOPPED]
    assert host.records[0].details.verdict == "complete"
    assert host.records[0].details.cpus == 2
    assert host.kernel.loaded
