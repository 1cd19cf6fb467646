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
from dataclasses import dataclass

from kdumphpd.load.probe import Allowed


class Rung(enum.Enum):
    """A way of loading; the value is KDUMPHPD_BACKEND."""

    DELTA = "delta"
    FULL = "full"
    FILE = "file"
    COMMAND = "command"


@dataclass(frozen=True)
class Route:
    """The rungs to try, best first, and why the ones above the first are left out."""

    rungs: tuple[Rung, ...]
    reasons: tuple[str, ...] = ()


def route(
    allowed: Allowed, *, own_image: bool, needs_file_load: str = "", command: bool = False
) -> Route:
    """The way up from what the host permits.

    Args:
        allowed: what it permits.
        own_image: an image of ours is loaded; a delta needs one to build on.
        needs_file_load: why kexec_load(2) cannot carry the image; empty if it can.
        command: whether a command is known.
    """
    if allowed.firmware_dump:
        closed = (allowed.firmware_dump,)
        return Route((Rung.COMMAND,), closed) if command else Route((), (*closed, _NO_COMMAND))
    rungs: list[Rung] = []
    reasons: list[str] = []
    refusal = needs_file_load or allowed.kexec_load.reason
    if refusal:
        reasons.append(refusal)
    else:
        rungs += [Rung.DELTA, Rung.FULL] if own_image else [Rung.FULL]
    if allowed.kexec_file_load:
        rungs.append(Rung.FILE)
    elif not rungs and allowed.kexec_file_load.reason not in reasons:
        reasons.append(allowed.kexec_file_load.reason)
    if command:
        rungs.append(Rung.COMMAND)
    elif not rungs:
        reasons.append(_NO_COMMAND)
    return Route(tuple(rungs), tuple(reasons))


_NO_COMMAND = "no command is configured ([update] command)"
