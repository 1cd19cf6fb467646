from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kdumphpd.audit.compare import Comparison, Difference, Verdict, compare
from kdumphpd.header import elfcorehdr
from kdumphpd.header.elfcorehdr import CoreHeader, Note
from kdumphpd.machine.kcore import AddressMap, Mapping
from kdumphpd.machine.ranges import Range, merge
from kdumphpd.machine.snapshot import Fixed, Machine
from tests.unit.fake_files import PAGE_OFFSET
from tests.unit.strategies import separate_ranges

_TEXT = Mapping(0x1000000, 0xFFFFFFFF9B000000, 0x2800000)
_FIXED = Fixed(Note(0x3800000, 0x1024), AddressMap(_TEXT, PAGE_OFFSET, ()), 64, 128 << 20)


def _note(cpu: int) -> Note:
    return Note(0x3A00400 + cpu * 0x2000, 368)


def _machine(ram: tuple[Range, ...], cpus: tuple[int, ...]) -> Machine:
    # The first MiB is RAM that no vmcore holds.
    all_ram = merge([Range(0x1000, 0x9FBFF), *ram])
    return Machine(ram, all_ram, tuple((cpu, _note(cpu)) for cpu in cpus), (), _FIXED)


def _header(machine: Machine) -> CoreHeader:
    header = elfcorehdr.parse(machine.header())
    assert header is not None
    return header


def _known(machine: Machine) -> dict[Note, int]:
    return {note: cpu for cpu, note in machine.cpus}


_RAM = separate_ranges(min_size=1, first=0x100000)
_CPUS = st.sets(st.integers(0, 63), min_size=1).map(lambda cpus: tuple(sorted(cpus)))
_HOST = _machine((Range(0x100000, 0x6EFFFFFF), Range(0x100000000, 0x17FFFFFFF)), (0, 1, 5))


@given(_RAM, _CPUS)
def test_a_machine_and_its_own_header_are_complete(
    ram: tuple[Range, ...], cpus: tuple[int, ...]
) -> None:
    machine = _machine(ram, cpus)
    found = compare(_header(machine), machine, _known(machine))
    assert found == Comparison(cpus, Difference(), Difference(), ())
    assert found.verdict is Verdict.COMPLETE


@given(_RAM, _CPUS, st.data())
def test_what_was_plugged_in_since_is_missing(
    ram: tuple[Range, ...], cpus: tuple[int, ...], data: st.DataObject
) -> None:
    machine = _machine(ram, cpus)
    new_ram = data.draw(st.sets(st.sampled_from(ram)))
    new_cpus = data.draw(st.sets(st.sampled_from(cpus)))
    assume(len(new_ram) < len(ram))
    before = _machine(
        tuple(one for one in ram if one not in new_ram),
        tuple(cpu for cpu in cpus if cpu not in new_cpus),
    )
    found = compare(_header(before), machine, _known(machine))
    assert found.missing == Difference(tuple(sorted(new_cpus)), tuple(sorted(new_ram)))
    assert not found.extra
    assert (found.verdict is Verdict.STALE) == bool(new_ram or new_cpus)


@given(_RAM, _CPUS, st.data())
def test_what_was_unplugged_since_is_extra(
    ram: tuple[Range, ...], cpus: tuple[int, ...], data: st.DataObject
) -> None:
    machine = _machine(ram, cpus)
    gone_ram = data.draw(st.sets(st.sampled_from(ram)))
    gone_cpus = data.draw(st.sets(st.sampled_from(cpus)))
    assume(len(gone_ram) < len(ram))
    now = _machine(
        tuple(one for one in ram if one not in gone_ram),
        tuple(cpu for cpu in cpus if cpu not in gone_cpus),
    )
    found = compare(_header(machine), now, _known(machine))
    assert not found.missing
    assert found.extra == Difference(tuple(sorted(gone_cpus)), tuple(sorted(gone_ram)))
    # Notes of a CPU that is gone are empty; memory that is gone cannot be read.
    assert (found.verdict is Verdict.STALE) == bool(gone_ram)


@given(_RAM, st.data())
def test_ends_within_a_page_are_the_whole_page_to_the_crash_kernel(
    ram: tuple[Range, ...], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, 2047))
    odd = tuple(Range(one.start + cut, one.end - cut) for one in ram)
    now, before = _machine(ram, (0,)), _machine(odd, (0,))
    assert compare(_header(before), now, {}).verdict is Verdict.COMPLETE
    assert compare(_header(now), before, {}).verdict is Verdict.COMPLETE


def test_a_cpu_without_notes_yet_is_missing() -> None:
    machine = replace(_HOST, missing_notes=(7,))
    found = compare(_header(_HOST), machine, _known(_HOST))
    assert found.missing == Difference((7,), ())
    assert found.verdict is Verdict.STALE


def test_low_memory_in_the_header_does_no_harm() -> None:
    header = _header(_HOST)
    header = replace(header, ram=(Range(0x1000, 0x9EFFF), *header.ram))
    assert compare(header, _HOST, {}).verdict is Verdict.COMPLETE


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"notes": tuple(note for _, note in _HOST.cpus)}, "vmcoreinfo"),
        ({"page_offset": PAGE_OFFSET + (1 << 30)}, "direct map"),
        ({"page_offset": None}, "direct map"),
        ({"text": None}, "kernel text"),
        ({"text": replace(_TEXT, paddr=0x2000000)}, "kernel text"),
        ({"text": replace(_TEXT, size=0x1000)}, "kernel text"),
    ],
)
def test_other_damage_is_named(damage: dict[str, object], said: str) -> None:
    header = replace(_header(_HOST), **damage)  # type: ignore[arg-type]
    found = compare(header, _HOST, _known(_HOST))
    assert [problem for problem in found.problems if said in problem] == list(found.problems)
    assert len(found.problems) == 1
    assert found.verdict is Verdict.STALE


def test_a_note_that_is_cut_short_is_missing() -> None:
    header = _header(_HOST)
    notes = (replace(header.notes[0], size=16), *header.notes[1:])
    assert compare(replace(header, notes=notes), _HOST, {}).missing.cpus == (0,)
