"""The service where not everything is permitted, and where the kernel updates the header too."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kdumphpd.errors import KdumphpdError
from kdumphpd.report.records import Kind, Priority
from kdumphpd.service import Service
from tests.unit.fake_kdump import FakeKdump
from tests.unit.fake_kexec import HOTPLUG_SUPPORT
from tests.unit.host_fixture import CONFIG, DIMM, OTHER_DIMM, uevents
from tests.unit.hotplug_host import HotplugHost


@pytest.fixture
def host(tmp_path: Path) -> HotplugHost:
    return HotplugHost(tmp_path)


def started(host: HotplugHost) -> Service:
    """At rest; what it recorded so far is forgotten."""
    service = host.service()
    service.start()
    host.settle(service)
    host.records.clear()
    host.kernel.calls.clear()
    host.kernel.file_calls.clear()
    return service


def without_kexec_load(host: HotplugHost) -> None:
    host.kernel.refuse("kexec_load", errno.ENOSYS)


# --- our own image, updated by the kernel ----------------------------------------------


def test_our_image_asks_for_the_kernels_updates_with_the_whole_reserve(host: HotplugHost) -> None:
    host.service().start()
    (call,) = host.kernel.calls
    (header,) = (one for one in call.places if one.name == "elfcorehdr")
    assert call.flags & HOTPLUG_SUPPORT
    assert header.memsz == host.live_block().elfcorehdr.size
    assert header.memsz >= int(host.root.read_text("/sys/kernel/crash_elfcorehdr_size")) + 64
    assert host.kernel.keeps
    host.assert_complete()


def test_it_is_said_once_that_the_kernel_updates(host: HotplugHost) -> None:
    service = host.service()
    service.start()
    host.settle(service)
    (said,) = host.records.of(Kind.FALLBACK)
    assert (said.details.backend, said.priority) == ("kernel", Priority.INFO)
    assert "crash_hotplug is 1" in said.message
    service.uevents(uevents())
    host.settle(service)
    assert len(host.records.of(Kind.FALLBACK)) == 1


def test_an_addition_is_the_kernels_and_audited(host: HotplugHost) -> None:
    service = started(host)
    service.uevents(uevents(16))
    service.turn()
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_add_cpu(4)
    host.settle(service)
    assert host.kernel.updated == ["memory added"]
    assert not host.kernel.calls
    (audited,) = host.records
    assert (audited.kind, audited.details.verdict) == (Kind.AUDITED, "complete")
    host.assert_described()


def test_what_the_kernel_is_about_to_write_is_left_to_it(host: HotplugHost) -> None:
    """The uevent of the first block comes before MEM_ONLINE, iomem shows the DIMM already."""
    service = started(host)
    host.kernel.drop_updates(1)
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents())
    service.turn()
    assert not host.kernel.calls
    assert service.status.startswith("stale: the kernel")
    host.kernel._update("block online")
    host.settle(service)
    assert not host.kernel.calls
    host.assert_described()


def test_the_removed_range_that_the_kernel_leaves_is_repaired(host: HotplugHost) -> None:
    service = started(host)
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(16))
    host.settle(service)
    host.records.clear()
    host.kernel.hot_remove_memory(DIMM)
    assert host.problem(exact=False), "stale without us"
    service.uevents(uevents(16))
    host.settle(service)
    assert [call.names for call in host.kernel.calls] == [("elfcorehdr",)]
    assert host.kernel.calls[0].flags & HOTPLUG_SUPPORT
    assert host.records.kinds == [Kind.UPDATED, Kind.AUDITED]
    host.assert_described()
    host.kernel.hot_add_memory(OTHER_DIMM)
    host.assert_described()
    assert host.kernel.updated[-1] == "memory added", "and it goes on updating ours"


def test_an_update_that_the_kernel_dropped_is_made_up_for(host: HotplugHost) -> None:
    service = started(host)
    host.kernel.drop_updates(1)
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(16))
    host.settle(service)
    assert [call.names for call in host.kernel.calls] == [("elfcorehdr",)]
    host.assert_described()


def test_a_kernel_that_does_not_know_the_flag_gets_the_load_without_it(host: HotplugHost) -> None:
    host.kernel.forget_flag()
    service = host.service()
    service.start()
    assert [call.error for call in host.kernel.calls] == [errno.EINVAL, 0]
    assert not host.records.of(Kind.FALLBACK), "nothing was lost by asking"
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents())
    host.settle(service)
    assert [call.error for call in host.kernel.calls] == [errno.EINVAL, 0, 0], "asked once"
    host.assert_complete()


def test_crash_hotplug_that_reads_0_under_contention_is_asked_again(host: HotplugHost) -> None:
    service = host.service()
    host.kernel.contended = True
    service.start()
    host.settle(service)
    assert not host.records.of(Kind.FALLBACK)
    host.kernel.contended = False
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    service.uevents(uevents())
    host.settle(service)
    assert [one.details.backend for one in host.records.of(Kind.FALLBACK)] == ["kernel"]
    host.assert_described()


# --- file ------------------------------------------------------------------------------


def test_the_choice_of_file_is_recorded_with_its_reason(host: HotplugHost) -> None:
    without_kexec_load(host)
    host.service().start()
    (fallback,) = host.records.of(Kind.FALLBACK)
    assert fallback.details.backend == "file"
    assert fallback.priority is Priority.WARNING
    assert "kexec_load: ENOSYS" in fallback.message
    (begun,) = host.records.of(Kind.STARTED)
    assert begun.details.backend == "file"
    host.assert_described()


def test_file_repairs_what_the_kernel_leaves(host: HotplugHost) -> None:
    without_kexec_load(host)
    service = started(host)
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(16))
    host.settle(service)
    assert not host.kernel.file_calls, "the kernel did that"
    host.kernel.hot_remove_memory(DIMM)
    service.uevents(uevents(16))
    host.settle(service)
    assert [kind for kind, _ in host.kernel.file_calls] == ["reboot", "crash"]
    (updated,) = host.records.of(Kind.UPDATED)
    assert updated.details.backend == "file"
    assert updated.details.unarmed_usec == 2_500_000
    assert not host.records.of(Kind.FALLBACK), "the choice is known"
    host.assert_described()


def test_file_loads_are_spaced_by_what_they_cost(host: HotplugHost) -> None:
    without_kexec_load(host)
    service = started(host)
    times = []
    for dimm in (DIMM, OTHER_DIMM):
        host.kernel.hot_add_memory(dimm)
        host.kernel.hot_remove_memory(dimm)
        service.uevents(uevents())
        while len(host.kernel.file_calls) < 2 * (len(times) + 1):
            host.clock.now = max(host.clock.now, service.deadline)
            service.turn()
        times.append(host.clock.now)
    assert times[1] - times[0] >= 100 * 2_500_000


def test_a_restarted_service_adopts_what_the_kernel_made(host: HotplugHost) -> None:
    without_kexec_load(host)
    started(host)
    service = host.service()
    service.start()
    assert host.records.kinds == [Kind.ADOPTED, Kind.STARTED]
    assert not host.kernel.file_calls


def test_kexec_load_that_comes_back_is_said(host: HotplugHost) -> None:
    without_kexec_load(host)
    service = started(host)
    host.kernel.refuse("kexec_load", 0)
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    service.uevents(uevents())
    host.settle(service)
    said = host.records.of(Kind.FALLBACK)[0]
    assert (said.details.backend, said.priority) == ("full", Priority.INFO)
    host.assert_described()


def test_lockdown_after_our_load_ends_the_ladder_without_disarming(host: HotplugHost) -> None:
    service = started(host)
    host.kernel.lock_down("integrity")
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    service.uevents(uevents(16))
    host.settle(service)
    assert host.kernel.loaded
    assert not host.kernel.calls
    assert all(kind == "reboot" for kind, _ in host.kernel.file_calls)
    (said,) = host.records.of(Kind.FALLBACK)
    assert said.priority is Priority.CRIT
    assert said.details.verdict == "stale"
    assert said.details.armed is True
    assert said.message == (
        "delta, full: kexec_load: EPERM, the kernel is locked down (integrity);"
        f" file: {host.root.path('/boot/vmlinuz')} is not accepted: kexec_file_load: EPERM"
        " (Operation not permitted); the kernel is locked down and the file has no signature"
        " that it trusts; command: none is configured ([update] command); trying again"
    )
    assert service.status.startswith("stale: ")


def test_a_start_under_lockdown_leaves_what_is_loaded(host: HotplugHost) -> None:
    host.kernel.foreign_load("kexec_file_load")
    host.kernel.lock_down("integrity")
    with pytest.raises(KdumphpdError, match="is not accepted"):
        host.service().start()
    assert host.kernel.loaded


def test_where_nothing_is_permitted_all_reasons_are_said(host: HotplugHost) -> None:
    service = started(host)
    for call in ("kexec_load", "kexec_file_load"):
        host.kernel.refuse(call, errno.EPERM)
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    service.uevents(uevents())
    host.settle(service)
    (said,) = host.records.of(Kind.FALLBACK)
    for word in ("kexec_load: EPERM", "kexec_file_load: EPERM", "[update] command"):
        assert word in said.message
    host.kernel.refuse("kexec_load", 0)
    host.pass_time(service, 7200)
    host.assert_described()


# --- command ---------------------------------------------------------------------------


def test_the_command_is_last(host: HotplugHost) -> None:
    host.kernel.foreign_load()
    for call in ("kexec_load", "kexec_file_load"):
        host.kernel.refuse(call, errno.EPERM)
    host.configure(more='[update]\ncommand = "/bin/true"\n')
    host.service().start()
    (begun,) = host.records.of(Kind.STARTED)
    assert begun.details.backend == "command"
    (fallback,) = host.records.of(Kind.FALLBACK)
    assert fallback.message.startswith("loading by command; delta, full: kexec_load: EPERM")
    assert "; file: kexec_file_load: EPERM" in fallback.message


def test_what_kdump_loaded_stays_where_only_its_command_could_load_it_again(
    host: HotplugHost,
) -> None:
    """Running it would leave nothing loaded for seconds, for the same image."""
    kdump = FakeKdump(host)
    for call in ("kexec_load", "kexec_file_load"):
        host.kernel.refuse(call, errno.EPERM)
    ran = host.root.path("/ran")
    host.write(str(CONFIG), f"[update]\ncommand = \"/bin/sh -c 'echo >>{ran}'\"\n")
    kdump.load()
    service = host.service()
    service.start()
    (begun,) = host.records.of(Kind.STARTED)
    assert "kdump's own image is complete and stays" in begun.message
    assert (begun.details.backend, begun.details.verdict) == ("command", "complete")
    assert not ran.exists()
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(16))
    host.pass_time(service, 60)
    assert ran.read_text().count("\n") >= 1
    assert host.records.of(Kind.UPDATED)


def test_what_is_not_right_with_a_load_is_in_its_record(host: HotplugHost) -> None:
    host.kernel.foreign_load()
    host.kernel.hot_add_memory(DIMM)
    for call in ("kexec_load", "kexec_file_load"):
        host.kernel.refuse(call, errno.EPERM)
    host.configure(more='[update]\ncommand = "/bin/true"\n')
    host.service().start()
    (begun,) = host.records.of(Kind.STARTED)
    assert "its header does not describe the machine" in begun.message
    assert begun.details.verdict is None


# --- nothing to be seen ----------------------------------------------------------------


def test_an_image_that_nobody_may_read_is_unknown_and_said_once(host: HotplugHost) -> None:
    host.kernel.foreign_load("kexec_file_load")
    host.kernel.lock_down("confidentiality")
    host.root.path("/proc/kcore").unlink()
    service = host.service()
    service.start()
    for _ in range(3):
        service.uevents(uevents(4))
        host.pass_time(service, 2 * 3600)
    unknown = [one for one in host.records if one.details.verdict == "unknown"]
    assert [one.kind for one in unknown] == [Kind.FALLBACK, Kind.STARTED]
    assert len(host.records) == 2
    assert host.kernel.loaded
    assert service.status.startswith("unknown")


def test_what_cannot_be_read_and_nobody_keeps_stops_the_start(host: HotplugHost) -> None:
    host.kernel.foreign_load("kexec_load")
    host.root.path("/proc/kcore").unlink()
    with pytest.raises(KdumphpdError, match="kcore"):
        host.service().start()
