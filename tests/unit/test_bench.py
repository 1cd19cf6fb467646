"""What the benchmark computes from its measurements."""

from __future__ import annotations

from tests.bench import files, loads, summary, trace
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

# From one with kernel 6.12, by kdumphpd without kexec_load: is kexec_load there, is
# kexec_file_load, would the kernel take this file, the load; two blocks come.
_FILE_TRACE = """\
        kdumphpd-363     [000] ...1.    23.284227: sys_kexec_load -> 0xffffffffffffffda
        kdumphpd-363     [000] ...1.    23.285152: sys_kexec_file_load(kernel_fd: \
ffffffffffffffff, initrd_fd: ffffffffffffffff, cmdline_len: 0, cmdline_ptr: 0, flags: 40000002)
        kdumphpd-363     [000] ...1.    23.285214: sys_kexec_file_load -> 0xffffffffffffffea
        kdumphpd-363     [000] ...1.    24.009892: sys_kexec_file_load(kernel_fd: 4, initrd_fd: \
ffffffffffffffff, cmdline_len: 1, cmdline_ptr: 7ff211bc4ad0, flags: 0)
        kdumphpd-363     [000] ...1.    24.018470: sys_kexec_file_load -> 0xfffffffffffffff7
        kdumphpd-363     [000] ...1.    24.019559: sys_kexec_file_load(kernel_fd: 4, \
initrd_fd: 5, cmdline_len: 42, cmdline_ptr: 7ff2115ac210, flags: 2)
        kdumphpd-363     [000] ...1.    25.321130: sys_kexec_file_load -> 0x0
   kworker/u16:6-249     [000] .....    83.595479: handler_entered: \
(crash_handle_hotplug_event+0x0/0x150)
   kworker/u16:6-249     [000] .....    83.601871: handler_left: (crash_memhp_notifier+0x46/0x50 \
<- crash_handle_hotplug_event)
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


def test_a_question_is_no_load_and_the_kernels_handler_is_another_thing() -> None:
    calls = trace.parse(_FILE_TRACE)
    assert [(one.segments, one.usec) for one in trace.loads(calls)] == [
        (None, 8578),
        (None, 1_301_571),
    ]
    assert [(one.name, one.usec) for one in calls if not one.is_load] == [
        ("sys_kexec_file_load", 62),
        (trace.HANDLER, 6392),
    ]


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


def test_the_summary_has_a_line_for_each_kernel_and_number_of_cpus() -> None:
    def figure(name: str, usec: float, cpus: int = 1) -> Figure:
        return Figure(loads.with_cpus(name, cpus), "us", (usec,))

    def section(kernel: str, *figures: Figure) -> Section:
        return Section("loads", "in a guest", figures, facts={"kernel": kernel})

    old, new = "5.10", "7.2"
    text = summary.text(
        [
            section(old, figure(files.COMMAND, 2_000_000), figure(files.FILE, 1_000_000)),
            section(old, figure(loads.RELOAD, 3_000_000), figure(loads.DELTA, 1_500)),
            section(new, figure(loads.RELOAD, 1_000, 2), figure(loads.KERNEL, 500, 2)),
            section(new, figure(loads.DELTA, 250, 2), figure(loads.FULL, 750, 2)),
            Section("idle", "in a guest", (Figure("share of one CPU", "%", (1,)),)),
        ]
    )
    _, head, *lines = text.splitlines()
    assert [line.split() for line in lines] == [
        [old, "1", "3000", "2000", "1000", "1.5", "2000"],
        [new, "2", "1", "0.75", "0.5", "0.25", "4"],
    ]
    assert head.index("delta") + len("delta") == lines[0].index("1.5") + len("1.5")


def test_there_is_no_summary_without_loads() -> None:
    assert summary.text([Section("header", "here", (Figure("a", "ms", (1,)),))]) == ""
