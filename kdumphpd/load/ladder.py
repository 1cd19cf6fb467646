"""Which ways of loading this host has, in the order in which they are tried.

===========  ==============================================================
``kernel``   the kernel updates the header itself; we repair what it leaves
``delta``    kexec_load(2) of the elfcorehdr alone over our own image
``full``     kexec_load(2) of everything
``file``     kexec_file_load(2): the kernel makes the image
``command``  a configured command, kdump's own as a rule
===========  ==============================================================

``kernel`` is no way of loading: it is the image that the kernel keeps by itself
(`kdumphpd.load.keeper.Look.managed`), whichever of the others loaded it.

Everything here is pure.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from kdumphpd.load.probe import Allowed


class Rung(enum.Enum):
    """A way of loading; the value is KDUMPHPD_BACKEND."""

    DELTA = "delta"
    FULL = "full"
    FILE = "file"
    COMMAND = "command"


_ORDER = tuple(Rung)
_NO_COMMAND = "none is configured ([update] command)"

#: A rung, and why it is not taken: a failure, or what rules it out.
Obstacle = tuple[Rung, str]


@dataclass(frozen=True)
class Route:
    """The rungs to try, best first, and why the others are ruled out."""

    rungs: tuple[Rung, ...]
    ruled_out: tuple[Obstacle, ...] = ()

    def above(self, rung: Rung) -> tuple[Obstacle, ...]:
        """What is ruled out and would be better than ``rung``."""
        limit = _ORDER.index(rung)
        return tuple(one for one in self.ruled_out if _ORDER.index(one[0]) < limit)


def route(
    allowed: Allowed,
    *,
    own_image: bool,
    no_kexec_load: str = "",
    no_file_load: str = "",
    command: bool = False,
) -> Route:
    """The way up from what the host permits.

    Args:
        allowed: what it permits.
        own_image: an image of ours is loaded; a delta needs one to build on.
        no_kexec_load: why kexec_load(2) may not load the image; empty if it may.
        no_file_load: the same for kexec_file_load(2).
        command: whether a command is known.
    """
    load = allowed.firmware_dump or no_kexec_load or allowed.kexec_load.reason
    refusals = {
        Rung.DELTA: load,
        Rung.FULL: load,
        Rung.FILE: allowed.firmware_dump or no_file_load or allowed.kexec_file_load.reason,
        Rung.COMMAND: "" if command else _NO_COMMAND,
    }
    return Route(
        tuple(one for one in Rung if not refusals[one] and (one is not Rung.DELTA or own_image)),
        tuple((one, refusals[one]) for one in Rung if refusals[one]),
    )


def told(obstacles: Iterable[Obstacle]) -> tuple[str, ...]:
    """A clause for each obstacle, in the ladder's order; rungs that share a reason share one."""
    ordered = sorted(obstacles, key=lambda one: _ORDER.index(one[0]))
    return tuple(
        f"{', '.join(rung.value for rung, _ in same)}: {reason}"
        for reason, same in groupby(ordered, key=lambda one: one[1])
    )
