"""Headers of images that are not ours: as the kernel lists its segments, or by searching."""

from __future__ import annotations

from kdumphpd.audit import read_back
from kdumphpd.audit.read_back import FoundHeader
from kdumphpd.distribution.armed import read_armed
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.ranges import Range


def live_headers(root: Root, memory: PhysicalMemory, reservation: Range) -> tuple[FoundHeader, ...]:
    """Headers that a crash now might use; with other contents than one where that is not known.

    An earlier image's header can still be there with the command line that names it. Which
    image is armed only the kernel knows, and it does not show that to everybody.
    """
    armed = read_armed(root, memory, memory.address_map(), (reservation,))
    for segment in armed.segments if armed else ():
        content = read_back.read_header(memory, segment.start, segment.size)
        if content is not None:
            return (FoundHeader(segment.start, content),)
    return read_back.find_foreign(memory, reservation)
