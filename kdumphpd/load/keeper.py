"""Looks at what is loaded, and mends what is not current: a delta load, else a full one."""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass

from kdumphpd.audit import read_back
from kdumphpd.errors import KdumphpdError, LoadError
from kdumphpd.events.changes import Change, difference
from kdumphpd.header import elfcorehdr
from kdumphpd.image.parameter_block import ParameterBlock
from kdumphpd.load.loader import Loaded, Loader, OvertakenError, dropped
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.snapshot import Machine, MachineReader


class State(enum.Enum):
    """What a look finds."""

    CURRENT = "current"  # our image, its header describes the machine
    STALE = "stale"  # our image, its header does not
    FOREIGN = "foreign"  # an image that another program loaded
    UNLOADED = "unloaded"


@dataclass(frozen=True)
class Look:
    """One look at the machine and at what is loaded.

    Attributes:
        block: of our image; None if it is not ours or nothing is loaded.
        change: what the loaded header does not say yet; None without a readable header.
    """

    machine: Machine
    state: State
    block: ParameterBlock | None = None
    change: Change | None = None


@dataclass(frozen=True)
class Mended:
    """What came of an attempt to load.

    Attributes:
        loaded: the load that succeeded, or None.
        failures: what was tried before and why it failed, a sentence each.
        armed: whether a crash kernel is loaded now.
        cause: the last failure, if nothing was loaded.
        dropped: whether an attempt had the kernel free the image that was loaded before.
    """

    loaded: Loaded | None
    failures: tuple[str, ...]
    armed: bool
    cause: KdumphpdError | None = None
    dropped: bool = False

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
        error = KdumphpdError("; ".join((*self.failures, armed)))
        if self.cause is not None:
            error.exit_code = self.cause.exit_code
        return error


class Keeper:
    """Keeps one host's crash image current."""

    def __init__(self, root: Root, reader: MachineReader, loader: Loader) -> None:
        self._root = root
        self._reader = reader
        self._loader = loader
        self._verified: ParameterBlock | None = None

    def look(self) -> Look:
        """Take a snapshot and compare the loaded header with it; hashes nothing."""
        machine = self._reader.snapshot()
        if not reservations.crash_loaded(self._root):
            return Look(machine, State.UNLOADED)
        place = reservations.find(self._root, self._reader.resources()).main
        with PhysicalMemory(self._root) as memory:
            block = read_back.find_own(memory, place)
            if block is None:
                return Look(machine, State.FOREIGN)
            live = read_back.read_header(memory, block.elfcorehdr.start, block.elfcorehdr.size)
        state = State.CURRENT if live == machine.header() else State.STALE
        return Look(machine, state, block, self._change(live, machine))

    def matches(self, look: Look) -> bool:
        """Whether the loaded image is the one that the configuration asks for, and intact.

        It is built again with the loaded image's nonce and room: only the same
        kernel, initrd, command line and memory map give the same digest.
        """
        block = look.block
        if block is None:
            return False
        wanted = self._loader.rebuilt(look.machine, block)
        same = wanted == block and self._intact(block)
        self._verified = block if same else None
        return same

    def mend(self, look: Look) -> Mended:
        """Make the loaded header current: a delta load if the image is ours, else a full one."""
        earlier: tuple[str, ...] = ()
        gone = False
        if look.block is not None:
            try:
                loaded = self._delta(look.machine, look.block)
            except KdumphpdError as error:
                failed = self._failed((f"delta: {error}",), error, dropped(error))
                if failed.busy or failed.overtaken:
                    return failed
                earlier, gone = failed.failures, failed.dropped
            else:
                self._verified = loaded.block
                return Mended(loaded, (), armed=True)
        return self._load(look.machine, earlier, gone)

    def load(self, machine: Machine) -> Mended:
        """Load the whole image, whatever is loaded now."""
        return self._load(machine, (), False)

    def _load(self, machine: Machine, earlier: tuple[str, ...], gone: bool) -> Mended:
        try:
            loaded = self._loader.full(machine)
        except KdumphpdError as error:
            return self._failed((*earlier, f"full: {error}"), error, gone or dropped(error))
        self._verified = loaded.block
        return Mended(loaded, earlier, armed=True)

    def _delta(self, machine: Machine, block: ParameterBlock) -> Loaded:
        if block != self._verified and not self._intact(block):
            # What another loader overwrote meanwhile is no damage.
            self._loader.expect(block)
            raise LoadError("the loaded image is damaged")
        return self._loader.delta(machine, block)

    def _failed(self, failures: tuple[str, ...], cause: KdumphpdError, gone: bool) -> Mended:
        self._verified = None
        return Mended(None, failures, reservations.crash_loaded(self._root), cause, gone)

    def _intact(self, block: ParameterBlock) -> bool:
        with PhysicalMemory(self._root) as memory:
            return read_back.intact(memory, block)

    def _change(self, live: bytes | None, machine: Machine) -> Change | None:
        header = elfcorehdr.parse(live) if live is not None else None
        if header is None:
            return None
        numbers = self._reader.known_notes()
        before = (numbers[note] for note in header.notes if note in numbers)
        return difference(
            header.ram,
            machine.ram,
            before,
            machine.cpu_numbers,
            machine.fixed.memory_block_size,
        )
