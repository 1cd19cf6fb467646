"""Hosts on which only kexec_file_load or kdump's command can load: kdump's image stays."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kdumphpd.distribution.watch import Changed
from kdumphpd.errors import KdumphpdError
from kdumphpd.report.records import Kind, Priority
from kdumphpd.service import Service
from tests.unit.fake_kdump import hint
from tests.unit.fake_kdump_utils import EARLY_INITRD, LINE, LOCK, FakeKdumpUtils
from tests.unit.host_fixture import CONFIG, DIMM, INITRD, Hints, uevents
from tests.unit.hotplug_host import HotplugHost

SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@pytest.fixture
def host(tmp_path: Path) -> HotplugHost:
    """As RHEL 10: the kernel updates the header, and there is no kexec_load."""
    host = HotplugHost(tmp_path)
    host.kernel.refuse("kexec_load", errno.ENOSYS)
    return host


@pytest.fixture
def kdump(host: HotplugHost) -> FakeKdumpUtils:
    return FakeKdumpUtils(host)


def started(host: HotplugHost, kdump: FakeKdumpUtils) -> Service:
    kdump.start(None)
    service = host.service()
    service.start()
    host.settle(service)
    return service


def test_start_loads_nothing(host: HotplugHost, kdump: FakeKdumpUtils) -> None:
    service = started(host, kdump)
    assert (host.kernel.calls, host.kernel.file_calls) == ([], [])
    begun = host.records.of(Kind.STARTED)[0]
    assert begun.message.endswith("kdump's own image is complete and stays")
    assert (begun.details.backend, begun.details.verdict) == ("file", "complete")
    assert begun.details.unarmed_usec in (0, None)
    assert all(one.priority is Priority.INFO for one in host.records), host.records
    choices = [one for one in host.records.of(Kind.FALLBACK) if "kept" in one.message]
    assert [one.details.backend for one in choices] == ["file"]
    assert host.rules.ours
    assert host.audit().managed_by == "kdumphpd"
    host.records.clear()
    host.pass_time(service, 20_000)
    assert host.records.kinds in ([], [Kind.AUDITED])


def test_the_first_real_update_is_not_held_back(host: HotplugHost, kdump: FakeKdumpUtils) -> None:
    """A load at the start would have had it wait a hundred times as long."""
    service = started(host, kdump)
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    service.uevents(uevents(16))
    host.pass_time(service, 15)
    assert [kind for kind, _ in host.kernel.file_calls] == ["reboot", "crash"]
    host.assert_described()
    assert host.rules.ours


def test_a_stale_image_is_loaded_again_at_the_start(
    host: HotplugHost, kdump: FakeKdumpUtils
) -> None:
    kdump.start(None)
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    service = host.service()
    service.start()
    host.settle(service)
    host.assert_described()
    assert host.rules.ours


def test_a_restarted_daemon_keeps_it_too(host: HotplugHost, kdump: FakeKdumpUtils) -> None:
    started(host, kdump)
    again = host.service()
    again.start()
    host.settle(again)
    assert host.records.of(Kind.ADOPTED)
    assert (host.kernel.calls, host.kernel.file_calls) == ([], [])
    assert host.rules.ours


@pytest.mark.parametrize("initrd", [INITRD, EARLY_INITRD])
def test_kdumps_next_image_is_kept_as_well(
    host: HotplugHost, kdump: FakeKdumpUtils, initrd: str
) -> None:
    service = started(host, kdump)
    kdump.by_hand(LINE, initrd)
    kdump.kdumpctl(service, "start")
    host.settle(service)
    assert (host.kernel.calls, host.kernel.file_calls) == ([], [])
    assert host.rules.ours


def test_a_rebuilt_initrd_loads_nothing(host: HotplugHost, kdump: FakeKdumpUtils) -> None:
    """kdump itself takes it up when it loads the next time."""
    service = started(host, kdump)
    path = host.write(INITRD, b"rebuilt " * 1000)
    hint(host, service, Changed(frozenset({path}), lost=False))
    host.settle(service)
    assert host.kernel.file_calls == []
    assert host.rules.ours


@pytest.mark.parametrize(
    ("setting", "secure_boot", "followed"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("kexec_file_load", False, True),
        ("kexec_load", True, False),
    ],
)
def test_s_in_kexec_args(tmp_path: Path, setting: str, secure_boot: bool, followed: bool) -> None:
    host = HotplugHost(tmp_path)
    kdump = FakeKdumpUtils(host)
    host.write(str(CONFIG), f'[image]\nsyscall = "{setting}"\n[update]\ncommand = ""\n')
    if secure_boot:
        host.write(SECURE_BOOT, b"\6\0\0\0\1")
    started(host, kdump)
    assert (host.kernel.calls == []) == followed
    assert host.kernel.file_calls == []
    said = [one for one in host.records if "KEXEC_ARGS has -s, but" in one.message]
    assert len(said) == (setting == "auto" and not secure_boot)


def encrypted(host: HotplugHost, kdump: FakeKdumpUtils, command: str) -> Path:
    """The dump target has LUKS, and the kernel can hand keys over."""
    ran = host.root.path("/ran")
    host.kernel.refuse("kexec_load", 0)
    host.root.path("/sys/kernel/config/crash_dm_crypt_keys").mkdir(parents=True)
    library = host.root.path("/lib/kdump/kdump-lib.sh")
    library.write_text(library.read_text() + "get_all_kdump_crypt_dev() { echo luks-1; }\n")
    host.write(str(CONFIG), f'[update]\ncommand = "{command.format(ran=ran)}"\n')
    return ran


def test_an_image_with_luks_keys_is_never_replaced_by_ours(
    host: HotplugHost, kdump: FakeKdumpUtils
) -> None:
    ran = encrypted(host, kdump, "/bin/sh -c 'echo >>{ran}'")
    service = started(host, kdump)
    assert host.rules.ours
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    service.uevents(uevents(16))
    host.pass_time(service, 60)
    assert (host.kernel.calls, host.kernel.file_calls) == ([], [])
    assert ran.exists(), "kdump's own command prepares the keys"


def test_luks_without_a_command_is_left_to_the_distributions_rule(
    host: HotplugHost, kdump: FakeKdumpUtils
) -> None:
    encrypted(host, kdump, "")
    kdump.start(None)
    with pytest.raises(KdumphpdError, match="LUKS luks-1"):
        host.service().start()
    assert (host.kernel.calls, host.kernel.file_calls) == ([], [])
    assert host.kernel.loaded
    assert not host.rules.ours


def test_an_image_that_would_not_fit_is_not_left_to_the_command_either(
    host: HotplugHost, kdump: FakeKdumpUtils
) -> None:
    """It would unload first, and then find no room as well."""
    ran = host.root.path("/ran")
    host.write(str(CONFIG), f"[update]\ncommand = \"/bin/sh -c 'echo >>{ran}'\"\n")
    service = started(host, kdump)
    path = host.write(INITRD, bytes(host.kernel.reservation.size))
    hint(host, service, Changed(frozenset({path}), lost=False))
    host.settle(service)
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    service.uevents(uevents(16))
    host.pass_time(service, 60)
    assert host.kernel.loaded
    assert not ran.exists()
    assert host.kernel.file_calls == []
    (said,) = [one for one in host.records if one.priority is Priority.CRIT]
    assert "no room for initrd" in said.message
    assert said.details.verdict == "stale"
    assert not host.rules.ours


def test_what_is_not_loaded_by_kexec_load_is_not_said_to_be(
    host: HotplugHost, kdump: FakeKdumpUtils
) -> None:
    service = started(host, kdump)
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    service.uevents(uevents(16))
    host.pass_time(service, 60)
    assert host.kernel.file_calls
    assert not [one for one in host.records if "kexec_load is used" in one.message]


class OwnLock(Hints):
    """As inotify: kdump's command, run for us, opens and closes kdump's lock too."""

    def __init__(self, ran: Path, lock: Path) -> None:
        super().__init__()
        self.ran, self.lock, self.seen = ran, lock, 0

    def drain(self) -> Changed:
        count = self.ran.stat().st_size if self.ran.exists() else 0
        if count != self.seen:
            self.seen = count
            only = frozenset({self.lock})
            self.say(Changed(only, lost=False, opened=only))
        return super().drain()


def test_a_command_that_fails_is_run_at_growing_gaps(
    host: HotplugHost, kdump: FakeKdumpUtils
) -> None:
    """That it closes kdump's lock is no news of kdump."""
    ran = encrypted(host, kdump, "/bin/sh -c 'echo >>{ran}; exit 1'")
    host.hints = OwnLock(ran, host.root.path(LOCK))
    service = started(host, kdump)
    kdump.breaks = True
    kdump.kdumpctl(service, "reload")
    host.pass_time(service, 3600)
    assert not host.kernel.loaded
    assert 3 <= ran.stat().st_size <= 60
    assert not host.rules.ours
