"""The system call's edge: what would reach the kernel. The call itself is never made here."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable

import pytest

from kdumphpd.load import syscalls
from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.load.segments import Segment
from kdumphpd.load.syscalls import KEXEC_ARCH_X86_64, KEXEC_ON_CRASH, LiveKernel
from kdumphpd.machine.ranges import Range

FLAGS = KEXEC_ON_CRASH | KEXEC_ARCH_X86_64


def kernel(answer: Callable[[int, int, int, int, int], int]) -> LiveKernel:
    """The real thing, but for the C library's syscall()."""
    live = LiveKernel()
    live._syscall = answer
    return live


@pytest.fixture
def segments() -> list[Segment]:
    return [
        Segment("elfcorehdr", LockedBuffer.of(b"header"), Range(0x6F600000, 0x6F600FFF)),
        Segment("purgatory", LockedBuffer.of(b"code" * 2048), Range(0x7EFFC000, 0x7EFFFFFF)),
    ]


def test_the_kernel_sees_the_segments(segments: list[Segment]) -> None:
    seen = []

    def answer(number: int, entry: int, count: int, table: object, flags: int) -> int:
        raw = ctypes.string_at(table, count * 32)  # type: ignore[arg-type]
        # struct kexec_segment: buf, bufsz, mem, memsz; eight bytes each on x86_64.
        rows = list(struct.iter_unpack("<QQQQ", raw))
        contents = [ctypes.string_at(buf, size) for buf, size, _, _ in rows]
        seen.append((number, entry, flags, [row[1:] for row in rows], contents))
        return 0

    usec = kernel(answer).kexec_load(0x7EFFC000, segments, FLAGS)
    assert usec >= 0
    assert seen == [
        (
            246,
            0x7EFFC000,
            0x3E0001,
            [(6, 0x6F600000, 0x1000), (8192, 0x7EFFC000, 0x4000)],
            [b"header", b"code" * 2048],
        )
    ]


def test_a_refusal_is_an_oserror_with_its_errno(segments: list[Segment]) -> None:
    def answer(*_: int) -> int:
        ctypes.set_errno(errno.EADDRNOTAVAIL)
        return -1

    with pytest.raises(OSError, match="assign requested address") as caught:
        kernel(answer).kexec_load(0, segments, FLAGS)
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("result", [0, -1])
def test_scheduling_is_as_before_afterwards(segments: list[Segment], result: int) -> None:
    during = []

    def answer(*_: int) -> int:
        during.append(os.sched_getscheduler(0))
        ctypes.set_errno(errno.EPERM)
        return result

    before = (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)
    live = kernel(answer)
    if result:
        with pytest.raises(PermissionError):
            live.kexec_load(0, segments, FLAGS)
    else:
        live.kexec_load(0, segments, FLAGS)
    assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == before
    # Best effort: a container may not have CAP_SYS_NICE.
    assert during[0] in (os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, before[0])


def test_the_capability_is_read_from_the_kernel() -> None:
    with open("/proc/self/status", encoding="ascii") as status:
        effective = next(line for line in status if line.startswith("CapEff:"))
    bits = bytes.fromhex(effective.split()[1])
    assert LiveKernel().may_load() is bool(bits[-3] & 0x40), "bit 22"
    assert syscalls.CAP_SYS_BOOT == 22


def file_kernel(answer: Callable[[int, int, int, int, bytes | None, int], int]) -> LiveKernel:
    live = LiveKernel()
    live._file_syscall = answer
    return live


def test_the_kernel_sees_the_files_and_the_ended_command_line() -> None:
    seen = []

    def answer(*arguments: object) -> int:
        seen.append(arguments)
        return 0

    assert file_kernel(answer).kexec_file_load(7, 8, b"irqpoll", syscalls.KEXEC_FILE_ON_CRASH) >= 0
    assert seen == [(320, 7, 8, 8, b"irqpoll\0", 2)]


def test_a_refused_file_is_an_oserror_with_its_errno() -> None:
    def answer(*_: object) -> int:
        ctypes.set_errno(errno.EKEYREJECTED)
        return -1

    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what counts
        file_kernel(answer).kexec_file_load(7, 8, b"", 2)
    assert caught.value.errno == errno.EKEYREJECTED


def test_what_is_asked_to_learn_of_refusals_can_load_nothing() -> None:
    seen: list[tuple[object, ...]] = []

    def answer(*arguments: object) -> int:
        seen.append(arguments)
        ctypes.set_errno(errno.EINVAL)
        return -1

    live = kernel(answer)  # type: ignore[arg-type]
    live._file_syscall = answer
    assert live.kexec_load_refusal(FLAGS) == errno.EINVAL
    assert live.kexec_file_load_refusal(0) == errno.EINVAL
    load, file = seen
    assert load == (246, 0, 17, None, FLAGS), "one more than KEXEC_SEGMENT_MAX"
    # include/linux/kexec.h: KEXEC_FILE_FLAGS has only low bits.
    assert file[:5] == (320, -1, -1, 0, None)
    assert isinstance(file[5], int)
    assert file[5] & ~0xFFFF
