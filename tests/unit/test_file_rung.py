"""kexec_file_load: what is asked before, what is read back after, and what is known again."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kdumphpd.audit.compare import Verdict
from kdumphpd.errors import ImageError, KdumphpdError
from kdumphpd.host import Host
from kdumphpd.load.keeper import Mended, State
from kdumphpd.load.ladder import Rung
from kdumphpd.load.loader import NoRoomError
from kdumphpd.load.remembered import STATE
from tests.unit.fake_kernel import MIB
from tests.unit.host_fixture import COMMAND_LINE, DIMM, INITRD, KERNEL, OTHER_DIMM
from tests.unit.hotplug_host import HotplugHost


@pytest.fixture
def host(tmp_path: Path) -> HotplugHost:
    """A kernel without kexec_load, as RHEL 10 has it."""
    host = HotplugHost(tmp_path)
    host.kernel.refuse("kexec_load", errno.ENOSYS)
    return host


def load(host: HotplugHost) -> Host:
    parts = host.open()
    mended = parts.keeper.load(parts.reader.snapshot())
    assert mended.loaded, mended.failures
    return parts


def mend(parts: Host) -> Mended:
    return parts.keeper.mend(parts.keeper.look())


def test_the_kernel_makes_the_image(host: HotplugHost) -> None:
    parts = host.open()
    mended = parts.keeper.load(parts.reader.snapshot())
    assert mended.loaded
    assert mended.loaded.backend == "file"
    assert mended.loaded.unarmed_usec == 2_500_000
    refusal = "kexec_load: ENOSYS, this kernel, or the unit's system call filter, has none"
    assert mended.ruled_out == ((Rung.DELTA, refusal), (Rung.FULL, refusal))
    assert not host.kernel.calls
    assert host.file_arguments()[1] == f"{COMMAND_LINE} acpi_no_memhotplug"
    host.assert_described()
    assert host.kernel.file_calls == [("crash", 0)], "nothing was loaded that could be lost"


def test_it_is_known_again_and_its_header_compared_by_what_it_says(host: HotplugHost) -> None:
    parts = load(host)
    for keeper in (parts.keeper, host.open().keeper):
        look = keeper.look()
        assert (look.state, look.ours, look.managed) == (State.CURRENT, True, True)
        assert keeper.matches(look)
    host.kernel.drop_updates(1)
    host.kernel.hot_add_memory(DIMM)
    stale = host.open().keeper.look()
    assert stale.state is State.STALE
    assert str(stale.change) == f"memory {DIMM}, 2 GiB, 16 blocks added"


def test_the_audit_knows_whose_it_is(host: HotplugHost) -> None:
    load(host)
    found = host.audit()
    assert (found.verdict, found.managed_by, found.verified) == (
        Verdict.COMPLETE,
        "kdumphpd",
        None,
    )
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    found = host.audit()
    assert found.verdict is Verdict.STALE
    assert found.extra.memory == (DIMM,)


def test_a_reload_leaves_nothing_unasked(host: HotplugHost) -> None:
    parts = load(host)
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    mended = mend(parts)
    assert mended.loaded
    assert host.kernel.file_calls == [("crash", 0), ("reboot", errno.EBADF), ("crash", 0)]
    assert parts.keeper.look().state is State.CURRENT
    host.assert_described()


@pytest.mark.parametrize(
    "code", [errno.EPERM, errno.EKEYREJECTED, errno.ENOKEY, errno.EACCES, errno.ENODATA]
)
def test_a_file_that_the_kernel_does_not_accept_costs_nothing(host: HotplugHost, code: int) -> None:
    parts = load(host)
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_remove_memory(DIMM)
    host.kernel.accepts_files = code
    mended = mend(parts)
    assert mended.loaded is None
    assert mended.armed
    assert host.kernel.loaded
    assert not mended.dropped
    assert f"{KERNEL} is not accepted: kexec_file_load: {errno.errorcode[code]}" in str(
        mended.error()
    )


def test_where_the_kernel_cannot_be_asked_nothing_is_risked(host: HotplugHost) -> None:
    parts = load(host)
    host.write("/proc/sys/kernel/kexec_load_limit_reboot", "5\n")
    host.kernel.accepts_files = errno.EPERM
    host.kernel.hot_remove_cpu(1)
    assert "cannot be asked" in str(mend(parts).error())
    assert host.kernel.loaded
    host.write("/sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
    host.kernel.accepts_files = 0
    assert mend(parts).loaded
    assert host.kernel.file_calls == [("crash", 0)] * 2


def test_another_load_under_way_is_met_before_anything_is_freed(host: HotplugHost) -> None:
    parts = load(host)
    host.kernel.fail_next(errno.EBUSY, before_free=True)
    mended = mend(parts)
    assert mended.busy
    assert host.kernel.loaded


def test_what_goes_wrong_after_the_question_is_said(host: HotplugHost) -> None:
    parts = load(host)
    host.kernel.fail_next(errno.ENOMEM, before_free=False)
    mended = mend(parts)
    assert mended.loaded is None
    assert mended.dropped
    assert str(mended.error()).endswith("NOTHING is loaded")
    assert "enlarge crashkernel=" in str(mended.error())


@pytest.mark.parametrize("style", ["kexec_load", "kexec_file_load"])
def test_another_programs_image_is_not_taken_for_it(host: HotplugHost, style: str) -> None:
    parts = load(host)
    host.kernel.foreign_load(style)
    for keeper in (parts.keeper, host.open().keeper):
        look = keeper.look()
        assert (look.state, look.ours) == (State.FOREIGN, False)
        assert not keeper.matches(look)
    assert host.audit().managed_by != "kdumphpd"


def test_state_that_is_damaged_or_of_another_boot_does_not_count(host: HotplugHost) -> None:
    load(host)
    state = host.root.path(STATE)
    text = state.read_text()
    state.write_text(text[:40])
    assert host.open().keeper.look().state is State.FOREIGN
    state.write_text(text)
    assert host.open().keeper.look().state is State.CURRENT
    host.write("/proc/sys/kernel/random/boot_id", "another\n")
    assert host.open().keeper.look().state is State.FOREIGN


def test_state_that_cannot_be_written_is_said_and_the_image_still_kept(host: HotplugHost) -> None:
    host.write("/run/kdumphpd", "in the way")
    parts = host.open()
    mended = parts.keeper.load(parts.reader.snapshot())
    assert mended.loaded
    assert "image.json" in mended.loaded.problem
    assert parts.keeper.look().state is State.CURRENT


@pytest.mark.parametrize("changed", ["kernel", "initrd", "command_line"])
def test_another_configuration_does_not_match(host: HotplugHost, changed: str) -> None:
    load(host)
    if changed == "command_line":
        host.configure(command_line="root=/dev/vda2 irqpoll nr_cpus=1")
    else:
        name = {"kernel": KERNEL, "initrd": INITRD}[changed]
        content = bytearray(host.root.path(name).read_bytes())
        content[-1] ^= 1
        host.write(name, bytes(content))
    keeper = host.open().keeper
    assert not keeper.matches(keeper.look())


@pytest.mark.parametrize(
    ("command_line", "error"),
    [("x" * 4000, ImageError), ("nr_cpus=1 elfcorehdr=0x1000", ImageError)],
)
def test_what_the_kernel_would_refuse_too_late_is_refused_here(
    host: HotplugHost, command_line: str, error: type[KdumphpdError]
) -> None:
    load(host)
    host.configure(command_line=command_line)
    parts = host.open()
    mended = parts.keeper.load(parts.reader.snapshot())
    assert isinstance(mended.cause, error)
    assert host.kernel.loaded
    assert host.kernel.file_calls == [("crash", 0)]


@pytest.mark.parametrize("keys", [0, 1])
def test_the_longest_command_line_is_known_before_the_call(tmp_path: Path, keys: int) -> None:
    """cmdline_size is 2047; the kernel adds elfcorehdr= and dmcryptkeys=, and counts a zero."""
    host = HotplugHost(tmp_path, crashkernel=256 * MIB)
    host.kernel.refuse("kexec_load", errno.ENOSYS)
    host.write("/sys/kernel/config/crash_dm_crypt_keys/count", f"{keys}\n")
    host.load()
    taken = []
    longest = 2047 - len(" acpi_no_memhotplug") - 1 - 30 - 31 * keys
    for length in range(longest - 1, longest + 3):
        host.configure(command_line="x" * length)
        parts = host.open()
        mended = parts.keeper.load(parts.reader.snapshot())
        assert host.kernel.loaded, length
        assert mended.loaded or isinstance(mended.cause, ImageError)
        taken.append(mended.loaded is not None)
    assert taken == [True, True, False, False]


@pytest.mark.parametrize(
    ("initrd", "lacking"),
    [
        # All of it together is less than the reservation, but the kernel is aligned.
        (12 * MIB, "initrd"),
        (64 * MIB, "initrd"),
    ],
)
def test_an_image_that_finds_no_place_is_not_tried(
    host: HotplugHost, initrd: int, lacking: str
) -> None:
    host.load()
    host.write(INITRD, b"x" * initrd)
    parts = host.open()
    mended = parts.keeper.load(parts.reader.snapshot())
    assert isinstance(mended.cause, NoRoomError)
    assert f"no room for {lacking} (elfcorehdr" in str(mended.cause)
    assert "boot with crashkernel=256M" in str(mended.cause)
    assert host.kernel.loaded
    assert host.kernel.file_calls == [("crash", 0)]


def test_keys_that_cut_the_reservation_in_two_are_not_tried(host: HotplugHost) -> None:
    host.load()
    host.write("/sys/kernel/config/crash_dm_crypt_keys/count", "2\n")
    parts = host.open()
    mended = parts.keeper.load(parts.reader.snapshot())
    assert "no room for dm-crypt keys" in str(mended.cause)
    assert host.kernel.loaded


def test_with_nothing_to_lose_it_is_tried(host: HotplugHost) -> None:
    """The model may ask for a little too much; the kernel says then whether it fits."""
    host.write("/sys/kernel/security/ima/binary_runtime_measurements", b"m" * (12 * MIB))
    parts = host.load()
    host.kernel.hot_remove_cpu(1)
    assert "no room for kernel (IMA measurements 13 MiB" in str(
        parts.keeper.load(parts.reader.snapshot()).cause
    )
    assert host.kernel.loaded


def test_what_the_kernel_has_no_room_for_is_said_with_sizes(host: HotplugHost) -> None:
    host.write(INITRD, b"x" * (12 * MIB))
    parts = host.open()
    mended = parts.keeper.load(parts.reader.snapshot())
    assert host.kernel.file_calls == [("crash", errno.EADDRNOTAVAIL)]
    assert "kexec_file_load: EADDRNOTAVAIL" in str(mended.error())
    assert "no room for initrd (elfcorehdr" in str(mended.error())
    assert "crashkernel=256M" in str(mended.error())


def test_with_kexec_load_back_the_next_load_is_ours_again(host: HotplugHost) -> None:
    load(host)
    host.kernel.refuse("kexec_load", 0)
    parts = host.open()
    host.kernel.hot_add_memory(OTHER_DIMM)
    mended = mend(parts)
    assert mended.loaded
    assert mended.loaded.backend == "full"
    assert not host.root.path(STATE).exists()
    host.assert_complete()
