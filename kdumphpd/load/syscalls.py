"""The system calls of a load, and nothing else: constants, structures, thin wrappers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from kdumphpd.load.segments import MAX_SEGMENTS, Segment

#: arch/x86/entry/syscalls/syscall_64.tbl
_NR_KEXEC_LOAD = 246
_NR_KEXEC_FILE_LOAD = 320
#: include/uapi/linux/kexec.h
KEXEC_ON_CRASH = 0x00000001
KEXEC_CRASH_HOTPLUG_SUPPORT = 0x00000008
KEXEC_ARCH_X86_64 = 62 << 16
KEXEC_FILE_ON_CRASH = 0x00000002
#: A bit that no kernel knows, see `Kernel.kexec_file_load_refusal`.
_KEXEC_FILE_UNKNOWN = 0x40000000
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

    def kexec_file_load(
        self, kernel_fd: int, initrd_fd: int, command_line: bytes, flags: int
    ) -> int:
        """Load from files and return the microseconds it took; OSError if refused."""

    def kexec_load_refusal(self, flags: int) -> int:
        """The errno of a kexec_load that loads nothing: EINVAL if one would be permitted."""

    def kexec_file_load_refusal(self, flags: int) -> int:
        """The same for kexec_file_load."""

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
        # A function object of its own: argument types belong to the object.
        self._file_syscall = libc["syscall"]
        self._file_syscall.restype = ctypes.c_long
        self._file_syscall.argtypes = [
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_ulong,
            ctypes.c_char_p,
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

    def kexec_file_load(
        self, kernel_fd: int, initrd_fd: int, command_line: bytes, flags: int
    ) -> int:
        """Have the kernel read, place and load the files itself.

        Args:
            kernel_fd: the bzImage.
            initrd_fd: its initrd.
            command_line: without the final zero; the kernel adds elfcorehdr= (``setup_cmdline``
                in arch/x86/kernel/kexec-bzimage64.c).
            flags: `KEXEC_FILE_ON_CRASH`; without it what is loaded for a reboot is meant.

        Returns:
            Microseconds in the system call: how long nothing was loaded.

        Raises:
            OSError: the kernel refused; see kexec_file_load(2).
        """
        content = command_line + b"\0"
        with _realtime():
            began = time.monotonic_ns()
            result = self._file_syscall(
                _NR_KEXEC_FILE_LOAD, kernel_fd, initrd_fd, len(content), content, flags
            )
            code = ctypes.get_errno()
            taken = time.monotonic_ns() - began
        if result != 0:
            raise OSError(code, os.strerror(code))
        return taken // 1000

    def kexec_load_refusal(self, flags: int) -> int:
        """Ask for more segments than there can be.

        kernel/kexec.c, kexec_load_check: permission, LSM, lockdown and flags come first, then
        the number of segments, and then only the lock and the loaded image. So EINVAL
        means that everything else would be permitted. A permitted call counts in
        kernel.kexec_load_limit_panic (or, without `KEXEC_ON_CRASH`, _reboot).

        Returns:
            The errno.
        """
        result = self._syscall(_NR_KEXEC_LOAD, 0, MAX_SEGMENTS + 1, None, flags)
        return ctypes.get_errno() if result else 0

    def kexec_file_load_refusal(self, flags: int) -> int:
        """Ask with a flag that does not exist.

        kernel/kexec_file.c: permission comes first, then the flags (EINVAL), and then
        only the lock and the loaded image. Whether the kernel would take a certain file
        is another question. It counts in the limits as `kexec_load_refusal` does.

        Returns:
            The errno.
        """
        flags |= _KEXEC_FILE_UNKNOWN
        result = self._file_syscall(_NR_KEXEC_FILE_LOAD, -1, -1, 0, None, flags)
        return ctypes.get_errno() if result else 0

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
