"""A whole host made of files: the fake kernel, a crash kernel and initrd, a configuration, a clock.

::

    host = FakeHost(tmp_path)                  # a q35 guest, nothing loaded
    parts = host.open()                        # what kdumphpd.host puts together, on it
    service = host.service()                   # records go to host.records
    host.assert_complete()                     # what a crash now would find, by pyelftools
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import structlog

from kdumphpd.adopter import Adopter
from kdumphpd.audit.audit import Audit, audit
from kdumphpd.distribution.hotplug_rules import RulesKeeper
from kdumphpd.distribution.unit_state import UnitState
from kdumphpd.distribution.watch import Changed
from kdumphpd.events.monitor import Drained, Uevent
from kdumphpd.host import Host, open_host
from kdumphpd.image.parameter_block import ParameterBlock, parse_end
from kdumphpd.machine.ranges import Range, merge
from kdumphpd.machine.snapshot import MachineReader
from kdumphpd.report.fields import Details
from kdumphpd.report.journal import Reporter
from kdumphpd.report.records import Kind, Priority
from kdumphpd.service import Service
from tests.unit import fake_files
from tests.unit.fake_kernel import MIB, FakeKernel
from tests.unit.synthetic import SyntheticBzImage

PAGE = 4096
GIB = 1 << 30
CONFIG = Path("/etc/kdumphpd/kdumphpd.toml")
KERNEL = "/boot/vmlinuz"
INITRD = "/boot/initrd"
COMMAND_LINE = "root=/dev/vda1 ro console=ttyS0,115200 irqpoll nr_cpus=1 reset_devices"
#: Where hot-added DIMMs come to lie.
DIMM = Range(0x100000000, 0x17FFFFFFF)
OTHER_DIMM = Range(0x180000000, 0x1FFFFFFFF)
_HLT = b"\xf4"
_ENTRY = 0x200
_SECTOR = 512


class Clock:
    """Microseconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * 1e6)


@dataclass(frozen=True)
class Entry:
    """One record as the journal would get it."""

    kind: Kind
    message: str
    priority: Priority
    details: Details


class Records(list[Entry]):
    """What was recorded, oldest first; the last structlog processor.

    Args:
        armed: whether a crash kernel is loaded, for ``lies``: records that say otherwise.
    """

    def __init__(self, armed: Callable[[], bool]) -> None:
        super().__init__()
        self.armed = armed
        self.lies: list[Entry] = []

    def __call__(
        self, logger: Any, method_name: str, event_dict: MutableMapping[str, Any]
    ) -> NoReturn:
        self.append(
            Entry(
                event_dict["kind"],
                event_dict["event"],
                event_dict["priority"],
                event_dict["details"],
            )
        )
        armed = event_dict["details"].armed
        self.lies += [self[-1]] if armed not in (None, self.armed()) else []
        raise structlog.DropEvent

    @property
    def kinds(self) -> list[Kind]:
        return [one.kind for one in self]

    def of(self, *kinds: Kind) -> list[Entry]:
        return [one for one in self if one.kind in kinds]


class Rules:
    """Stands in for udev: whether the hotplug rules are ours now, and every call."""

    def __init__(self) -> None:
        self.ours = False
        self.problem = ""
        self.calls: list[str] = []

    def take_over(self) -> str:
        self.calls.append("take over")
        self.ours = not self.problem
        return self.problem

    def give_back(self) -> str:
        self.calls.append("give back")
        self.ours = False
        return ""


class Hints:
    """Stands in for inotify: which files are watched, and what a test says of them."""

    def __init__(self) -> None:
        self.watched: frozenset[Path] = frozenset()
        self.opening: frozenset[Path] = frozenset()
        self._changed = Changed(frozenset(), lost=False)

    def say(self, changed: Changed) -> None:
        """At the next `drain`."""
        before = self._changed
        self._changed = Changed(
            before.paths | changed.paths,
            before.lost or changed.lost,
            before.opened | changed.opened,
        )

    def watch(self, paths: Iterable[Path], opening: Iterable[Path] = ()) -> None:
        self.watched, self.opening = frozenset(paths), frozenset(opening)

    def drain(self) -> Changed:
        changed, self._changed = self._changed, Changed(frozenset(), lost=False)
        return changed


