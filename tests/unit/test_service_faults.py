"""What the service does when loads fail, the kernel cannot be read, or others load images."""

from __future__ import annotations

import errno
from typing import NoReturn

import pytest

from kdumphpd.report.records import Kind, Priority
from kdumphpd.service import Service
from tests.unit.host_fixture import DIMM, FakeHost, change, uevents

# --- faults ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EFAULT, errno.EADDRNOTAVAIL])
def test_a_delta_that_fails_is_followed_by_a_full_load_at_once(
    host: FakeHost, service: Service, code: int
) -> None:
    host.kernel.fail_next(code, before_free=False)
    change(host, service)
    service.turn()
    assert host.records.kinds == [Kind.FALLBACK, Kind.UPDATED]
    assert errno.errorcode[code] in host.records[0].message
    assert host.records[1].details.backend == "full"
    host.assert_complete()


def test_disarmed_is_said_once_and_mended_as_soon_as_the_kernel_lets_it(
    host: FakeHost, service: Service
) -> None:
    host.kernel.fail_next(errno.ENOMEM, before_free=False, times=8)
    change(host, service)
    service.turn()
    (disarmed,) = host.records
    assert disarmed.kind is Kind.DISARMED
    assert disarmed.priority is Priority.CRIT
    assert disarmed.details.armed is False
    assert service.status.startswith("unloaded: ")
    begun = host.clock.now
    host.settle(service)
    # The first turn made two attempts; each of the other six came after a longer gap.
    assert [call.error for call in host.kernel.calls] == [errno.ENOMEM] * 8 + [0]
    assert host.clock.now - begun > 16e6
    # One DISARMED for "delta; full", one for "full" alone.
    assert host.records.kinds.count(Kind.DISARMED) <= 2
    (repaired,) = host.records.of(Kind.REPAIRED)
    assert repaired.message.startswith("armed again")
    assert service.status.startswith("complete")
    host.assert_complete()


def test_disarmed_is_retried_even_after_hours(host: FakeHost, service: Service) -> None:
    host.kernel.fail_next(errno.ENOMEM, before_free=False, times=40)
    change(host, service)
    for _ in range(60):
        host.clock.now = max(host.clock.now, service.deadline)
        service.turn()
    host.settle(service)
    host.assert_complete()


def test_a_refusal_keeps_the_old_image_and_is_retried(host: FakeHost, service: Service) -> None:
    host.kernel.fail_next(errno.EPERM, before_free=True, times=6)
    change(host, service)
    service.turn()
    (fallback,) = host.records
    assert (fallback.kind, fallback.priority) == (Kind.FALLBACK, Priority.CRIT)
    assert fallback.details.armed is True
    assert fallback.details.verdict == "stale"
    assert host.kernel.loaded
    assert service.status.startswith("stale: ")
    host.settle(service)
    assert host.records.kinds == [Kind.FALLBACK, Kind.UPDATED, Kind.AUDITED]
    host.assert_complete()


def test_a_stale_header_that_becomes_right_by_itself_ends_the_trouble(
    host: FakeHost, service: Service
) -> None:
    host.kernel.fail_next(errno.EPERM, before_free=True, times=2)
    change(host, service)
    service.turn()
    host.kernel.hot_remove_memory(DIMM)
    host.settle(service)
    assert service.status.startswith("complete")


def test_a_busy_kernel_is_no_news(host: FakeHost, service: Service) -> None:
    host.kernel.fail_next(errno.EBUSY, before_free=True)
    change(host, service)
    service.turn()
    assert not host.records
    host.settle(service)
    assert host.records.kinds == [Kind.UPDATED, Kind.AUDITED]


def test_a_busy_kernel_after_the_image_is_gone_is_news(host: FakeHost, service: Service) -> None:
    host.kernel.fail_next(errno.ENOMEM, before_free=False)
    host.kernel.fail_next(errno.EBUSY, before_free=True)
    change(host, service)
    service.turn()
    (disarmed,) = host.records
    assert (disarmed.kind, disarmed.priority) == (Kind.DISARMED, Priority.CRIT)
    host.settle(service)
    host.assert_complete()


def test_a_kernel_that_cannot_be_read_is_said_and_retried(host: FakeHost, service: Service) -> None:
    present = host.root.path("/sys/devices/system/cpu/present")
    text = present.read_text()
    present.write_text("garbage")
    change(host, service)
    service.turn()
    (record,) = host.records
    assert (record.kind, record.priority) == (Kind.FALLBACK, Priority.ERR)
    assert record.details.armed is None, "that is not known"
    present.write_text(text)
    host.settle(service)
    host.assert_complete()


# --- other programs --------------------------------------------------------------------


@pytest.mark.parametrize("style", ["kexec_load", "kexec_file_load"])
def test_a_foreign_image_is_left_alone_said_once_and_audited(
    host: FakeHost, service: Service, style: str
) -> None:
    host.kernel.foreign_load(style)
    for number in (4, 5):
        host.kernel.hot_add_cpu(number)
        service.uevents(uevents())
        host.settle(service)
    assert not host.kernel.calls
    (foreign,) = host.records.of(Kind.FOREIGN)
    assert foreign.priority is Priority.WARNING
    audits = host.records.of(Kind.AUDITED)
    assert [one.details.verdict for one in audits] == ["stale", "stale"]
    assert "lacks CPUs 4, 5" in audits[-1].message
    assert not host.records.of(Kind.UNCHANGED), "a stale header is not unchanged"


def test_an_image_that_was_unloaded_on_purpose_stays_unloaded(
    host: FakeHost, service: Service
) -> None:
    host.kernel.unload()
    change(host, service)
    host.settle(service)
    assert not host.kernel.calls
    (record,) = host.records.of(Kind.DISARMED)
    assert record.priority is Priority.WARNING
    assert record.details.armed is False
    assert "systemctl reload" in record.message
    service.reload()
    host.assert_complete()


def test_a_foreign_image_ends_our_own_wish_to_be_armed(host: FakeHost, service: Service) -> None:
    host.kernel.fail_next(errno.ENOMEM, before_free=False, times=2)
    change(host, service)
    service.turn()
    host.kernel.foreign_load()
    host.settle(service)
    host.kernel.unload()
    host.clock.now = service.deadline
    service.turn()
    service.uevents(uevents())
    host.settle(service)
    assert not host.kernel.loaded, "unloaded by somebody else, not by us"
    assert [call.error for call in host.kernel.calls] == [errno.ENOMEM] * 2


# --- what nobody thought of ------------------------------------------------------------


def test_an_error_of_our_own_is_crit_gives_the_rules_back_and_is_tried_again(
    host: FakeHost, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host.rules.ours

    def broken() -> NoReturn:
        raise OverflowError("a number nobody thought of")

    reader = service._charge.host.reader
    monkeypatch.setattr(reader, "resources", broken)
    times = []
    service.uevents(uevents())
    for _ in range(6):
        host.clock.now = max(host.clock.now, service.deadline)
        with pytest.raises(OverflowError) as caught:
            service.turn()
        service.unforeseen(caught.value)
        times.append(host.clock.now)
    (said,) = host.records
    assert said.priority is Priority.CRIT
    assert "OverflowError" in said.message
    assert "test_service_faults.py" in said.message
    assert not host.rules.ours
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    assert gaps == sorted(gaps)
    assert gaps[-1] > gaps[0] > 0

    monkeypatch.undo()
    host.kernel.hot_add_memory(DIMM)
    host.settle(service)
    host.assert_complete()
    assert host.rules.ours
