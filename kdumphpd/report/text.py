"""Plans, loads and audits as text for 80 columns, and the plan as JSON."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from kdumphpd.audit.audit import Audit
from kdumphpd.audit.compare import Difference
from kdumphpd.events.changes import cpu_list, size_text
from kdumphpd.image.layout import PAGE
from kdumphpd.image.plan import ImagePlan
from kdumphpd.image.source import ImageSpec
from kdumphpd.load.loader import Loaded
from kdumphpd.machine.efi import Efi
from kdumphpd.machine.ranges import Range, total
from kdumphpd.machine.snapshot import Machine
from kdumphpd.report.fields import duration_text

_LABEL = 14


def _line(label: str, value: str) -> str:
    return textwrap.fill(
        value,
        width=79,
        initial_indent=f"{label:<{_LABEL}}",
        subsequent_indent=" " * _LABEL,
        break_on_hyphens=False,
        break_long_words=False,
    )


def machine_summary(machine: Machine) -> str:
    """CPUs and memory that a vmcore must hold."""
    count = len(machine.ram)
    return (
        f"{_cpus(len(machine.cpus))}, {size_text(total(machine.ram))} of memory in "
        f"{count} range{'s' if count != 1 else ''}"
    )


def _cpus(count: int) -> str:
    return f"{count} CPU{'s' if count != 1 else ''}"


def loaded(one: Loaded, machine: Machine) -> str:
    """What a load did."""
    return (
        f"{one.backend} load: {machine_summary(machine)}; "
        f"not armed for {duration_text(one.unarmed_usec)}"
    )


def failure(problem: str) -> str:
    """What was tried before a load that succeeded."""
    return _line("failed", problem)


def audit(found: Audit) -> str:
    """An audit, the verdict first."""
    lines = [_line("verdict", found.verdict.value)]
    lines += [_line("because", reason) for reason in found.reasons]
    lines += [_line("do", line) for line in found.do]
    if found.managed_by:
        lines.append(_line("managed by", found.managed_by))
    header = found.header
    if header:
        lines.append(_line("header", f"{header.address:#x}, {header.size} bytes"))
        lines.append(_line("CPUs", f"{cpu_list(header.cpus)} (of {header.notes} notes)"))
        lines += _memory("memory", header.memory)
    lines += _difference("missing", found.missing)
    lines += _difference("extra", found.extra)
    if found.verified is not None:
        state = "has its digest" if found.verified else "DOES NOT HAVE ITS DIGEST"
        lines.append(_line("image", state))
    lines += [_line("", f"{place} {name}") for name, place in found.segments]
    return "\n".join(lines)


def _memory(label: str, ranges: tuple[Range, ...]) -> list[str]:
    return [
        _line(label if not index else "", f"{one} {size_text(one.size)}")
        for index, one in enumerate(ranges)
    ]


def _difference(label: str, one: Difference) -> list[str]:
    lines = _memory(label, one.memory)
    if one.cpus:
        lines.append(_line(label if not lines else "", f"CPUs {cpu_list(one.cpus)}"))
    return lines


def plan(planned: ImagePlan, machine: Machine, spec: ImageSpec, pages: int) -> str:
    """A plan: what goes where, and how far it can grow.

    Args:
        planned: the plan.
        machine: what its header describes.
        spec: what it is made of.
        pages: of the control pad that the kernel takes now, at the most.
    """
    layout, room = planned.layout, planned.room
    used = len(machine.header())
    lines = [
        _line("kernel", str(spec.kernel)),
        _line("initrd", str(spec.initrd)),
        _line("command line", planned.command_line),
        *_origins(spec),
        _line("describes", machine_summary(machine)),
        _line("reservation", f"{layout.reservation} {size_text(layout.reservation.size)}"),
        _line("entry", f"{planned.entry:#x} (purgatory)"),
        *_efi(planned.efi),
        "",
        "segments",
    ]
    lines += [
        f"  {place.start:#013x}-{place.end:#013x}  {size_text(place.size):>14}  {name}"
        for name, place in layout.parts()
    ]
    lines += [
        "",
        _line(
            "control pad",
            f"{room.pad // PAGE} pages, enough for {planned.capacity_gib} GiB of RAM; "
            f"at most {pages} in use now",
        ),
        _line("elfcorehdr", f"{used} of {room.elfcorehdr} reserved bytes in use"),
        "",
        "memory map of the crash kernel (e820)",
    ]
    lines += [f"  {entry}" for entry in planned.memory_map]
    return "\n".join(lines)


def check(path: Path, is_there: bool, origin: str) -> str:
    """A configuration that can be used, and who says what is loaded."""
    shown = str(path) if is_there else f"the defaults, as there is no {path}"
    return f"{_line('usable', shown)}\n{_line('image of', origin)}"


def _origins(spec: ImageSpec) -> list[str]:
    lines = [_line("named by", spec.origin)]
    lines += [_line("", f"{name.replace('_', ' ')}: {origin}") for name, origin in spec.origins]
    if spec.no_kexec_load:
        lines.append(_line("not by these", f"segments: {spec.no_kexec_load}"))
    if spec.remark:
        lines.append(_line("remark", spec.remark))
    return lines


def _efi(efi: Efi) -> list[str]:
    """Whether the crash kernel can call the firmware; nothing where there is no EFI."""
    if efi.state is not None:
        ranges = len(efi.state.ranges)
        return [_line("EFI", f"handed over, {ranges} ranges of memory for its runtime services")]
    if not efi.obstacle:
        return []
    lost = "the crash kernel has no EFI variables (efi-pstore), and resets without it"
    return [_line("EFI", f"not handed over: {efi.obstacle}; {lost}")]


def plan_json(planned: ImagePlan, machine: Machine, spec: ImageSpec, pages: int) -> dict[str, Any]:
    """A plan for programs, arguments as `plan`; addresses and sizes in bytes, ends included."""
    layout, room = planned.layout, planned.room
    digested = ("kernel", "initrd", "boot_params")
    return {
        "kernel": str(spec.kernel),
        "initrd": str(spec.initrd),
        "command_line": planned.command_line,
        "origin": spec.origin,
        "origins": dict(spec.origins),
        "needs_file_load": spec.no_kexec_load or None,
        "remark": spec.remark or None,
        "reservation": [layout.reservation.start, layout.reservation.end],
        "entry": planned.entry,
        "efi": {
            "handed_over": planned.efi.state is not None,
            "because": planned.efi.obstacle or None,
        },
        "segments": [
            {
                "name": name,
                "address": place.start,
                "size": place.size,
                "in_digest": name in digested,
            }
            for name, place in layout.parts()
            if name != "control pad"
        ],
        "control_pad": {
            "address": layout.pad.start,
            "size": layout.pad.size,
            "pages": room.pad // PAGE,
            "pages_needed": pages,
            "capacity_gib": planned.capacity_gib,
        },
        "reserve": {
            "address": layout.elfcorehdr.start,
            "size": layout.elfcorehdr.size,
            "used": len(machine.header()),
        },
        "e820": [
            {"start": one.start, "size": one.size, "type": int(one.type)}
            for one in planned.memory_map
        ],
        "cpus": sorted(machine.cpu_numbers),
        "memory": [[one.start, one.end] for one in machine.ram],
    }
