"""Full and delta loads on the fake kernel, and what each leaves in memory."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kdumphpd.errors import ExitCode, LoadError, PermissionMissingError
from kdumphpd.load.loader import NotDoneError, OvertakenError, refusal
from kdumphpd.machine.ranges import Range
from tests.unit.fake_kernel import MIB, FakeKernel
from tests.unit.host_fixture import DIMM, GIB, KERNEL, PAGE, FakeHost, bzimage
from tests.unit.synthetic import SyntheticBzImage


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_a_full_load_describes_the_machine_as_it_is(host: FakeHost) -> None:
    parts = host.open()
    loaded = parts.loader.full(parts.reader.snapshot())
    (call,) = host.kernel.calls
    assert loaded.backend == "full"
    assert sorted(call.names) == ["boot_params", "elfcorehdr", "initrd", "kernel", "purgatory"]
    (purgatory,) = (one for one in call.places if one.name == "purgatory")
    assert host.kernel.entry == call.entry == purgatory.mem
    assert loaded.block == host.block()
    host.assert_complete()


def test_a_delta_load_passes_the_elfcorehdr_alone_with_the_same_entry(host: FakeHost) -> None:
    parts = host.load()
    before = host.static_bytes()
    host.kernel.hot_add_memory(DIMM)
    host.kernel.hot_add_cpu(5)
    block = host.block()
    assert block is not None
    loaded = parts.loader.delta(parts.reader.snapshot(), block)
    full, delta = host.kernel.calls
    assert loaded.backend == "delta"
    assert delta.names == ("elfcorehdr",)
    assert (delta.entry, delta.flags) == (full.entry, full.flags)
    assert delta.places[0].mem == block.elfcorehdr.start
    assert delta.places[0].memsz < block.elfcorehdr.size, "no more is copied than the header"
    assert host.static_bytes() == before
    assert host.block() == block
    host.assert_complete()


def test_control_pages_of_a_delta_stay_in_the_pad_with_much_memory(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    parts = host.load()
    before = host.static_bytes()
    block = host.block()
    assert block is not None
    host.kernel.hot_add_memory(Range(4 * GIB, 900 * GIB - 1))
    parts.loader.delta(parts.reader.snapshot(), block)
    assert len(host.kernel.control_pages) > 900, "without 1 GiB pages: one for each GiB"
    assert all(
        block.control_pad.contains(Range(page, page + PAGE - 1))
        for page in host.kernel.control_pages
    )
    assert host.static_bytes() == before
    host.assert_complete()


def test_a_machine_that_outgrew_the_pad_is_refused_before_anything_happens(
    host: FakeHost,
) -> None:
    parts = host.load()
    block = host.block()
    assert block is not None
    host.kernel.hot_add_memory(Range(4 * GIB, 3000 * GIB - 1))
    with pytest.raises(NotDoneError, match="memory has outgrown the control pad"):
        parts.loader.delta(parts.reader.snapshot(), block)
    assert len(host.kernel.calls) == 1
    loaded = parts.loader.full(parts.reader.snapshot())
    assert loaded.block.control_pad.size > block.control_pad.size
    assert set(host.kernel.control_pages) <= set(
        range(loaded.block.control_pad.start, loaded.block.control_pad.end, PAGE)
    )
    host.assert_complete()


def scattered(host: FakeHost, count: int) -> None:
    """Hot-add ``count`` ranges that do not touch; one by one it would take minutes."""
    kernel = host.kernel
    kernel._resources.extend(
        (Range(4 * GIB + number * 2 * MIB, 4 * GIB + number * 2 * MIB + MIB - 1), "System RAM")
        for number in range(count)
    )
    kernel._write_memory_files()


def test_a_header_that_outgrew_its_reserve_is_refused_before_anything_happens(
    host: FakeHost,
) -> None:
    parts = host.load()
    block = host.block()
    assert block is not None
    scattered(host, 8300)
    with pytest.raises(NotDoneError, match="the elfcorehdr has outgrown"):
        parts.loader.delta(parts.reader.snapshot(), block)
    assert len(host.kernel.calls) == 1
    loaded = parts.loader.full(parts.reader.snapshot())
    assert loaded.block.elfcorehdr.size > block.elfcorehdr.size
    host.assert_complete()


def test_a_delta_is_refused_over_a_foreign_image(host: FakeHost) -> None:
    parts = host.load()
    block = host.block()
    assert block is not None
    host.kernel.foreign_load()
    with pytest.raises(OvertakenError, match="replaced"):
        parts.loader.delta(parts.reader.snapshot(), block)
    assert len(host.kernel.calls) == 1


def test_a_delta_is_refused_with_nothing_loaded(host: FakeHost) -> None:
    parts = host.load()
    block = host.block()
    assert block is not None
    host.kernel.unload()
    with pytest.raises(OvertakenError, match="unloaded"):
        parts.loader.delta(parts.reader.snapshot(), block)
    assert not host.kernel.loaded


def test_a_delta_over_a_damaged_image_is_not_called_done(host: FakeHost) -> None:
    parts = host.load()
    block = host.block()
    assert block is not None
    host.flip(block.regions[1].end)
    with pytest.raises(LoadError, match="digest"):
        parts.loader.delta(parts.reader.snapshot(), block)


def test_without_the_capability_nothing_is_asked_of_the_kernel(host: FakeHost) -> None:
    parts = host.load()
    block = host.block()
    assert block is not None
    host.kernel.permitted = False
    with pytest.raises(PermissionMissingError, match="CAP_SYS_BOOT"):
        parts.loader.delta(parts.reader.snapshot(), block)
    with pytest.raises(PermissionMissingError, match="CAP_SYS_BOOT"):
        parts.loader.full(parts.reader.snapshot())
    assert len(host.kernel.calls) == 1
    assert host.kernel.loaded


@pytest.mark.parametrize(
    ("memory", "crashkernel", "enough"),
    [(288, 128, False), (384, 192, False), (384, 128, True), (512, 192, True)],
)
def test_half_of_the_memory_is_what_the_kernel_counts(
    tmp_path: Path, memory: int, crashkernel: int, enough: bool
) -> None:
    """sanity_check_segment_list goes by totalram_pages(): without the reservation itself."""
    kernel = FakeKernel.q35(tmp_path, memory=memory * MIB, crashkernel=crashkernel * MIB)
    host = FakeHost(tmp_path, kernel=kernel)
    host.write(KERNEL, bzimage(SyntheticBzImage(init_size=100 * MIB)))
    parts = host.open()
    if enough:
        parts.loader.full(parts.reader.snapshot())
        host.assert_complete()
    else:
        with pytest.raises(LoadError, match="half"):
            parts.loader.full(parts.reader.snapshot())
        assert not kernel.calls, "refused before the kernel dropped what it holds"


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EPERM, "lockdown"),
        (errno.EACCES, "IMA"),
        (errno.ENOSYS, "CONFIG_KEXEC"),
        (errno.EBUSY, "another load"),
        (errno.ENOMEM, "crashkernel="),
        (errno.EFAULT, "EFAULT"),
        (12345, "12345"),
    ],
)
def test_a_refusal_names_the_errno_and_what_it_means(number: int, hint: str) -> None:
    error = refusal(OSError(number, "as the C library says it"))
    assert hint in str(error)
    assert error.errno == number
    assert error.exit_code is ExitCode.LOAD_FAILED
