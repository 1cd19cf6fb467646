from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdumphpd.errors import ExitCode, LoadError
from kdumphpd.load import segments
from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.load.segments import Segment
from kdumphpd.load.syscalls import KEXEC_ARCH_X86_64, KEXEC_ON_CRASH
from kdumphpd.machine.ranges import Range
from tests.unit import fake_kexec
from tests.unit.fake_kernel import FakeKernel

PAGE = 4096
_RESERVATION = Range(0x10000, 0x2FFFF)
_TOTAL = 1 << 30
_FLAGS = KEXEC_ON_CRASH | KEXEC_ARCH_X86_64


def _segment(start: int, size: int, content: int, name: str = "kernel") -> Segment:
    return Segment(name, LockedBuffer(content), Range(start, start + size - 1))


# Whole pages mostly, near the reservation's ends; now and then odd in one way.
_ADDRESS = st.one_of(
    st.integers(0xE, 0x31).map(lambda page: page * PAGE), st.integers(0xF000, 0x31000)
)
_SIZE = st.one_of(st.integers(1, 8).map(lambda pages: pages * PAGE), st.integers(1, 9 * PAGE))
_SEGMENT = st.builds(_segment, _ADDRESS, _SIZE, st.integers(0, 5 * PAGE))


@given(
    st.lists(_SEGMENT, min_size=1, max_size=18),
    st.integers(0xF000, 0x31000),
    st.integers(4, 64).map(lambda pages: pages * PAGE),
)
@example([_segment(0x10000, PAGE, PAGE), _segment(0x11000, PAGE, 0)], 0x10000, 1 << 20)
@example([_segment(0x2F000, PAGE, PAGE)], 0x2FFFF, 2 * PAGE)
@example([_segment(0x10000, 3 * PAGE, 1)], 0x10000, 5 * PAGE)
def test_what_passes_is_what_the_kernel_takes(
    chosen: list[Segment], entry: int, total_ram: int
) -> None:
    places = [
        fake_kexec.Place(one.name, one.place.start, one.place.size, one.size) for one in chosen
    ]
    refused = fake_kexec.early_errno(len(places), _FLAGS) or fake_kexec.late_errno(
        entry, places, _RESERVATION, total_ram // PAGE
    )
    if refused:
        with pytest.raises(LoadError, match="not loading: "):
            segments.check(chosen, entry, _RESERVATION, total_ram)
    else:
        segments.check(chosen, entry, _RESERVATION, total_ram)


_GOOD = [_segment(0x14000, 2 * PAGE, 100, "elfcorehdr"), _segment(0x20000, PAGE, PAGE)]


@pytest.mark.parametrize(
    ("chosen", "entry", "total", "said"),
    [
        (_GOOD * 9, 0x20000, _TOTAL, "18 segments"),
        (_GOOD, 0xFFFF, _TOTAL, "entry 0xffff"),
        (_GOOD, 0x30000, _TOTAL, "entry 0x30000"),
        ([_segment(0x14800, PAGE, 1)], 0x20000, _TOTAL, "whole pages"),
        ([_segment(0x14000, 100, 1)], 0x20000, _TOTAL, "whole pages"),
        ([_segment(0xF000, PAGE, 1)], 0x20000, _TOTAL, "outside the reservation"),
        ([_segment(0x2F000, 2 * PAGE, 1)], 0x20000, _TOTAL, "outside the reservation"),
        ([_segment(0x14000, PAGE, PAGE + 1)], 0x20000, _TOTAL, "4097 bytes for a place of 4096"),
        ([*_GOOD, _segment(0x15000, PAGE, 1, "initrd")], 0x20000, _TOTAL, "overlaps"),
        (_GOOD, 0x20000, 5 * PAGE, "allows half of its 0 MiB"),
    ],
)
def test_each_refusal_names_its_reason(
    chosen: list[Segment], entry: int, total: int, said: str
) -> None:
    with pytest.raises(LoadError, match=said) as caught:
        segments.check(chosen, entry, _RESERVATION, total)
    assert caught.value.exit_code is ExitCode.LOAD_FAILED


def test_an_empty_list_would_unload_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="0 segments"):
        segments.check([], _RESERVATION.start, _RESERVATION, _TOTAL)
    kernel = FakeKernel.q35(tmp_path)
    kernel.foreign_load()
    kernel.kexec_load(0, [], _FLAGS)
    assert not kernel.loaded


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"place": Range(0x6F000000 - PAGE, 0x6F000000 - 1)}, errno.EADDRNOTAVAIL),
        ({"place": Range(0x6F000001, 0x6F001000)}, errno.EADDRNOTAVAIL),
        ({"content": LockedBuffer(2 * PAGE)}, errno.EINVAL),
    ],
)
def test_what_is_refused_here_would_have_disarmed_the_host(
    tmp_path: Path, change: dict[str, object], code: int
) -> None:
    kernel = FakeKernel.q35(tmp_path)
    kernel.foreign_load()
    good = _segment(kernel.reservation.start + (1 << 20), PAGE, PAGE)
    bad = replace(good, **change)  # type: ignore[arg-type]
    entry = kernel.reservation.start
    with pytest.raises(LoadError):
        segments.check([bad], entry, kernel.reservation, _TOTAL)
    assert kernel.loaded
    with pytest.raises(OSError, match="a") as caught:
        kernel.kexec_load(entry, [bad], _FLAGS)
    assert caught.value.errno == code
    assert not kernel.loaded
