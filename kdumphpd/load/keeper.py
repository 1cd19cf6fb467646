"""Looks at what is loaded, and mends what is not current, by the best way there is."""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass, replace

from kdumphpd.audit import read_back
from kdumphpd.audit.compare import Verdict, compare
from kdumphpd.errors import KdumphpdError, LoadError, MachineError
from kdumphpd.events.changes import Change, difference
from kdumphpd.header import elfcorehdr
from kdumphpd.image.parameter_block import ParameterBlock
from kdumphpd.load import duty, remembered
from kdumphpd.load.ladder import Obstacle, Rung, told
from kdumphpd.load.loader import Loaded, NotDoneError, OvertakenError, dropped
from kdumphpd.load.remembered import Remembered
from kdumphpd.load.rungs import Rungs
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.ranges import subtract
from kdumphpd.machine.snapshot import Machine, MachineReader


class State(enum.Enum):
    """What a look finds."""

    CURRENT = "current"  # an image of ours, its header describes the machine
    STALE = "stale"  # an image of ours, its header does not
    DAMAGED = "damaged"  # an image of ours, what it says of itself cannot be read
    FOREIGN = "foreign"  # an image that another program loaded
    UNLOADED = "unloaded"


@dataclass(frozen=True)
class Look:
    """One look at the machine and at what is loaded.

    Attributes:
        block: of our image; None if we did not make it or nothing is loaded.
        change: what the loaded header does not say yet; None without a readable header.
        image: what we had the kernel or a command load.
        managed: the kernel updates this image's header by itself (crash_hotplug).
    """

    machine: Machine
    state: State
    block: ParameterBlock | None = None
    change: Change | None = None
    image: Remembered | None = None
    managed: bool = False

    @property
    def ours(self) -> bool:
        """Whether the loaded image is there by our doing."""
        made = self.block is not None or self.image is not None
        return made or self.state is State.DAMAGED


