"""Full and delta loads, each read back before it is called done.

What is in the reservation outlives a load that does not name it: the kernel
copies the segments it is given and clears nothing else. So a second
``kexec_load(2)`` with the elfcorehdr alone and the same entry point re-arms the
whole image (``kernel/kexec.c``, do_kexec_load; ``kernel/kexec_core.c``,
kimage_load_crash_segment).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdumphpd.audit import read_back
from kdumphpd.errors import KdumphpdError, LoadError, MachineError, PermissionMissingError
from kdumphpd.header import elfcorehdr
from kdumphpd.image.layout import Room, control_pages, least_room, room_for
from kdumphpd.image.parameter_block import ParameterBlock
from kdumphpd.image.plan import ImagePlan, header_segment
from kdumphpd.image.source import ImageSource
from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.load.remembered import Remembered
from kdumphpd.load.segments import Segment, check
from kdumphpd.load.syscalls import (
    KEXEC_ARCH_X86_64,
    KEXEC_CRASH_HOTPLUG_SUPPORT,
    KEXEC_ON_CRASH,
    Kernel,
)
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.ranges import Range
from kdumphpd.machine.snapshot import Machine, MachineReader, total_ram

_FLAGS = KEXEC_ON_CRASH | KEXEC_ARCH_X86_64


class NotDoneError(KdumphpdError):
    """A load was not even tried, or did not hold; the next rung is due."""


class NoRoomError(KdumphpdError):
    """The reservation has no room for the image, whoever has the kernel load it."""


class OvertakenError(NotDoneError):
    """Another program loaded or unloaded an image since the look; its decision stands."""


class DamagedError(LoadError):
    """What the kernel says it loaded is not what lies in memory."""


@dataclass(frozen=True)
class Loaded:
    """A load that was read back and found whole.

    Attributes:
        backend: ``delta``, ``full``, ``file`` or ``command``.
        block: the parameter block of what is armed now, if we made it.
        unarmed_usec: microseconds in the system call.
        live_at: when it returned, in microseconds of the loader's clock.
        image: what to know it by if we did not make it.
        problem: what is not as it should be with it all the same; empty if nothing is.
        kept: it was there already, and was complete; nothing was loaded.
    """

    backend: str
    block: ParameterBlock | None
    unarmed_usec: int
    live_at: int
    image: Remembered | None = None
    problem: str = ""
    kept: bool = False


class HostLoader:
    """What every way of loading by a system call works with.

    Args:
        root: the host.
        kernel: makes the system calls.
        reader: reads the machine.
        source: the kernel, initrd and command line.
        clock: microseconds of CLOCK_MONOTONIC.
    """

    def __init__(
        self,
        root: Root,
        kernel: Kernel,
        reader: MachineReader,
        source: ImageSource,
        clock: Callable[[], int],
    ) -> None:
        self._root = root
        self._kernel = kernel
        self._reader = reader
        self._source = source
        self._clock = clock

    @property
    def reader(self) -> MachineReader:
        """Reads the machine."""
        return self._reader

    @property
    def clock(self) -> Callable[[], int]:
        """Microseconds of CLOCK_MONOTONIC."""
        return self._clock


class Loader(HostLoader):
    """Puts images of our making into the reservation of one host; arguments as `HostLoader`."""

    # Whether the kernel refused KEXEC_CRASH_HOTPLUG_SUPPORT once.
    _updates_refused = False
    # Bytes of the largest control pad with which a delta load left a damaged image.
    _overrun = 0

    def plan(self, machine: Machine, keep: ParameterBlock | None = None) -> ImagePlan:
        """Plan the image for ``machine``.

        Args:
            machine: the present snapshot.
            keep: take over this image's room for growth if it is enough, so that
                the plan is the one it was loaded from.
        """
        if keep is not None:
            kept = Room(keep.control_pad.size, keep.elfcorehdr.size)
            if not self._outgrown(machine, kept):
                return self._source.plan(self._root, self._reader, kept)
        generous, least = self._rooms(machine)
        try:
            return self._source.plan(self._root, self._reader, generous)
        except MachineError:
            # Room for growth must not keep an image out that fits without.
            return self._source.plan(self._root, self._reader, least)

    def _rooms(self, machine: Machine) -> tuple[Room, Room]:
        """The room for a new image that we would like, and the least it can do with."""
        reserve = elfcorehdr.reserve_size(
            machine.fixed.possible_cpus,
            len(machine.ram),
            reservations.elfcorehdr_size(self._root),
        )
        mapped = self._reader.mapped()
        return (
            room_for(machine.all_ram, mapped, reserve, self._overrun),
            least_room(mapped, reserve, self._overrun),
        )

    def _outgrown(self, machine: Machine, room: Room) -> str:
        """Why a load for ``machine`` does not stay within ``room``; empty if it does."""
        if room.pad <= self._overrun:
            return "the last delta load damaged the image, its control pad may be too small"
        size = len(machine.header()) + read_back.TRAILER_SIZE
        return room.outgrown(self.control_pages(), size)

    def control_pages(self) -> int:
        """Pages that the kernel takes for a load now, at the most."""
        return control_pages(self._reader.mapped())

    def full(self, machine: Machine) -> Loaded:
        """Load every segment in one call, with a fresh nonce.

        Raises:
            KdumphpdError: nothing was changed (no LoadError), or the kernel
                refused or the image does not read back (LoadError): see whether
                one is loaded.
        """
        self._check_permission()
        image = self._source.image(self.plan(machine), os.urandom(16))
        try:
            with LockedBuffer.of(_header(machine, image.block)) as header:
                segment = self._header_segment(image.block, header)
                usec = self._load((segment, *image.static), image.plan.entry)
                live_at = self._clock()
        finally:
            image.close()
        self._verify(machine, image.block)
        return Loaded("full", image.block, usec, live_at)

    def rebuilt(self, machine: Machine, block: ParameterBlock) -> ParameterBlock:
        """The block that the configured image would have with ``block``'s nonce and room."""
        image = self._source.image(self.plan(machine, keep=block), block.nonce)
        image.close()
        return image.block

    def delta(self, machine: Machine, block: ParameterBlock) -> Loaded:
        """Load the elfcorehdr alone over the armed image that ``block`` describes.

        Raises:
            NotDoneError: it would not be safe; nothing was changed. OvertakenError
                if that is because the image is no longer loaded.
            LoadError: as for `full`.
        """
        self._check_permission()
        self.expect(block)
        content = _header(machine, block)
        room = Room(block.control_pad.size, block.elfcorehdr.size)
        outgrown = self._outgrown(machine, room)
        if outgrown:
            raise NotDoneError(outgrown)
        with LockedBuffer.of(content) as header:
            segment = self._header_segment(block, header)
            usec = self._load((segment,), read_back.entry(block))
            live_at = self._clock()
        try:
            self._verify(machine, block)
        except DamagedError:
            # It may be that the kernel took more pages than we know of. The full load that
            # is due now mends it once; a larger pad keeps the next delta from doing it again.
            self._overrun = max(self._overrun, block.control_pad.size)
            raise
        return Loaded("delta", block, usec, live_at)

    def expect(self, block: ParameterBlock) -> None:
        """Raise OvertakenError unless the image that ``block`` describes is the loaded one."""
        with PhysicalMemory(self._root) as memory:
            if read_back.find_own(memory, self._reservation()) != block:
                raise OvertakenError("another program replaced the image just now")
        if not reservations.crash_loaded(self._root):
            raise OvertakenError("another program unloaded the image just now")

    def _check_permission(self) -> None:
        if not self._kernel.may_load():
            raise PermissionMissingError(
                "loading a crash kernel needs CAP_SYS_BOOT", "run kdumphpd as root"
            )

    def _reservation(self) -> Range:
        return reservations.find(self._root, self._reader.resources()).main

    def _wants_updates(self) -> bool:
        """Whether to have the kernel update the header by itself."""
        return not self._updates_refused and reservations.can_be_updated(self._root)

    def _header_segment(self, block: ParameterBlock, header: LockedBuffer) -> Segment:
        # The kernel writes a larger header only within the segment's memsz
        # (arch/x86/kernel/crash.c, arch_crash_handle_hotplug_event).
        if self._wants_updates():
            return Segment("elfcorehdr", header, block.elfcorehdr)
        return header_segment(block.elfcorehdr, header)

    def _load(self, segments: Sequence[Segment], entry: int) -> int:
        check(segments, entry, self._reservation(), total_ram(self._root))
        try:
            if self._wants_updates():
                try:
                    flags = _FLAGS | KEXEC_CRASH_HOTPLUG_SUPPORT
                    return self._kernel.kexec_load(entry, segments, flags)
                except OSError as error:
                    # 6.6 to 6.9 do not know the flag and say so before they touch anything
                    # (kexec_load_check); the segments themselves have just been checked.
                    if error.errno != errno.EINVAL:
                        raise
                    self._updates_refused = True
            return self._kernel.kexec_load(entry, segments, _FLAGS)
        except OSError as error:
            raise refusal(error) from error

    def _verify(self, machine: Machine, block: ParameterBlock) -> None:
        """Read everything back; LoadError if it is not as it was sent."""
        expected = _header(machine, block)
        with PhysicalMemory(self._root) as memory:
            if read_back.find_own(memory, self._reservation()) != block:
                raise LoadError("after the load, the parameter block is not there")
            live = memory.read(block.elfcorehdr.start, len(expected))
            # Where the kernel updates it, it may have done so by now; a look will tell.
            if live != expected and not (self._wants_updates() and elfcorehdr.parse(live)):
                raise LoadError("after the load, the elfcorehdr does not read back as sent")
            if not read_back.intact(memory, block):
                raise DamagedError("after the load, the image does not have its digest")
        if not reservations.crash_loaded(self._root):
            raise LoadError("after the load, the kernel says that nothing is loaded")


def _header(machine: Machine, block: ParameterBlock) -> bytes:
    return machine.header() + read_back.trailer(block)


_REMEDIES = {
    errno.EPERM: "lockdown, kernel.kexec_load_disabled or kernel.kexec_load_limit_panic forbids it",
    errno.EACCES: "an IMA policy demands signed kernels, for which kexec_load(2) has no room",
    errno.ENOSYS: "this kernel has no kexec_load(2) (CONFIG_KEXEC)",
    errno.EBUSY: "another load is under way, try again",
    errno.ENOMEM: "the reservation has no room for control pages, enlarge crashkernel=",
}


#: Refused before the loaded image is freed (kernel/kexec.c, kexec_load_check and the lock).
_HARMLESS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EBUSY)


def dropped(error: KdumphpdError) -> bool:
    """Whether ``error`` is a refusal for which the kernel freed the image that was loaded."""
    return isinstance(error, LoadError) and error.errno not in (0, *_HARMLESS)


def refusal(error: OSError) -> LoadError:
    """The kernel's refusal of a load, with what it means."""
    number = error.errno or 0
    name = errno.errorcode.get(number, str(number))
    return LoadError(f"kexec_load: {name} ({error.strerror})", _REMEDIES.get(number, ""), number)
