"""Looking at what is loaded and mending it: which load is made, and what is left if none can be."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kdumphpd.errors import ExitCode
from kdumphpd.load.keeper import State
from kdumphpd.load.ladder import Rung
from kdumphpd.machine.ranges import Range
from tests.unit.fake_kernel import MIB, FakeKernel
from tests.unit.host_fixture import DIMM, GIB, INITRD, KERNEL, OTHER_DIMM, FakeHost

#: Refused before the loaded image is freed, and after it (kernel/kexec.c, do_kexec_load).
BEFORE = [errno.EPERM, errno.EBUSY, errno.EACCES, errno.ENOSYS]
AFTER = [errno.ENOMEM, errno.EFAULT, errno.EADDRNOTAVAIL, errno.EINVAL]


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_a_look_says_what_is_loaded(host: FakeHost) -> None:
    keeper = host.open().keeper
    assert keeper.look().state is State.UNLOADED
    keeper.load(keeper.look().machine)
    assert keeper.look().state is State.CURRENT
    host.kernel.hot_add_memory(DIMM)
    stale = keeper.look()
    assert stale.state is State.STALE
    assert str(stale.change) == f"memory {DIMM}, 2 GiB, 16 blocks added"
    host.kernel.foreign_load()
    assert keeper.look().state is State.FOREIGN
    host.kernel.unload()
    assert keeper.look().state is State.UNLOADED


def test_the_change_names_cpus_that_went(host: FakeHost) -> None:
    host.kernel.hot_add_cpu(7)
    parts = host.load()
    host.kernel.hot_remove_cpu(7)
    host.kernel.hot_add_cpu(3)
    assert str(parts.keeper.look().change) == "cpu 3 added; cpu 7 removed"


def test_each_change_takes_one_delta(host: FakeHost) -> None:
    keeper = host.load().keeper
    changes = [
        lambda: host.kernel.hot_add_memory(DIMM),
        lambda: host.kernel.hot_add_cpu(2),
        lambda: host.kernel.hot_add_memory(OTHER_DIMM, "System RAM (virtio_mem)"),
        lambda: host.kernel.hot_remove_memory(DIMM),
        lambda: host.kernel.hot_remove_cpu(0),
    ]
    for count, change in enumerate(changes, 2):
        change()
        mended = keeper.mend(keeper.look())
        assert mended.loaded
        assert (mended.loaded.backend, mended.failures) == ("delta", ())
        assert len(host.kernel.calls) == count
        assert keeper.look().state is State.CURRENT
        host.assert_complete()


@pytest.mark.parametrize("region", range(4))
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_restarted_keeper_makes_no_delta_over_a_damaged_image(
    host: FakeHost, region: int, where: str
) -> None:
    host.load()
    block = host.block()
    assert block is not None
    damaged = block.regions[region]
    host.flip(damaged.start if where == "first" else damaged.end)
    host.kernel.hot_add_memory(DIMM)
    keeper = host.open().keeper
    mended = keeper.mend(keeper.look())
    assert mended.loaded
    assert mended.loaded.backend == "full"
    assert "damaged" in mended.failures[0]
    assert [len(call.places) for call in host.kernel.calls] == [5, 5], "no delta in between"
    host.assert_complete()


@pytest.mark.parametrize("region", range(4))
def test_damage_after_the_last_verification_ends_in_a_full_load(
    host: FakeHost, region: int
) -> None:
    keeper = host.load().keeper
    block = host.block()
    assert block is not None
    host.flip(block.regions[region].start + block.regions[region].size // 2)
    host.kernel.hot_add_memory(DIMM)
    mended = keeper.mend(keeper.look())
    assert mended.loaded
    assert mended.loaded.backend == "full"
    host.assert_complete()
    assert keeper.matches(keeper.look())


def test_what_lies_behind_the_header_in_its_reserve_does_not_matter(host: FakeHost) -> None:
    keeper = host.load().keeper
    block = host.block()
    assert block is not None
    host.flip(block.elfcorehdr.end)
    assert keeper.matches(keeper.look())
    assert keeper.look().state is State.CURRENT
    host.assert_complete()


@pytest.mark.parametrize("added", [Range(4 * GIB, 3000 * GIB - 1), Range(4 * GIB, 2200 * GIB - 1)])
def test_an_outgrown_pad_leads_to_one_full_load(host: FakeHost, added: Range) -> None:
    keeper = host.load().keeper
    host.kernel.hot_add_memory(added)
    mended = keeper.mend(keeper.look())
    assert mended.loaded
    assert mended.loaded.backend == "full"
    assert len(host.kernel.calls) == 2
    assert host.kernel.calls[-1].error == 0
    host.assert_complete()


@pytest.mark.parametrize("style", ["kexec_load", "kexec_file_load"])
def test_an_image_that_takes_over_after_the_look_is_left_alone(host: FakeHost, style: str) -> None:
    keeper = host.load().keeper
    host.kernel.hot_add_memory(DIMM)
    look = keeper.look()
    host.kernel.foreign_load(style)
    entry = host.kernel.entry
    mended = keeper.mend(look)
    assert mended.loaded is None
    assert mended.armed
    assert mended.overtaken
    assert len(host.kernel.calls) == 1
    assert host.kernel.entry == entry
    assert keeper.look().state is State.FOREIGN


def test_what_another_loader_overwrote_is_no_damage(host: FakeHost) -> None:
    """A keeper that has not verified the image yet hashes it first."""
    host.load()
    host.kernel.hot_add_memory(DIMM)
    keeper = host.open().keeper
    look = keeper.look()
    host.kernel.foreign_load()
    assert keeper.mend(look).overtaken
    assert len(host.kernel.calls) == 1


def test_an_image_that_is_unloaded_after_the_look_stays_so(host: FakeHost) -> None:
    keeper = host.load().keeper
    host.kernel.hot_add_memory(DIMM)
    look = keeper.look()
    host.kernel.unload()
    mended = keeper.mend(look)
    assert mended.loaded is None
    assert mended.overtaken
    assert len(host.kernel.calls) == 1
    assert not host.kernel.loaded


@pytest.mark.parametrize("code", BEFORE)
def test_a_refusal_before_the_image_is_freed_leaves_it_armed(host: FakeHost, code: int) -> None:
    keeper = host.load().keeper
    host.kernel.hot_add_memory(DIMM)
    host.kernel.fail_next(code, before_free=True, times=2)
    mended = keeper.mend(keeper.look())
    assert mended.loaded is None
    assert mended.armed
    assert mended.busy is (code == errno.EBUSY)
    assert host.kernel.loaded
    error = mended.error()
    assert errno.errorcode[code] in str(error)
    assert "the crash kernel that was loaded still is" in str(error)
    assert error.exit_code is ExitCode.LOAD_FAILED


def test_a_busy_kernel_is_asked_once(host: FakeHost) -> None:
    """The full load would meet the same lock, and what is loaded is unharmed."""
    keeper = host.load().keeper
    host.kernel.hot_add_memory(DIMM)
    host.kernel.fail_next(errno.EBUSY, before_free=True)
    keeper.mend(keeper.look())
    assert len(host.kernel.calls) == 2
    assert keeper.mend(keeper.look()).loaded
    host.assert_complete()


@pytest.mark.parametrize("code", AFTER)
def test_a_failure_after_the_image_is_freed_is_followed_by_a_full_load(
    host: FakeHost, code: int
) -> None:
    keeper = host.load().keeper
    host.kernel.hot_add_memory(DIMM)
    host.kernel.fail_next(code, before_free=False)
    mended = keeper.mend(keeper.look())
    assert mended.loaded
    assert mended.loaded.backend == "full"
    assert errno.errorcode[code] in mended.failures[0]
    assert [call.error for call in host.kernel.calls] == [0, code, 0]
    host.assert_complete()


def test_busy_after_the_image_is_gone_is_not_harmless(host: FakeHost) -> None:
    keeper = host.load().keeper
    host.kernel.hot_add_memory(DIMM)
    host.kernel.fail_next(errno.ENOMEM, before_free=False)
    host.kernel.fail_next(errno.EBUSY, before_free=True)
    mended = keeper.mend(keeper.look())
    assert (mended.loaded, mended.armed, mended.dropped, mended.busy) == (None, False, True, False)


@pytest.mark.parametrize("code", [*BEFORE, *AFTER])
def test_what_the_kernel_dropped_is_known_by_the_errno(host: FakeHost, code: int) -> None:
    keeper = host.load().keeper
    host.kernel.fail_next(code, before_free=code in BEFORE)
    mended = keeper.load(keeper.look().machine)
    assert mended.dropped is (code in AFTER)
    assert mended.armed is host.kernel.loaded is not mended.dropped


def test_when_that_fails_too_it_says_that_nothing_is_loaded(host: FakeHost) -> None:
    keeper = host.load().keeper
    host.kernel.hot_add_memory(DIMM)
    host.kernel.fail_next(errno.ENOMEM, before_free=False, times=2)
    mended = keeper.mend(keeper.look())
    assert mended.loaded is None
    assert not mended.armed
    assert not host.kernel.loaded
    assert [rung for rung, _ in mended.failed] == [Rung.DELTA, Rung.FULL]
    assert str(mended.error()).endswith("NOTHING is loaded")
    assert keeper.load(keeper.look().machine).loaded
    host.assert_complete()


def test_the_same_configuration_matches_whatever_was_hot_added(host: FakeHost) -> None:
    host.load()
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_add_cpu(6)
    keeper = host.open().keeper
    look = keeper.look()
    assert keeper.matches(look)
    mended = keeper.mend(look)
    assert mended.loaded
    assert mended.loaded.backend == "delta"


@pytest.mark.parametrize("changed", ["kernel", "initrd", "command_line"])
def test_another_configuration_does_not_match(host: FakeHost, changed: str) -> None:
    host.load()
    if changed == "command_line":
        host.configure(command_line="root=/dev/vda2 irqpoll nr_cpus=1")
    else:
        name = {"kernel": KERNEL, "initrd": INITRD}[changed]
        content = bytearray(host.root.path(name).read_bytes())
        content[-1] ^= 1
        host.write(name, bytes(content))
    keeper = host.open().keeper
    assert not keeper.matches(keeper.look())


def test_nothing_and_a_foreign_image_do_not_match(host: FakeHost) -> None:
    keeper = host.open().keeper
    assert not keeper.matches(keeper.look())
    host.kernel.foreign_load()
    assert not keeper.matches(keeper.look())


def test_a_full_load_takes_the_files_that_were_opened_first(host: FakeHost) -> None:
    """A package upgrade replaces them; what is loaded must stay what it was."""
    keeper = host.load().keeper
    before = host.static_bytes()[:2]
    host.write(KERNEL, b"another kernel")
    host.write(INITRD, b"another initrd")
    block = host.block()
    assert block is not None
    host.flip(block.regions[0].start)
    mended = keeper.load(keeper.look().machine)
    assert mended.loaded
    assert host.static_bytes()[:2] == before


def test_a_low_reservation_is_not_dumped(tmp_path: Path) -> None:
    kernel = FakeKernel(
        tmp_path,
        ram=[
            Range(0x1000, 0x9FBFF),
            Range(MIB, 0x7FFDEFFF),
            Range(4 * GIB, 8 * GIB - 1),
        ],
        reservation=Range(6 * GIB, 6 * GIB + 256 * MIB - 1),
        low_reservation=Range(0x6F000000, 0x7EFFFFFF),
        cpus=(0, 3),
    )
    host = FakeHost(tmp_path, kernel=kernel)
    keeper = host.load().keeper
    host.assert_complete()
    host.kernel.hot_add_memory(Range(8 * GIB, 9 * GIB - 1))
    mended = keeper.mend(keeper.look())
    assert mended.loaded
    assert mended.loaded.backend == "delta"
    host.assert_complete()