@dataclass(frozen=True)
class Mended:
    """What came of an attempt to load.

    Attributes:
        loaded: the load that succeeded, or None.
        failed: the rungs that were tried before, and why each failed.
        armed: whether a crash kernel is loaded now.
        cause: the last failure, if nothing was loaded.
        dropped: whether an attempt had the kernel free the image that was loaded before.
        ruled_out: the better rungs that were not tried; all of them if the ladder has ended.
    """

    loaded: Loaded | None
    failed: tuple[Obstacle, ...]
    armed: bool
    cause: KdumphpdError | None = None
    dropped: bool = False
    ruled_out: tuple[Obstacle, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """What was tried before and why it failed, a clause each."""
        return told(self.failed)

    @property
    def text(self) -> str:
        """Every rung that was tried or ruled out, with its reason."""
        return "; ".join(told((*self.failed, *self.ruled_out)))

    @property
    def ran_command(self) -> bool:
        """Whether kdump's own command ran, with success or without."""
        loaded = self.loaded
        done = loaded is not None and loaded.backend == Rung.COMMAND.value and not loaded.kept
        return done or any(rung is Rung.COMMAND for rung, _ in self.failed)

    @property
    def busy(self) -> bool:
        """Whether another load was under way, so that nothing was changed."""
        busy = isinstance(self.cause, LoadError) and self.cause.errno == errno.EBUSY
        return busy and not self.dropped

    @property
    def overtaken(self) -> bool:
        """Whether another program loaded or unloaded an image meanwhile; nothing was changed."""
        return isinstance(self.cause, OvertakenError)

    def error(self) -> KdumphpdError:
        """The failure as one error, with the exit code of its cause."""
        armed = "the crash kernel that was loaded still is" if self.armed else "NOTHING is loaded"
        error = KdumphpdError("; ".join(filter(None, (self.text, armed))))
        if self.cause is not None:
            error.exit_code = self.cause.exit_code
        return error


class Keeper:
    """Keeps one host's crash image current."""

    def __init__(self, root: Root, reader: MachineReader, rungs: Rungs) -> None:
        self._root = root
        self._reader = reader
        self._rungs = rungs
        self._verified: ParameterBlock | None = None
        self._image: Remembered | None = None
        # The image that was asked about, and whether the kernel updates it.
        self._managed: tuple[object, bool] = (None, False)

    def look(self) -> Look:
        """Take a snapshot and compare the loaded header with it; hashes at most a MiB.

        Raises:
            MachineError: the machine or the image cannot be read.
        """
        machine = self._reader.snapshot()
        if not reservations.crash_loaded(self._root):
            return Look(machine, State.UNLOADED)
        encrypted = self._reader.encryption()
        if encrypted:
            raise MachineError(encrypted, "leave this host to the distribution's kdump")
        place = reservations.find(self._root, self._reader.resources()).main
        image = None
        with PhysicalMemory(self._root) as memory:
            block = read_back.find_own(memory, place)
            if block is not None:
                address, size = block.elfcorehdr.start, block.elfcorehdr.size
            elif read_back.is_torn(memory, place):
                return Look(machine, State.DAMAGED)
            else:
                image = self._image or remembered.recall(self._root)
                if image is None or not image.is_loaded(memory, place):
                    return Look(machine, State.FOREIGN)
                address, size = image.header, image.header_size
            live = read_back.read_header(memory, address, size)
        state = self._state(live, machine, made_by_us=block is not None)
        managed = self._is_managed(block or image, state)
        return Look(machine, state, block, self._change(live, machine), image, managed)

    def _state(self, live: bytes | None, machine: Machine, *, made_by_us: bool) -> State:
        if live == machine.header():
            return State.CURRENT
        if made_by_us and not reservations.can_be_updated(self._root):
            return State.STALE
        # The kernel writes its own bytes: every possible CPU, and ranges as it finds them.
        header = elfcorehdr.parse(live) if live is not None else None
        if header is None:
            return State.STALE
        # A CPU whose notes cannot be read yet cannot be missed yet.
        result = compare(header, replace(machine, missing_notes=()), self._reader.known_notes())
        return State.CURRENT if result.verdict is Verdict.COMPLETE else State.STALE

    def _is_managed(self, image: ParameterBlock | Remembered | None, state: State) -> bool:
        """Whether the kernel updates ``image``; asked once for each load, if it says yes."""
        known, managed = self._managed
        if known != image or (state is State.STALE and not managed):
            managed = reservations.kernel_updates(self._root)
            self._managed = (image, managed)
        return managed

    def matches(self, look: Look) -> bool:
        """Whether the loaded image is the one that the configuration asks for, and intact.

        It is built again with the loaded image's nonce and room: only the same
        kernel, initrd, command line and memory map give the same digest.
        """
        block = look.block
        if look.image is not None:
            return self._rungs.is_made_of(look.image)
        if block is None:
            return False
        wanted = self._rungs.loader.rebuilt(look.machine, block)
        same = wanted == block and self._intact(block)
        self._verified = block if same else None
        return same

    def mend(self, look: Look) -> Mended:
        """Make the loaded header current: a delta load if the image is ours, else all of it."""
        return self._climb(look.machine, look.block)

    def load(self, machine: Machine) -> Mended:
        """Load the whole image, whatever is loaded now."""
        return self._climb(machine, None)

    def adopt(self, machine: Machine) -> Mended:
        """Load the whole image in place of one that the host's kdump has loaded.

        Where kexec_load(2) is not to be had, another load would bring the same image and
        take the present one away meanwhile: a complete one stays.
        """
        way = self._rungs.route(own_image=False)
        if way.rungs and Rung.FULL not in way.rungs:
            taken = self._rungs.take(machine, way.rungs[0])
            if taken is not None:
                self._loaded(taken)
                return Mended(taken, (), armed=True, ruled_out=way.above(way.rungs[0]))
        return self.load(machine)

    def can_keep(self, look: Look) -> bool:
        """Whether what was looked at is ours, and can be mended should it become stale."""
        return look.ours and bool(self._rungs.route(own_image=look.block is not None).rungs)

    def _climb(self, machine: Machine, block: ParameterBlock | None) -> Mended:
        """Try one rung after the other; each that fails is followed by the next at once."""
        encrypted = self._reader.encryption()
        if encrypted:
            # It could not be read back, so not be told from damage.
            return self._not_loaded(MachineError(f"not loading: {encrypted}"))
        way = self._rungs.route(own_image=block is not None)
        failed = Mended(None, (), reservations.crash_loaded(self._root))
        for rung in way.rungs:
            duty.begin_load(self._root)
            try:
                loaded = self._try(rung, machine, block)
            except KdumphpdError as error:
                failed = self._failed(failed, rung, error)
                if failed.busy or failed.overtaken or not _climbs(failed):
                    return replace(failed, ruled_out=way.above(rung))
            else:
                self._loaded(loaded)
                return Mended(loaded, failed.failed, armed=True, ruled_out=way.above(rung))
        failed = replace(failed, ruled_out=way.ruled_out)
        return failed if failed.cause else replace(failed, cause=LoadError(failed.text))

    def _not_loaded(self, cause: KdumphpdError) -> Mended:
        every = tuple((rung, str(cause)) for rung in Rung)
        armed = reservations.crash_loaded(self._root)
        return Mended(None, (), armed, cause=cause, ruled_out=every)

    def _try(self, rung: Rung, machine: Machine, block: ParameterBlock | None) -> Loaded:
        if rung is Rung.DELTA and block is not None:
            if block != self._verified and not self._intact(block):
                # What another loader overwrote meanwhile is no damage.
                self._rungs.loader.expect(block)
                raise LoadError("the loaded image is damaged")
            return self._rungs.loader.delta(machine, block)
        return self._rungs.load(rung, machine)

    def _loaded(self, loaded: Loaded) -> None:
        self._verified = loaded.block
        self._image = loaded.image
        self._managed = (None, False)
        duty.settle(self._root)
        if loaded.image is None:
            remembered.forget(self._root)

    def _failed(self, before: Mended, rung: Rung, cause: KdumphpdError) -> Mended:
        self._verified = None
        armed = reservations.crash_loaded(self._root)
        if armed or isinstance(cause, OvertakenError):
            duty.settle(self._root)
        gone = before.dropped or dropped(cause) or (before.armed and not armed)
        tried = (*before.failed, (rung, str(cause)))
        return replace(before, failed=tried, armed=armed, cause=cause, dropped=gone)

    def _intact(self, block: ParameterBlock) -> bool:
        with PhysicalMemory(self._root) as memory:
            return read_back.intact(memory, block)

    def _change(self, live: bytes | None, machine: Machine) -> Change | None:
        header = elfcorehdr.parse(live) if live is not None else None
        if header is None:
            return None
        numbers = self._reader.known_notes()
        before = (numbers[note] for note in header.notes if note in numbers)
        # Some loaders list the first MiB too: no change.
        left_out = subtract(machine.all_ram, machine.ram)
        return difference(
            subtract(header.ram, left_out),
            machine.ram,
            before,
            machine.cpu_numbers,
            machine.fixed.memory_block_size,
        )


def _climbs(failed: Mended) -> bool:
    """Whether the next rung may do better: not where what is to be loaded cannot be used.

    With nothing loaded any image is better than none.
    """
    return not failed.armed or isinstance(failed.cause, (LoadError, NotDoneError, MachineError))
