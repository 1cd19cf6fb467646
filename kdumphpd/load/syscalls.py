"""The system calls of a load, and nothing else: constants, structures, thin wrappers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from kdumphpd.load.segments import Segment

#: arch/x86/entry/syscalls/syscall_64.tbl
_NR_KEXEC_LOAD = 246
#: include/uapi/linux/kexec.h
KEXEC_ON_CRASH = 0x00000001
KEXEC_ARCH_X86_64 = 62 << 16
#: include/uapi/linux/capability.h
CAP_SYS_BOOT = 22


class _KexecSegment(ctypes.Structure):
    # struct kexec_segment { const void *buf; size_t bufsz; const void *mem; size_t memsz; };
    # include/uapi/linux/kexec.h
    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("bufsz", ctypes.c_size_t),
        ("mem", ctypes.c_void_p),
        ("memsz", ctypes.c_size_t),
    )


class Kernel(Protocol):
    """What a load asks of the kernel; the tests have one of their own."""

    def kexec_load(self, entry: int, segments: Sequence[Segment], flags: int) -> int:
        """Load ``segments`` and return the microseconds it took; OSError if refused."""

    def may_load(self) -> bool:
        """Whether this process has CAP_SYS_BOOT."""


class LiveKernel:
    """The running kernel."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._syscall = libc.syscall
        self._syscall.restype = ctypes.c_long
        self._syscall.argtypes = [
            ctypes.c_long,
            ctypes.c_ulong,
            ctypes.c_ulong,
            ctypes.c_void_p,
            ctypes.c_ulong,
        ]
        self._mlock = libc.mlock
        self._mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._munlock = libc.munlock
        self._munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def kexec_load(self, entry: int, segments: Sequence[Segment], flags: int) -> int:
        """Load with buffers locked and real-time scheduling for the call.

        Returns:
            Microseconds in the system call: how long nothing was loaded.

        Raises:
            OSError: the kernel refused; see kexec_load(2).
        """
        entries = [
            _KexecSegment(one.content.address, one.size, one.place.start, one.place.size)
            for one in segments
        ]
        table = (_KexecSegment * len(entries))(*entries)
        with self._locked(segments), _realtime():
            began = time.monotonic_ns()
            result = self._syscall(_NR_KEXEC_LOAD, entry, len(segments), table, flags)
            code = ctypes.get_errno()
            taken = time.monotonic_ns() - began
        if result != 0:
            raise OSError(code, os.strerror(code))
        return taken // 1000

    def may_load(self) -> bool:
        """Whether this process has CAP_SYS_BOOT (``CapEff``, proc(5))."""
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> CAP_SYS_BOOT & 1)
        return False

    @contextlib.contextmanager
    def _locked(self, segments: Sequence[Segment]) -> Iterator[None]:
        # Best effort: without CAP_IPC_LOCK the pages are merely likely to stay.
        for one in segments:
            self._mlock(one.content.address, one.size)
        try:
            yield
        finally:
            for one in segments:
                self._munlock(one.content.address, one.size)


@contextlib.contextmanager
def _realtime() -> Iterator[None]:
    # The call reschedules (cond_resched in kernel/kexec_core.c, kimage_load_crash_segment)
    # while no image is loaded. Best effort: without CAP_SYS_NICE it runs as it is.
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)
