"""A unified kernel image by kexec_file_load: what is handed over, and what is asked about."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from kdumphpd.host import Host
from kdumphpd.image.source import ImageSource
from kdumphpd.load.file_kernel import KernelFile
from kdumphpd.load.keeper import Mended
from tests.unit.host_fixture import DIMM, KERNEL, bzimage
from tests.unit.hotplug_host import HotplugHost
from tests.unit.synthetic import pe

INSIDE = bzimage()
WHOLE = pe([(b".text", b"stub"), (b".linux", INSIDE), (b".initrd", b"i" * 700)])
REBOOT_LIMIT = "/proc/sys/kernel/kexec_load_limit_reboot"


@pytest.fixture
def host(tmp_path: Path) -> HotplugHost:
    """A kernel without kexec_load, and a unified kernel image to load."""
    host = HotplugHost(tmp_path)
    host.kernel.refuse("kexec_load", errno.ENOSYS)
    host.write(KERNEL, WHOLE)
    return host


def load_again(host: HotplugHost, parts: Host) -> Mended:
    """The kernel leaves memory that is gone in the header: that takes a load."""
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    return parts.keeper.mend(parts.keeper.look())


def test_the_kernel_is_given_what_it_can_load(host: HotplugHost) -> None:
    parts = host.load()
    host.assert_described()
    assert host.kernel.file_calls == [("reboot", errno.ENOEXEC), ("crash", 0)]
    assert host.kernel.handed == [("reboot", WHOLE), ("crash", INSIDE)]
    assert load_again(host, parts).loaded
    # The whole is not asked about again; the kernel inside is, before anything is dropped.
    assert host.kernel.file_calls[2:] == [("reboot", errno.EBADF), ("crash", 0)]
    assert host.kernel.handed[2:] == [("reboot", INSIDE), ("crash", INSIDE)]


def test_another_file_is_asked_about_anew(host: HotplugHost) -> None:
    host.load()
    other = pe([(b".linux", INSIDE), (b".uname", b"6.12.0")])
    host.write(KERNEL, other)
    host.load()
    asked = [content for kind, content in host.kernel.handed if kind == "reboot"]
    assert asked == [WHOLE, other, INSIDE]


def test_a_kernel_that_takes_the_whole_gets_the_whole(host: HotplugHost) -> None:
    host.kernel.takes_unified = True
    parts = host.load()
    assert load_again(host, parts).loaded
    assert host.kernel.handed == [("reboot", WHOLE), ("crash", WHOLE)] * 2
    assert host.kernel.file_calls == [("reboot", errno.EBADF), ("crash", 0)] * 2


@pytest.mark.parametrize("code", [errno.EPERM, errno.EKEYREJECTED, errno.EACCES])
def test_where_only_the_kernel_inside_is_signed_that_is_loaded(
    host: HotplugHost, code: int
) -> None:
    host.kernel.takes_unified = True
    host.kernel.accepts_files = lambda content: code if content == WHOLE else 0
    parts = host.load()
    assert load_again(host, parts).loaded
    assert [content for kind, content in host.kernel.handed if kind == "crash"] == [INSIDE] * 2


@pytest.mark.parametrize("code", [errno.EPERM, errno.EKEYREJECTED, errno.EACCES])
def test_a_kernel_inside_that_is_not_accepted_costs_nothing(host: HotplugHost, code: int) -> None:
    parts = host.load()
    host.kernel.accepts_files = lambda content: code if content == INSIDE else 0
    mended = load_again(host, parts)
    assert mended.loaded is None
    assert mended.armed
    assert not mended.dropped
    assert host.kernel.loaded
    name = errno.errorcode[code]
    assert f"{KERNEL} is not accepted: kexec_file_load: {name}" in str(mended.error())


@pytest.mark.parametrize("asked", ["whole", "inside"])
def test_another_load_under_way_is_met_by_the_question(host: HotplugHost, asked: str) -> None:
    parts = host.load()
    wanted = {"whole": WHOLE, "inside": INSIDE}[asked]
    if asked == "whole":
        parts = host.open()  # has not asked yet
    host.kernel.accepts_files = lambda content: errno.EBUSY if content == wanted else 0
    host.kernel.takes_unified = asked == "whole"
    assert load_again(host, parts).busy
    assert host.kernel.loaded


def test_what_cannot_be_asked_about_is_the_kernel_inside(host: HotplugHost) -> None:
    host.write(REBOOT_LIMIT, "5\n")
    host.write("/sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
    parts = host.load()
    assert load_again(host, parts).loaded
    assert host.kernel.handed == [("crash", INSIDE)] * 2
    host.write("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    assert "cannot be asked" in str(load_again(host, parts).error())
    assert host.kernel.loaded


def test_a_damaged_one_is_not_handed_over(host: HotplugHost) -> None:
    parts = host.load()
    host.write(KERNEL, WHOLE[:-9000])
    parts.source.close()
    mended = parts.keeper.load(parts.reader.snapshot())
    assert "is not within its" in str(mended.cause)
    assert host.kernel.loaded
    assert len(host.kernel.file_calls) == 2


def test_what_is_handed_over_cannot_change_and_is_closed_after(host: HotplugHost) -> None:
    parts = host.open()
    source = ImageSource(parts.source.spec)
    source.files()[0].digest()
    chooser = KernelFile(host.root, host.kernel, source, host.clock)
    with chooser.chosen(armed=False) as chosen:
        assert os.pread(chosen.fd, len(WHOLE), 0) == INSIDE
        seals = fcntl.fcntl(chosen.fd, fcntl.F_GET_SEALS)
        for one in ("F_SEAL_WRITE", "F_SEAL_GROW", "F_SEAL_SHRINK", "F_SEAL_SEAL"):
            assert seals & getattr(fcntl, one), one
        with pytest.raises(PermissionError):
            os.pwrite(chosen.fd, b"x", 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(chosen.fd)
    source.close()
