"""What a daemon that was killed owes: noted before a load, gone when something is loaded."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kdumphpd.load import duty
from kdumphpd.load.duty import load_is_owed, stop_was_seen
from kdumphpd.machine.files import Root
from tests.unit.host_fixture import FakeHost


def test_nothing_is_owed_at_first(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert not load_is_owed(root)
    assert not stop_was_seen(root)
    duty.settle(root)


def test_a_note_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    root = Root(tmp_path)
    duty.begin_load(root)
    assert (load_is_owed(root), stop_was_seen(root)) == (True, False)
    duty.note_stop(root)
    assert (load_is_owed(root), stop_was_seen(root)) == (False, True)
    duty.settle(root)
    assert (load_is_owed(root), stop_was_seen(root)) == (False, False)


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"x" * 100_000])
def test_a_damaged_note_is_none(tmp_path: Path, content: bytes) -> None:
    root = Root(tmp_path)
    duty.begin_load(root)
    root.path(duty.STATE).write_bytes(content)
    assert not load_is_owed(root)
    assert not stop_was_seen(root)


def test_a_fifo_in_its_place_is_none(tmp_path: Path) -> None:
    root = Root(tmp_path)
    duty.begin_load(root)
    root.path(duty.STATE).unlink()
    os.mkfifo(root.path(duty.STATE))
    assert not load_is_owed(root)
    assert not stop_was_seen(root)


def test_a_load_is_owed_only_while_it_is_made(host: FakeHost) -> None:
    seen = []
    load = host.kernel.kexec_load

    def watched(*arguments: object) -> int:
        seen.append(load_is_owed(host.root))
        return load(*arguments)  # type: ignore[arg-type]

    host.kernel.kexec_load = watched  # type: ignore[method-assign]
    host.load()
    assert seen == [True]
    assert not load_is_owed(host.root)


@pytest.mark.parametrize(
    ("before_free", "code", "owed"), [(True, errno.EPERM, False), (False, errno.ENOMEM, True)]
)
def test_a_load_that_failed_is_owed_if_it_left_nothing(
    host: FakeHost, before_free: bool, code: int, owed: bool
) -> None:
    parts = host.load()
    host.kernel.fail_next(code, before_free=before_free, times=9)
    parts.keeper.load(parts.reader.snapshot())
    assert host.kernel.loaded != owed
    assert load_is_owed(host.root) == owed
