"""``/proc/iomem``: RAM that belongs into a vmcore, and the crash kernel's reservation.

Format (``kernel/resource.c``, ``r_show``): two blanks of indentation for each
level, then ``start-end : name`` in hexadecimal without a prefix, both
addresses included. Readers without CAP_SYS_ADMIN see zeros for every address.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kdumphpd.errors import MachineError, PermissionMissingError
from kdumphpd.machine.ranges import Range, merge, subtract

#: Kernels since 5.5 reserve the first MiB for themselves when crashkernel= is
#: given (arch/x86/kernel/setup.c, reserve_real_mode), so nothing in it is dumped.
LOW_MEMORY = Range(0, 0xFFFFF)

_LINE = re.compile(r"( *)([0-9a-f]{1,16})-([0-9a-f]{1,16}) : (.*)")


@dataclass(frozen=True)
class Resource:
    """One line of ``/proc/iomem``; ``depth`` is 0 for the top level."""

    range: Range
    name: str
    depth: int = 0


def parse(text: str) -> tuple[Resource, ...]:
    """Parse the whole of ``/proc/iomem``; lines of another form are passed over.

    Raises:
        PermissionMissingError: every address is zero, as for a reader without CAP_SYS_ADMIN.
        MachineError: there is no System RAM at all.
    """
    found = tuple(_resources(text))
    ram = [one for one in found if _is_ram(one)]
    if ram and all(one.range.end == 0 for one in ram):
        raise PermissionMissingError(
            "/proc/iomem shows zeros instead of addresses",
            "run kdumphpd as root with CAP_SYS_ADMIN",
        )
    if not ram:
        raise MachineError(
            "/proc/iomem lists no System RAM", "check that /proc is mounted and whole"
        )
    return found


def _resources(text: str) -> Iterable[Resource]:
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        start, end = int(match[2], 16), int(match[3], 16)
        if start <= end:
            yield Resource(Range(start, end), match[4], len(match[1]) // 2)


def _is_ram(resource: Resource) -> bool:
    # At any depth: "System RAM (virtio_mem)" lies below its device and
    # "System RAM (kmem)" below "Persistent Memory".
    return resource.name.startswith("System RAM")


def _named(resources: Iterable[Resource], name: str) -> tuple[Range, ...]:
    return tuple(one.range for one in resources if one.name == name)


def system_ram(resources: Iterable[Resource]) -> tuple[Range, ...]:
    """All RAM the kernel uses or used, hot-added memory of every driver too, merged."""
    return merge(one.range for one in resources if _is_ram(one))


def crash_kernel(resources: Iterable[Resource]) -> tuple[Range, ...]:
    """The ``crashkernel=`` reservations: none, one, or the low and the high one, sorted."""
    return merge(_named(resources, "Crash kernel"))


def dumpable_ram(resources: Iterable[Resource], cma: Iterable[Range] = ()) -> tuple[Range, ...]:
    """RAM that a vmcore must hold: all but the first MiB, the reservations and the GART.

    Args:
        resources: all of ``/proc/iomem``.
        cma: the reservation's part that it does not show; see `kdumphpd.machine.crash_cma`.
    """
    resources = tuple(resources)
    holes = (LOW_MEMORY, *crash_kernel(resources), *cma, *_named(resources, "GART"))
    return subtract(system_ram(resources), holes)
