"""The fake kernel against what was seen on real ones."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.load.segments import Segment
from kdumphpd.load.syscalls import KEXEC_ARCH_X86_64, KEXEC_ON_CRASH
from kdumphpd.machine.ranges import Range
from tests.unit import fake_files
from tests.unit.fake_crash_hotplug import CrashHotplugKernel
from tests.unit.fake_file_load import Ways
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_kexec import FILE_ON_CRASH
from tests.unit.synthetic import SyntheticBzImage

PAGE = 4096
MIB = 1 << 20
_FLAGS = KEXEC_ON_CRASH | KEXEC_ARCH_X86_64


def _segment(start: int, content: bytes, size: int = MIB) -> Segment:
    return Segment("elfcorehdr", LockedBuffer.of(content), Range(start, start + size - 1))


@pytest.mark.parametrize(("gbpages", "pages"), [(False, 36), (True, 5)])
def test_control_pages_at_32_gib(tmp_path: Path, gbpages: bool, pages: int) -> None:
    kernel = FakeKernel.q35(tmp_path, memory=32 << 30, gbpages=gbpages)
    start = kernel.reservation.start
    kernel.kexec_load(start + MIB, [_segment(start + MIB, b"header")], _FLAGS)
    assert kernel.control_pages == tuple(range(start, start + pages * PAGE, PAGE))


def test_a_pad_that_is_too_small_loses_what_lies_behind_it(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path, memory=32 << 30)
    start = kernel.reservation.start
    header = _segment(start + MIB, b"header")
    purgatory = Segment(
        "purgatory", LockedBuffer.of(b"p" * 100), Range(start + 32 * PAGE, start + 33 * PAGE - 1)
    )
    kernel.kexec_load(purgatory.place.start, [header, purgatory], _FLAGS)
    assert kernel.read_memory(purgatory.place.start, 100) == b"p" * 100
    kernel.kexec_load(purgatory.place.start, [header], _FLAGS)
    assert kernel.loaded
    assert kernel.read_memory(purgatory.place.start, 100) == b"\xcc" * 100


def test_the_rest_of_a_segment_is_zeros_and_other_memory_stays(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    start = kernel.reservation.start + MIB
    kernel.write_memory(start - 4, b"x" * (MIB + 8))
    kernel.kexec_load(start, [_segment(start, b"header")], _FLAGS)
    assert kernel.read_memory(start - 4, 12) == b"xxxxheader\0\0"
    assert kernel.read_memory(start + MIB - 4, 8) == b"\0\0\0\0xxxx"


@pytest.mark.parametrize(
    ("code", "before_free"), [(errno.EBUSY, True), (errno.ENOMEM, False), (errno.EFAULT, False)]
)
def test_only_an_early_failure_leaves_the_image(
    tmp_path: Path, code: int, before_free: bool
) -> None:
    kernel = FakeKernel.q35(tmp_path)
    kernel.foreign_load()
    start = kernel.reservation.start + MIB
    kernel.fail_next(code, before_free)
    with pytest.raises(OSError, match="Errno") as caught:
        kernel.kexec_load(start, [_segment(start, b"header")], _FLAGS)
    assert caught.value.errno == kernel.calls[-1].error == code
    assert kernel.loaded == before_free
    kernel.kexec_load(start, [_segment(start, b"header")], _FLAGS)
    assert kernel.loaded


def test_a_fault_comes_when_a_part_is_copied(tmp_path: Path) -> None:
    """kernel/kexec_core.c, kimage_load_crash_segment, copies page by page; in order."""
    kernel = FakeKernel.q35(tmp_path)
    start = kernel.reservation.start + MIB
    first, second = _segment(start, b"1" * MIB), _segment(start + MIB, b"2" * MIB)
    kernel.kexec_load(start, [first, second], _FLAGS)
    kernel.fail_next(errno.EFAULT, before_free=False)
    others = [_segment(start, b"3" * MIB), _segment(start + MIB, b"4" * (MIB // 2))]
    with pytest.raises(OSError, match="Errno"):
        kernel.kexec_load(start, others, _FLAGS)
    assert not kernel.loaded
    assert kernel.read_memory(start, MIB) == b"3" * (3 * MIB // 4) + b"1" * (MIB // 4)
    assert kernel.read_memory(start + MIB, MIB) == b"2" * MIB


def test_no_permission_and_the_load_limit_are_early(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    start = kernel.reservation.start + MIB
    kernel.load_limit = 1
    kernel.kexec_load(start, [_segment(start, b"header")], _FLAGS)
    with pytest.raises(PermissionError):
        kernel.kexec_load(start, [_segment(start, b"header")], _FLAGS)
    kernel.load_limit, kernel.permitted = -1, False
    with pytest.raises(PermissionError):
        kernel.kexec_load(start, [_segment(start, b"header")], _FLAGS)
    assert kernel.loaded
    assert not kernel.may_load()


def test_a_reservation_full_of_segments_has_no_room_for_control_pages(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    whole = _segment(kernel.reservation.start, b"", kernel.reservation.size)
    with pytest.raises(OSError, match="Errno") as caught:
        kernel.kexec_load(kernel.reservation.start, [whole], _FLAGS)
    assert caught.value.errno == errno.ENOMEM
    assert not kernel.loaded


@pytest.mark.parametrize("style", ["kexec_load", "kexec_file_load"])
def test_a_foreign_load_leaves_the_middle_alone(tmp_path: Path, style: str) -> None:
    kernel = FakeKernel.q35(tmp_path)
    first, last = kernel.reservation.start, kernel.reservation.end + 1 - MIB
    kernel.write_memory(first + MIB - 1, b"ab")
    kernel.write_memory(last - 1, b"yz")
    image = kernel.foreign_load(style)
    assert kernel.read_memory(first + MIB, 1) == b"b"
    assert kernel.read_memory(last - 1, 1) == b"y"
    assert kernel.read_memory(last, 1) == b"\xcc"
    assert kernel.read_memory(image.command_line, len(image.text)) == image.text
    found = kernel.crash(image.elfcorehdr)
    assert found is not None
    assert found.notes == (kernel.crash_notes(0), kernel.vmcoreinfo)
    high = sum(size for address, _, size in found.loads[1:] if address >= MIB)
    assert high == 0x7FEDF000 - kernel.reservation.size
    listed = min(address for address, _, _ in found.loads[1:]) < MIB
    assert listed == (style == "kexec_load")


def test_a_crash_finds_nothing_without_an_image_or_a_header(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    start = kernel.reservation.start + MIB
    assert kernel.crash(start) is None
    kernel.kexec_load(start, [_segment(start, b"no header")], _FLAGS)
    with pytest.raises(fake_files.NoVmcoreError):
        kernel.crash(start)


def test_hot_removal_of_a_part_splits_a_resource(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path, memory=6 << 30)
    kernel.hot_remove_memory(Range(5 << 30, (6 << 30) - 1))
    assert kernel.ram[-2:] == (Range(4 << 30, (5 << 30) - 1), Range(6 << 30, (8 << 30) - 1))
    with pytest.raises(ValueError, match="not all there"):
        kernel.hot_remove_memory(Range(5 << 30, (7 << 30) - 1))


@pytest.fixture
def file_kernel(tmp_path: Path) -> CrashHotplugKernel:
    """With an image that a load of files would cost."""
    kernel = CrashHotplugKernel.q35(tmp_path, crashkernel=64 * MIB)
    assert isinstance(kernel, CrashHotplugKernel)
    kernel.foreign_load("kexec_file_load")
    return kernel


def _file_load(kernel: CrashHotplugKernel, directory: Path, image: bytes, initrd: int) -> None:
    (directory / "vmlinuz").write_bytes(image)
    (directory / "initrd").write_bytes(b"i" * initrd)
    with (directory / "vmlinuz").open("rb") as one, (directory / "initrd").open("rb") as other:
        kernel.kexec_file_load(one.fileno(), other.fileno(), b"nr_cpus=1", FILE_ON_CRASH)


def test_a_load_of_files_is_placed_as_was_seen(
    file_kernel: CrashHotplugKernel, tmp_path: Path
) -> None:
    """Measured with dynamic debug: 6.1 leaves the last page alone, 6.12 does not."""
    end = file_kernel.reservation.end + 1
    for short in (False, True):
        file_kernel.ways = Ways(short_of_end=short)
        _file_load(file_kernel, tmp_path, SyntheticBzImage().image(), MIB)
        places = file_kernel.file_places
        assert places["elfcorehdr"].mem == file_kernel.reservation.start
        assert places["purgatory"].end == end - PAGE * short
        assert places["boot_params"].end == places["purgatory"].mem
        # The highest multiple of 2 MiB; the initrd lies in the gap above it, or below.
        assert places["kernel"].mem % (2 * MIB) == 0
        assert 0 <= places["boot_params"].mem - places["kernel"].end < 2 * MIB
        assert places["initrd"].end == places["kernel"].mem


@pytest.mark.parametrize(
    ("image", "initrd", "code"),
    [
        # kexec_locate_mem_hole, kernel/kexec_file.c: no hole
        (SyntheticBzImage(), 12 * MIB, errno.EADDRNOTAVAIL),
        (SyntheticBzImage(pref_address=0x7F000000), MIB, errno.EADDRNOTAVAIL),
        # kimage_alloc_control_pages at the end of kimage_file_alloc_init: no page
        # (elfcorehdr 113 pages, purgatory 5, boot_params 2, all the rest the initrd)
        (
            SyntheticBzImage(init_size=60 * MIB, kernel_alignment=PAGE),
            4 * MIB - 120 * PAGE,
            errno.ENOMEM,
        ),
        # sanity_check_segment_list, kernel/kexec_core.c: bufsz > memsz
        (SyntheticBzImage(init_size=0x10000, trailing=b"s" * 8192), MIB, errno.EINVAL),
        # bzImage64_probe
        (SyntheticBzImage(magic=b"HdrX"), MIB, errno.ENOEXEC),
        (SyntheticBzImage(xloadflags=1), MIB, errno.ENOEXEC),
    ],
)
def test_a_load_of_files_that_fails_has_freed_the_image(
    file_kernel: CrashHotplugKernel,
    tmp_path: Path,
    image: SyntheticBzImage,
    initrd: int,
    code: int,
) -> None:
    """kernel/kexec_file.c: kimage_free(xchg(&kexec_crash_image, NULL)) comes before all of it."""
    with pytest.raises(OSError, match=os.strerror(code)):
        _file_load(file_kernel, tmp_path, image.image(), initrd)
    assert not file_kernel.loaded


def test_keys_lie_anywhere(file_kernel: CrashHotplugKernel, tmp_path: Path) -> None:
    """kexec_random_range_start, kernel/kexec_file.c, since 6.16."""
    file_kernel.root.path("/sys/kernel/config/crash_dm_crypt_keys").mkdir(parents=True)
    file_kernel.root.path("/sys/kernel/config/crash_dm_crypt_keys/count").write_text("2\n")
    file_kernel.ways = Ways(keys_at=1000)
    _file_load(file_kernel, tmp_path, SyntheticBzImage(init_size=0x800000).image(), MIB)
    assert file_kernel.file_places["keys"].mem > file_kernel.file_places["elfcorehdr"].end
    file_kernel.ways = Ways(keys_at=32768)
    with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
        _file_load(file_kernel, tmp_path, SyntheticBzImage().image(), MIB)
