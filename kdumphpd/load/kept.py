"""Images that kdump loaded and that stay: where we could only have the same loaded again."""

from __future__ import annotations

from collections.abc import Callable

from kdumphpd.audit.foreign import live_headers
from kdumphpd.audit.read_back import FoundHeader
from kdumphpd.errors import KdumphpdError, LoadError
from kdumphpd.load.file import header_problem, remember
from kdumphpd.load.ladder import Rung
from kdumphpd.load.loader import Loaded
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.ranges import Range
from kdumphpd.machine.snapshot import Machine, MachineReader

#: `kdumphpd.load.remembered.Remembered.backend` of such an image.
BY_KDUMP = "kdump"


def take(
    root: Root, reader: MachineReader, machine: Machine, rung: Rung, clock: Callable[[], int]
) -> Loaded | None:
    """What is loaded, remembered as if we had had it loaded; nothing is changed.

    Args:
        root: the host.
        reader: reads it.
        machine: as it is now.
        rung: what will load in its place when it has become stale.
        clock: microseconds of CLOCK_MONOTONIC.

    Returns:
        None if it is not complete, or if that cannot be told.
    """
    try:
        place = reservations.find(root, reader.resources()).main
        found = live_header(root, place)
        if header_problem(found, machine, reader):
            return None
        image, problem = remember(root, place, BY_KDUMP, found, "")
    except KdumphpdError:
        return None
    return Loaded(rung.value, None, 0, clock(), image, problem, kept=True)


def live_header(root: Root, reservation: Range) -> FoundHeader:
    """The header of an image that is not ours.

    Raises:
        LoadError: which one is live is not known.
    """
    with PhysicalMemory(root) as memory:
        found = live_headers(root, memory, reservation)
    if len({one.content for one in found}) != 1:
        text = f"{len(found)} headers are in memory, which one is live is not known"
        raise LoadError(text)
    return found[0]
