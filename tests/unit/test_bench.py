"""What the benchmark computes from its measurements."""

from __future__ import annotations

from tests.bench import trace
from tests.bench.figures import Figure, Ratio, Section

# From a guest with kernel 6.1: an unload, a load, our delta load.
_TRACE = """\
# tracer: nop
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
           kexec-731     [000] .....    97.361284: sys_kexec_load(entry: 0, nr_segments: 0, \
segments: 0, flags: 3e0001)
           kexec-731     [000] .....    97.361902: sys_kexec_load -> 0x0
           kexec-733     [000] .....    99.100000: sys_kexec_load(entry: 7effd000, \
nr_segments: 10, segments: 7fcdaf616010, flags: 3e0001)
           kexec-733     [000] .....    99.161284: sys_kexec_load -> 0x0
 kdumphpd-x y-300     [001] d..1.   101.000001: sys_kexec_load(entry: 7effd000, nr_segments: 1, \
segments: 7fcdaf616010, flags: 3e0001)
 kdumphpd-x y-300     [001] d..1.   101.001000: sys_kexec_load -> 0xfffffffffffffff4
"""


def test_calls_are_paired_and_timed() -> None:
    calls = trace.parse(_TRACE)
    assert [(one.comm, one.segments, one.usec, one.result) for one in calls] == [
        ("kexec", 0, 618, 0),
        ("kexec", 16, 61284, 0),
        ("kdumphpd-x y", 1, 999, 0xFFFFFFFFFFFFFFF4),
    ]
    assert trace.unarmed_by(calls[:2]) == 1_800_000


def test_a_call_without_its_other_half_is_left_out() -> None:
    lines = _TRACE.splitlines()
    assert trace.parse("\n".join(lines[4:5])) == ()
    assert len(trace.parse("\n".join(lines[4:]))) == 2
    assert len(trace.parse("\n".join(lines[:-1]))) == 2


def test_a_ratio_is_of_medians_and_its_worst_of_extremes() -> None:
    slow, fast = Figure("slow", "us", (300, 100, 200)), Figure("fast", "us", (1, 4, 2))
    ratio = Ratio(slow, fast, at_least=100)
    assert (ratio.worst, ratio.value, ratio.best) == (25, 100, 300)
    assert ratio.met
    assert Ratio(slow, fast, at_least=101).met is False
    assert Ratio(slow, fast).met is None


def test_an_aim_is_judged_by_the_median() -> None:
    assert Figure("a", "ms", (1, 2, 90), below=3).met
    assert Figure("a", "ms", (1, 3, 3), below=3).met is False


def test_the_table_says_where_it_was_measured_and_what_was_missed() -> None:
    figure = Figure("slow", "us", (5.0, 70.0, 9000.0), below=50)
    text = Section("part", "under emulation", (figure,), facts={"initrd": "1 byte"}).text()
    assert "part: under emulation" in text
    assert "initrd: 1 byte" in text
    last = " ".join(text.splitlines()[-1].split())
    assert last == "slow 5 70.0 9000 us 3 under 50.0: MISSED"
