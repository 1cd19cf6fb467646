"""Hosts that encrypt their memory: what is loaded reads back as noise, so nothing is claimed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdumphpd.audit.compare import Verdict
from kdumphpd.errors import MachineError
from kdumphpd.machine import encryption
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.snapshot import MachineReader
from tests.unit.fake_crash_hotplug import CrashHotplugKernel
from tests.unit.fake_kdump_utils import FakeKdumpUtils
from tests.unit.fake_kernel import MIB, FakeKernel
from tests.unit.host_fixture import FakeHost, uevents
from tests.unit.hotplug_host import HotplugHost


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    kernel = CrashHotplugKernel.q35(tmp_path, crashkernel=64 * MIB)
    return FakeHost(tmp_path, kernel=kernel)


def test_the_fake_hides_an_image_as_the_kernel_does(host: FakeHost) -> None:
    """kernel/kexec_core.c, kimage_load_crash_segment: decrypted while it is written only."""
    host.kernel.encrypt()
    image = host.kernel.foreign_load()
    assert host.kernel.read_memory(image.command_line, len(image.text)) != image.text
    assert host.kernel.read_image(image.command_line, len(image.text)) == image.text
    found = host.kernel.crash(image.elfcorehdr)
    assert found is not None, "the crash kernel reads it"
    assert host.kernel.vmcoreinfo in found.notes


@pytest.mark.parametrize(
    ("style", "manager"), [("kexec_load", "other"), ("kexec_file_load", "kernel")]
)
def test_an_image_is_unknown_and_the_reason_is_said(
    host: FakeHost, style: str, manager: str
) -> None:
    host.kernel.encrypt()
    host.kernel.foreign_load(style)
    found = host.audit()
    assert (found.verdict, found.loaded) == (Verdict.UNKNOWN, True)
    assert found.managed_by == manager
    assert "AMD SME or SEV, mask 0x800000000000" in found.reasons[0]
    assert found.header is None


def test_an_old_image_in_the_clear_is_not_taken_for_the_loaded_one(host: FakeHost) -> None:
    """A header that another boot left is no proof of anything."""
    host.load()
    host.kernel.encrypt()
    assert host.audit().verdict is Verdict.UNKNOWN


def test_nothing_loaded_is_nothing_loaded(host: FakeHost) -> None:
    host.kernel.encrypt()
    assert host.audit().verdict is Verdict.UNLOADED


@pytest.mark.parametrize(
    ("note", "active"),
    [
        (b"NUMBER(sme_mask)=0\n", False),
        (b"NUMBER(sme_mask)=140737488355328\n", True),
        (b"NUMBER(sme_mask)=2251799813685248\n", True),
        (b"XNUMBER(sme_mask)=1\nNUMBER(sme_mask)=\n", False),
        (b"", False),  # before 5.1
    ],
)
def test_the_kernel_s_own_word_counts(tmp_path: Path, note: bytes, active: bool) -> None:
    kernel = FakeKernel.q35(tmp_path)
    kernel.write_memory(kernel.vmcoreinfo, (b"OSRELEASE=6\n" + note).ljust(1024, b"\0"))
    reader = MachineReader(kernel.root)
    with PhysicalMemory(kernel.root) as memory:
        assert bool(encryption.active(memory, reader.fixed().vmcoreinfo)) is active
    assert bool(reader.encryption()) is active


def test_a_note_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    (tmp_path / "sys/kernel/vmcoreinfo").write_text("0xfffffff000 1024\n")
    with pytest.raises(MachineError, match="0xfffffff000"):
        MachineReader(kernel.root).encryption()


# --- the service -----------------------------------------------------------------------


def test_no_load_of_ours_is_made_and_the_distributions_rule_stays(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, crashkernel=64 * MIB)
    kdump = FakeKdumpUtils(host)
    host.kernel.encrypt()
    kdump.start(None)
    with pytest.raises(MachineError, match=r"encrypts memory.*distribution's kdump"):
        host.service().start()
    assert host.kernel.calls == []
    assert host.kernel.loaded
    assert "take over" not in host.rules.calls


def test_an_image_that_the_kernel_keeps_is_unknown_and_left_to_the_kernel(tmp_path: Path) -> None:
    host = HotplugHost(tmp_path / "host")
    host.kernel.encrypt()
    host.kernel.foreign_load("kexec_file_load")
    service = host.service()
    service.start()
    service.uevents(uevents(16))
    host.pass_time(service, 8000)
    assert (host.kernel.calls, host.kernel.file_calls) == ([], [])
    assert service.status.startswith("unknown")
    assert "take over" not in host.rules.calls


def test_nothing_is_loaded_by_hand_either(host: FakeHost) -> None:
    host.kernel.encrypt()
    parts = host.open()
    mended = parts.keeper.load(parts.reader.snapshot())
    assert mended.loaded is None
    assert "encrypts memory" in str(mended.error())
    assert host.kernel.calls == []
