"""The audit: is what is loaded complete and intact, whoever loaded it?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from kdumphpd.audit import advice, read_back
from kdumphpd.audit.compare import Comparison, Difference, Verdict, compare
from kdumphpd.audit.foreign import live_headers
from kdumphpd.errors import KdumphpdError
from kdumphpd.header import elfcorehdr
from kdumphpd.image.parameter_block import ParameterBlock
from kdumphpd.image.plan import REGION_NAMES
from kdumphpd.load import remembered
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.ranges import Range
from kdumphpd.machine.snapshot import MachineReader


@dataclass(frozen=True)
class LiveHeader:
    """The header that a crash right now would use."""

    address: int
    size: int
    cpus: tuple[int, ...]
    notes: int
    memory: tuple[Range, ...]


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        verdict: would a crash right now give a complete vmcore?
        loaded: whether a crash image is loaded; None if that cannot be told.
        managed_by: ``kdumphpd``, ``kernel`` or ``other``; None if nothing is loaded.
        verified: whether the image's static part has its digest; None if it is not ours.
        segments: name and place of each part of our image.
        reasons: why the verdict is not `Verdict.COMPLETE`, a sentence each.
        do: what to do about that, a line each.
    """

    verdict: Verdict
    loaded: bool | None
    managed_by: str | None = None
    header: LiveHeader | None = None
    missing: Difference = field(default_factory=Difference)
    extra: Difference = field(default_factory=Difference)
    verified: bool | None = None
    segments: tuple[tuple[str, Range], ...] = ()
    reasons: tuple[str, ...] = ()
    do: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The contract's JSON object."""
        header = self.header
        return {
            "verdict": self.verdict.value,
            "loaded": self.loaded,
            "managed_by": self.managed_by,
            "header": header
            and {
                "address": header.address,
                "size": header.size,
                "cpus": list(header.cpus),
                "notes": header.notes,
                "memory": _pairs(header.memory),
            },
            "missing": _difference(self.missing),
            "extra": _difference(self.extra),
            "image": {
                "verified": self.verified,
                "segments": [
                    {"name": name, "address": place.start, "size": place.size}
                    for name, place in self.segments
                ],
            },
            "reasons": list(self.reasons),
            "do": list(self.do),
        }


def _pairs(ranges: tuple[Range, ...]) -> list[list[int]]:
    return [[one.start, one.end] for one in ranges]


def _difference(one: Difference) -> dict[str, Any]:
    return {"cpus": list(one.cpus), "memory": _pairs(one.memory)}


def audit(
    root: Root,
    reader: MachineReader,
    *,
    verify: bool = True,
    state_of: advice.StateOf = advice.unknown_state,
) -> Audit:
    """Read back what is loaded and compare it with the machine as it is now.

    Args:
        root: the host.
        reader: takes the snapshot.
        verify: hash the static part too; without it ``verified`` stays None.
        state_of: gives the state of a unit, to say why nothing is loaded.
    """
    loaded: bool | None = None
    try:
        loaded = reservations.crash_loaded(root)
        if not loaded:
            why, do = advice.unloaded(root, state_of)
            reasons = ("no crash kernel is loaded", why)
            return Audit(Verdict.UNLOADED, loaded, reasons=reasons, do=(do,))
        encrypted = reader.encryption()
        if encrypted:
            do = advice.encrypted()
            return Audit(Verdict.UNKNOWN, loaded, _manager(root), reasons=(encrypted,), do=(do,))
        found = _audit_loaded(root, reader, verify)
    except KdumphpdError as error:
        return Audit(Verdict.UNKNOWN, loaded, reasons=(str(error),), do=(advice.of_error(error),))
    if found.verdict is Verdict.COMPLETE:
        return found
    return replace(found, do=advice.load_again(root, found.managed_by, found.verdict))


