"""Text for people: nothing wider than a terminal but a word that cannot be broken."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.audit.audit import Audit, LiveHeader
from kdumphpd.audit.compare import Difference, Verdict
from kdumphpd.load.loader import Loaded
from kdumphpd.machine.ranges import Range
from kdumphpd.report import text
from tests.unit.host_fixture import GIB, FakeHost
from tests.unit.strategies import separate_ranges

CPUS = st.sets(st.integers(0, 8191), max_size=200).map(lambda found: tuple(sorted(found)))
RANGES = separate_ranges(max_size=20)
WORDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=30)
SENTENCES = st.lists(WORDS, min_size=1, max_size=40).map(" ".join)


def assert_fits(shown: str) -> None:
    for line in shown.splitlines():
        # What is too wide is one word, behind the label or the indentation.
        assert len(line) < 80 or " " not in line[14:].strip(), line


@st.composite
def audits(draw: st.DrawFn) -> Audit:
    header = LiveHeader(
        address=draw(st.integers(0, 1 << 46)),
        size=draw(st.integers(0, 1 << 22)),
        cpus=draw(CPUS),
        notes=draw(st.integers(0, 65535)),
        memory=draw(RANGES),
    )
    return Audit(
        verdict=draw(st.sampled_from(Verdict)),
        loaded=draw(st.sampled_from([True, False, None])),
        managed_by=draw(st.sampled_from(["kdumphpd", "kernel", "other", None])),
        header=draw(st.sampled_from([header, None])),
        missing=Difference(draw(CPUS), draw(RANGES)),
        extra=Difference(draw(CPUS), draw(RANGES)),
        verified=draw(st.sampled_from([True, False, None])),
        segments=tuple((name, Range(0, 4095)) for name in ("elfcorehdr", "kernel")),
        reasons=tuple(draw(st.lists(SENTENCES, max_size=4))),
    )


@given(audits())
def test_an_audit_fits_and_leaves_nothing_out(found: Audit) -> None:
    shown = text.audit(found)
    assert_fits(shown)
    assert shown.splitlines()[0].split() == ["verdict", found.verdict.value]
    flat = " ".join(shown.split())
    for reason in found.reasons:
        assert reason in flat
    for one in (*found.missing.memory, *found.extra.memory):
        assert str(one) in shown


@given(SENTENCES)
def test_a_failure_fits(problem: str) -> None:
    shown = text.failure(problem)
    assert_fits(shown)
    assert " ".join(shown.split()) == f"failed {problem}"


def test_a_load_of_the_largest_machine_fits(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, cpus=range(512), possible=512)
    host.kernel.hot_add_memory(Range(4 * GIB, 1000 * GIB - 1))
    parts = host.load()
    machine = parts.reader.snapshot()
    one = Loaded("full", host.live_block(), 123_456, 0)
    shown = text.loaded(one, machine)
    assert "512 CPUs" in shown
    assert_fits(shown)