class FakeHost:
    """See the module's docstring."""

    def __init__(
        self,
        directory: Path,
        *,
        cpus: Sequence[int] = (0, 1),
        possible: int = 8,
        crashkernel: int = 256 * MIB,
        kernel: FakeKernel | None = None,
    ) -> None:
        self.kernel = kernel or FakeKernel.q35(
            directory, crashkernel=crashkernel, cpus=cpus, possible=possible
        )
        self.root = self.kernel.root
        self.clock = Clock()
        self.records = Records(lambda: self.kernel.loaded)
        self.rules = Rules()
        self.hints = Hints()
        self.unit = UnitState.UNKNOWN
        self.asked_units: list[str] = []
        self.write(KERNEL, bzimage())
        self.write(INITRD, bytes(range(251)) * 800)
        self.configure()

    # --- files -------------------------------------------------------------------------

    def write(self, name: str, content: str | bytes) -> Path:
        """Replace a file in one step, as a package manager does."""
        path = self.root.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".new")
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        beside.replace(path)
        return path

    def configure(self, more: str = "", command_line: str = COMMAND_LINE) -> None:
        self.write(
            str(CONFIG),
            f'[image]\nsource = "explicit"\nkernel = "{KERNEL}"\ninitrd = "{INITRD}"\n'
            f'command_line = "{command_line}"\n{more}',
        )

    # --- the product on it -------------------------------------------------------------

    def open(self) -> Host:
        # On a live host the name is the user's, who is not in the tree.
        config = self.root.path(str(CONFIG)) if self.root.is_live else CONFIG
        return open_host(self.root, self.kernel, config, self.clock)

    def service(self) -> Service:
        adopter = Adopter(self.clock, self.hints, self.state_of)
        rules = RulesKeeper(self.rules)
        return Service(self.open, Reporter(self.records), self.clock, adopter, rules)

    def state_of(self, unit: str) -> UnitState:
        """Stands in for systemctl; ``unit`` is what it says of kdump's service."""
        self.asked_units.append(unit)
        return self.unit

    def settle(self, service: Service, patience: float = 600) -> None:
        """Let the service do what is due, until the next thing is ``patience`` seconds away."""
        for _ in range(500):
            if service.deadline > self.clock.now + patience * 1e6:
                return
            self.clock.now = max(self.clock.now, service.deadline)
            service.turn()
        raise AssertionError(f"does not settle: {service.status}")

    def pass_time(self, service: Service, seconds: float) -> None:
        """Let time pass, and the service do what becomes due."""
        end = self.clock.now + int(seconds * 1e6)
        for _ in range(100_000):
            if service.deadline > end:
                break
            self.clock.now = max(self.clock.now, service.deadline)
            service.turn()
        self.clock.now = end

    def audit(self) -> Audit:
        return audit(self.root, MachineReader(self.root))

    def load(self) -> Host:
        """Open the host and load the whole image."""
        parts = self.open()
        mended = parts.keeper.load(parts.reader.snapshot())
        assert mended.loaded, mended.failures
        return parts

    # --- oracles -----------------------------------------------------------------------

    def block(self) -> ParameterBlock | None:
        """The parameter block in the reservation's last page, if ours was the last loader."""
        end = self.kernel.reservation.end + 1
        return parse_end(self.kernel.read_memory(end - 2 * PAGE, 2 * PAGE))

    def live_block(self) -> ParameterBlock:
        """The parameter block, which must be there."""
        block = self.block()
        assert block is not None
        return block

    def command_line(self) -> str:
        """What the purgatory hands over: by the block's boot_params and their cmd_line_ptr."""
        params = self._boot_params()
        low, high = (
            struct.unpack("<I", self.kernel.read_memory(params + at, 4))[0] for at in (0x228, 0xC8)
        )
        line = self.kernel.read_memory(high << 32 | low, PAGE)
        return line[: line.index(b"\0")].decode()

    def capture_ram(self) -> tuple[Range, ...]:
        """What the crash kernel takes for its RAM: by e820_table in the same boot_params."""
        params = self.kernel.read_memory(self._boot_params(), PAGE)
        entries = struct.iter_unpack("<QQI", params[0x2D0 : 0x2D0 + 20 * params[0x1E8]])
        return merge(Range(start, start + size - 1) for start, size, kind in entries if kind == 1)

    def _boot_params(self) -> int:
        """Their address, which the parameter block has."""
        end = self.kernel.reservation.end + 1
        return int(struct.unpack("<Q", self.kernel.read_memory(end - PAGE + 48, 8))[0])

    def live_header(self) -> int:
        """Where the crash kernel would look: elfcorehdr= on its command line."""
        found = re.findall(r"(?:^| )elfcorehdr=([0-9]+)K(?= |$)", self.command_line())
        assert len(found) == 1
        return int(found[0]) << 10

    def machine_ram(self) -> tuple[Range, ...]:
        """What a vmcore must hold, from the fake's own books."""
        low = self.kernel.low_reservation
        holes = [
            Range(0, MIB - 1),
            self.kernel.reservation,
            *([low] if low else []),
            *self.kernel.cma,
        ]
        return merge(fake_files.without(self.kernel.ram, holes))

    def problem(self, *, exact: bool = True) -> str | None:
        """Why a crash now would not give the whole vmcore; None if it would.

        Notes of CPUs that are gone are empty and do no harm, but count if ``exact``.
        """
        found = self.kernel.crash(self.live_header())
        if found is None:
            return "nothing is loaded"
        kernel = self.kernel
        notes = sorted([*map(kernel.crash_notes, kernel.cpus), kernel.vmcoreinfo])
        if not set(notes) <= set(found.notes) or (exact and sorted(found.notes) != notes):
            return f"notes {found.notes}, not {notes}"
        text = [one for one in found.loads if one[1] >= fake_files.TEXT_MAP]
        ram = [one for one in found.loads if one[1] < fake_files.TEXT_MAP]
        if [(start, size) for start, _, size in text] != [(kernel.text.start, kernel.text.size)]:
            return f"text {text}"
        if any(vaddr != kernel.page_offset + start for start, vaddr, _ in ram):
            return f"virtual addresses {ram}"
        ranges = merge(Range(start, start + size - 1) for start, _, size in ram)
        return None if ranges == self.machine_ram() else f"RAM {ranges}, not {self.machine_ram()}"

    def assert_complete(self) -> None:
        assert self.problem() is None

    def static_bytes(self) -> tuple[bytes, ...]:
        """What the digest covers, as it lies in memory now."""
        block = self.block()
        assert block is not None
        return tuple(self.kernel.read_memory(one.start, one.size) for one in block.regions)

    def flip(self, address: int) -> None:
        """Flip one bit of memory."""
        self.kernel.write_memory(address, bytes((self.kernel.read_memory(address, 1)[0] ^ 4,)))


def uevents(count: int = 1, *, lost: bool = False) -> Drained:
    """What the monitor hands over after ``count`` uevents."""
    found = (Uevent("add", "memory", f"memory{number}", number) for number in range(count))
    return Drained(tuple(found), lost)


def bzimage(image: SyntheticBzImage | None = None) -> bytes:
    """A bzImage that halts at its 64-bit entry point."""
    image = image or SyntheticBzImage()
    content = bytearray(image.image())
    content[(image.setup_sects + 1) * _SECTOR + _ENTRY] = _HLT[0]
    return bytes(content)


def change(host: FakeHost, service: Service, count: int = 16) -> None:
    """A DIMM comes and its uevents arrive."""
    host.kernel.hot_add_memory(DIMM)
    service.uevents(uevents(count))
