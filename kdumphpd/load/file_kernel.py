"""Which kernel file kexec_file_load(2) is given, and asking whether it would be taken.

A unified kernel image is a PE file, and the kernel's loader knows a bzImage alone
(``bzImage64_probe`` in arch/x86/kernel/kexec-bzimage64.c): it says ENOEXEC, after it has
dropped what was loaded. kdumpctl (``load_kdump``, objcopy) and kexec-tools
(kexec/kexec-uki.c) give it the ``.linux`` section instead, and so do we.

Where a kernel takes the whole, it gets the whole: its signature is the one that the
firmware has checked at boot, whereas the kernel inside need not be signed at all. Under
lockdown or an IMA policy that decides whether it can be loaded, and without them what the
signature is worth. The kernel inside is a file of its own to the running kernel: whatever it
demands, it demands of that file, so the question is asked about the very descriptor that is
loaded then.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kdumphpd.errors import LoadError
from kdumphpd.image.files import ImageFile
from kdumphpd.image.source import ImageSource
from kdumphpd.load import probe
from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.load.file_placement import Misfit
from kdumphpd.load.loader import NotDoneError
from kdumphpd.load.syscalls import Kernel
from kdumphpd.machine.files import Root

_NO_FILE = -1
#: include/uapi/linux/memfd.h, since 6.3: vm.memfd_noexec=2 refuses every other memfd.
_MFD_NOEXEC_SEAL = 0x0008
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_MEANINGS = {
    errno.EPERM: "the kernel is locked down and the file has no signature that it trusts",
    errno.EACCES: "an IMA policy does not accept the file",
    errno.ENOKEY: "no key that the kernel trusts has signed it",
    errno.EKEYREJECTED: "the kernel does not trust its signature",
    errno.ENODATA: "it is not signed",
    errno.EBADMSG: "its signature is damaged",
    errno.ENOEXEC: "it is no kernel that the running one can load",
    errno.EBUSY: "another load is under way, try again",
    errno.ENOMEM: "the reservation is too small for it, enlarge crashkernel=",
    errno.EADDRNOTAVAIL: "the reservation is too small for it, enlarge crashkernel=",
    errno.ETXTBSY: "it is being written",
    errno.ENOSYS: "this kernel has no kexec_file_load(2) (CONFIG_KEXEC_FILE)",
}


@dataclass(frozen=True)
class Chosen:
    """What to hand over: ``fd``, after ``usec`` microseconds in which the kernel was asked."""

    fd: int
    usec: int


class KernelFile:
    """Asks the kernel about the configured kernel file; arguments as `HostLoader`."""

    def __init__(
        self, root: Root, kernel: Kernel, source: ImageSource, clock: Callable[[], int]
    ) -> None:
        self._root = root
        self._kernel = kernel
        self._source = source
        self._clock = clock
        self._no_kernel: bytes | None = None  # digest of a whole that met ENOEXEC

    @contextlib.contextmanager
    def chosen(self, *, armed: bool) -> Iterator[Chosen]:
        """The file to load; closes what it has made for that.

        Args:
            armed: an image is loaded, which a refusal would cost; then the kernel has
                been asked whether it takes the file, and does.

        Raises:
            NotDoneError: the kernel would refuse it, or cannot be asked.
            ImageError: a unified kernel image whose kernel cannot be had.
        """
        whole = self._source.files()[0]
        inside = self._source.kernel_inside()
        if inside is None:
            yield Chosen(whole.fd, self._ask(whole.fd) if armed else 0)
            return
        with inside:
            began = self._clock()
            if self._takes_whole(whole):
                yield Chosen(whole.fd, self._clock() - began)
                return
            usec = self._clock() - began
            fd = _sealed(inside)
        try:
            yield Chosen(fd, usec + (self._ask(fd) if armed else 0))
        finally:
            os.close(fd)

    def _takes_whole(self, whole: ImageFile) -> bool:
        """Whether the kernel takes a unified kernel image as it is; asked once for a file."""
        if whole.digest_as_read == self._no_kernel or not self._can_be_asked():
            return False
        refusal = self._refusal(whole.fd)
        if refusal is None:
            return True
        if refusal.errno == errno.EBUSY:
            raise refusal
        if refusal.errno == errno.ENOEXEC:
            self._no_kernel = whole.digest_as_read
        return False

    def _ask(self, kernel_fd: int) -> int:
        """Have the kernel read and check the file without touching what is loaded.

        Returns:
            Microseconds it took: the kexec lock is held meanwhile, and a panic dumps nothing.

        Raises:
            NotDoneError: the kernel would refuse, or cannot be asked.
        """
        if not self._can_be_asked():
            if probe.lockdown(self._root) == "none":
                return 0
            raise NotDoneError(
                "whether the kernel accepts the file cannot be asked while"
                " kernel.kexec_load_limit_reboot is set, and being refused would disarm"
            )
        began = self._clock()
        refusal = self._refusal(kernel_fd)
        if refusal is None:
            return self._clock() - began
        if refusal.errno == errno.EBUSY:
            raise refusal
        path = self._source.spec.kernel
        raise NotDoneError(f"{path} is not accepted: {refusal}")

    def _can_be_asked(self) -> bool:
        # Each question would use one up.
        return probe.limit(self._root, "reboot") is None

    def _refusal(self, kernel_fd: int) -> LoadError | None:
        """Why the kernel would refuse the file; None if it would not.

        A load for a reboot (no KEXEC_FILE_ON_CRASH) whose initrd does not exist: the kernel is
        read and its signature verified first (kimage_file_prepare_segments), then the
        initrd is missed (EBADF), before anything takes the place of anything.
        """
        try:
            self._kernel.kexec_file_load(kernel_fd, _NO_FILE, b"", 0)
        except OSError as error:
            return None if error.errno == errno.EBADF else refusal_of(error)
        raise NotDoneError("the kernel loaded an image without an initrd for a reboot")


#: What it means if the reservation has no room (`kdumphpd.load.file_placement`).
_NO_ROOM = (errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EINVAL)


def refusal_of(error: OSError, misfit: Misfit | None = None) -> LoadError:
    """The kernel's refusal of a file load, with what it means.

    Args:
        error: of the system call.
        misfit: why no room was expected for it; None if it was.
    """
    number = error.errno or 0
    name = errno.errorcode.get(number, str(number))
    meaning = _MEANINGS.get(number, "")
    if misfit and number in _NO_ROOM:
        meaning = f"{misfit.problem}; {misfit.remedy}"
    return LoadError(f"kexec_file_load: {name} ({error.strerror})", meaning, number)


def _sealed(content: LockedBuffer) -> int:
    """A file in memory that holds ``content`` and can never be changed; the caller closes it.

    Sealed, so that what was asked about is what is loaded. No file on disk: the sandbox
    has none that others could not exchange, and nothing is left behind if we are killed.
    """
    try:
        fd = _memfd()
        try:
            with content.view() as whole:
                done = 0
                while done < len(whole):
                    with whole[done:] as rest:
                        done += os.write(fd, rest)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise NotDoneError(
            f"no file in memory for the kernel's {len(content)} bytes: {error.strerror}",
            "free some, or raise the service's MemoryMax=",
        ) from error
    return fd


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("vmlinuz", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("vmlinuz", flags)
