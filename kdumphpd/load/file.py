"""The ``file`` rung: one kexec_file_load(2), and reading back what the kernel made of it.

The kernel drops the loaded image before it looks at the files (kernel/kexec_file.c,
SYSCALL_DEFINE5(kexec_file_load)): a kernel whose signature it does not accept would leave
the host without a crash kernel. So everything that can be checked is checked first, the
signature by asking the kernel about the same file without meaning the crash image
(`kdumphpd.load.file_kernel`), the room by looking for it as the kernel does
(`kdumphpd.load.file_placement`).
"""

from __future__ import annotations

import functools
import hashlib

from kdumphpd.audit import read_back
from kdumphpd.audit.compare import Verdict, compare
from kdumphpd.audit.read_back import FoundHeader
from kdumphpd.errors import LoadError, PermissionMissingError
from kdumphpd.header import elfcorehdr
from kdumphpd.header.elf import EHDR
from kdumphpd.image.boot_params import check_command_line
from kdumphpd.image.layout import page_up
from kdumphpd.image.plan import complete_command_line
from kdumphpd.load import file_needs, file_placement, remembered
from kdumphpd.load.file_kernel import KernelFile, refusal_of
from kdumphpd.load.file_placement import Misfit
from kdumphpd.load.loader import HostLoader, Loaded, NoRoomError
from kdumphpd.load.remembered import Remembered
from kdumphpd.load.syscalls import KEXEC_FILE_ON_CRASH
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.ranges import Range
from kdumphpd.machine.snapshot import Machine, MachineReader, total_ram


class FileLoader(HostLoader):
    """Has the kernel load the configured files; arguments as `HostLoader`."""

    @functools.cached_property
    def _kernel_file(self) -> KernelFile:
        return KernelFile(self._root, self._kernel, self._source, self._clock)

    def load(self, machine: Machine) -> Loaded:
        """Load, read back and remember.

        Raises:
            KdumphpdError: nothing was changed (no LoadError), or the kernel refused or
                the image does not read back (LoadError): see whether one is loaded.
        """
        if not self._kernel.may_load():
            raise PermissionMissingError(
                "loading a crash kernel needs CAP_SYS_BOOT", "run kdumphpd as root"
            )
        armed = reservations.crash_loaded(self._root)
        command_line = self._command_line()
        digest = self.image_digest()  # has the files read, and opened anew if they were replaced
        misfit = self._misfit(machine, command_line)
        if misfit and armed:
            raise NoRoomError(f"not loading: {misfit.problem}", misfit.remedy)
        with self._kernel_file.chosen(armed=armed) as kernel:
            initrd = self._source.files()[1].fd
            try:
                usec = kernel.usec + self._kernel.kexec_file_load(
                    kernel.fd, initrd, command_line, KEXEC_FILE_ON_CRASH
                )
            except OSError as error:
                # With nothing to lose it was tried, and the kernel itself says whether it fits.
                raise refusal_of(error, misfit) from error
        live_at = self._clock()
        if not reservations.crash_loaded(self._root):
            raise LoadError("after the load, the kernel says that nothing is loaded")
        found = self._read_back(command_line)
        image, problem = remember(self._root, self._reservation(), "file", found, digest)
        problem = header_problem(found, machine, self._reader) or problem
        return Loaded("file", None, usec, live_at, image, problem)

    def image_digest(self) -> str:
        """What the configured image is made of, hexadecimal."""
        digest = hashlib.sha256()
        self._source.bound(self._reservation().size)
        for one in self._source.files():
            digest.update(one.digest())
        digest.update(self._command_line())
        return digest.hexdigest()

    def _command_line(self) -> bytes:
        return complete_command_line(self._source.spec.command_line, None).encode()

    def _misfit(self, machine: Machine, command_line: bytes) -> Misfit | None:
        """Why the kernel would find no place for it all; all else that it checks is checked.

        Raises:
            ImageError: the files or the command line cannot be used.
            MachineError: the running kernel does not say what is needed.
        """
        kernel = self._source.kernel(self._reader)
        place = self._reservation()
        initrd = self._source.files()[1].size()
        needs = file_needs.read(self._root, self._reader, machine, kernel, initrd, command_line)
        check_command_line(kernel, b" " * needs.arguments + command_line)
        return file_placement.misfit(place, needs, total_ram(self._root))

    def _read_back(self, command_line: bytes) -> FoundHeader:
        with PhysicalMemory(self._root) as memory:
            found = read_back.find_named(memory, self._reservation(), command_line)
        if found is None:
            raise LoadError("after the load, there is no header where the command line says so")
        return found

    def _reservation(self) -> Range:
        return reservations.find(self._root, self._reader.resources()).main


def header_problem(found: FoundHeader, machine: Machine, reader: MachineReader) -> str:
    """Why what was loaded does not describe ``machine``; empty if it does."""
    parsed = elfcorehdr.parse(found.content)
    if parsed is None:
        return f"the header at {found.address:#x} cannot be read"
    complete = compare(parsed, machine, reader.known_notes()).verdict is Verdict.COMPLETE
    return "" if complete else "its header does not describe the machine as it was just before"


def remember(
    root: Root, reservation: Range, backend: str, found: FoundHeader, image: str
) -> tuple[Remembered, str]:
    """Write down what has just been loaded; gives it and what went wrong with that, if anything."""
    size = max(len(found.content), reservations.elfcorehdr_size(root) + EHDR.size)
    size = min(page_up(size), reservation.end + 1 - found.address)
    place = Range(found.address, found.address + size - 1)
    with PhysicalMemory(root) as memory:
        seen = remembered.witness(memory, reservation, place)
    one = Remembered(remembered.boot_id(root), backend, found.address, size, seen, image)
    try:
        remembered.store(root, one)
    except LoadError as error:
        return one, str(error)
    return one, ""