def _audit_loaded(root: Root, reader: MachineReader, verify: bool) -> Audit:
    place = reservations.find(root, reader.resources()).main
    with PhysicalMemory(root) as memory:
        block = read_back.find_own(memory, place)
        if block is None and read_back.is_torn(memory, place):
            reason = "the image's parameter block is damaged, or another version of kdumphpd's"
            return Audit(Verdict.DAMAGED, True, "kdumphpd", verified=False, reasons=(reason,))
        if block is None:
            image = remembered.recall(root)
            if image is None or not image.is_loaded(memory, place):
                return _audit_foreign(root, reader, memory, place)
            content = read_back.read_header(memory, image.header, image.header_size)
            return _verdict(reader, image.header, content or b"", "kdumphpd", None, ())
        verified = read_back.intact(memory, block) if verify else None
        address = block.elfcorehdr.start
        content = read_back.read_header(memory, address, block.elfcorehdr.size)
    parts = _own_parts(block)
    if verified is False:
        reason = "the loaded image has changed in memory, the purgatory would not start it"
        return Audit(
            Verdict.DAMAGED, True, "kdumphpd", verified=False, segments=parts, reasons=(reason,)
        )
    if content is None:
        reason = f"there is no ELF core header at {address:#x}"
        return Audit(
            Verdict.DAMAGED, True, "kdumphpd", verified=verified, segments=parts, reasons=(reason,)
        )
    return _verdict(reader, address, content, "kdumphpd", verified, parts)


def _own_parts(block: ParameterBlock) -> tuple[tuple[str, Range], ...]:
    named = zip(REGION_NAMES, block.regions)
    return (("elfcorehdr", block.elfcorehdr), *named)


def _manager(root: Root) -> str:
    """Who keeps an image that is not ours."""
    return "kernel" if reservations.kernel_updates(root) else "other"


def _audit_foreign(
    root: Root, reader: MachineReader, memory: PhysicalMemory, place: Range
) -> Audit:
    manager = _manager(root)
    found = live_headers(root, memory, place)
    if len({one.content for one in found}) == 1:
        return _verdict(reader, found[0].address, found[0].content, manager, None, ())
    if found:
        shown = ", ".join(f"{one.address:#x}" for one in found)
        reason = f"headers of more than one image are in memory, at {shown}"
    else:
        reason = f"no crash header is in the reservation {place} where a command line says so"
    return Audit(Verdict.UNKNOWN, True, manager, reasons=(reason,))


def _verdict(
    reader: MachineReader,
    address: int,
    content: bytes,
    manager: str,
    verified: bool | None,
    parts: tuple[tuple[str, Range], ...],
) -> Audit:
    parsed = elfcorehdr.parse(content)
    if parsed is None:
        reason = f"the header at {address:#x} cannot be read"
        return Audit(Verdict.DAMAGED, True, manager, reasons=(reason,))
    machine = reader.snapshot()
    comparison = compare(parsed, machine, reader.known_notes())
    # All notes but vmcoreinfo's are CPUs'.
    vmcoreinfo = machine.fixed.vmcoreinfo.address
    notes = sum(1 for note in parsed.notes if note.address != vmcoreinfo)
    return Audit(
        verdict=comparison.verdict,
        loaded=True,
        managed_by=manager,
        header=LiveHeader(address, len(content), comparison.cpus, notes, parsed.ram),
        missing=comparison.missing,
        extra=comparison.extra,
        verified=verified,
        segments=parts,
        reasons=_reasons(comparison),
    )


def _reasons(comparison: Comparison) -> tuple[str, ...]:
    reasons = list(comparison.problems)
    for what, side in (("lacks", comparison.missing), ("still lists", comparison.extra)):
        if side.memory:
            reasons.append(f"the header {what} memory {', '.join(map(str, side.memory[:6]))}")
        if side.cpus and what == "lacks":
            reasons.append(f"the header lacks CPUs {', '.join(map(str, side.cpus))}")
    return tuple(reasons)
