"""Watching files, on a real inotify descriptor and with a real flock(1)."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.distribution import inotify, lock
from kdumphpd.distribution.watch import Changed, FileWatch
from kdumphpd.machine.files import Root


def drained(watch: FileWatch) -> Changed:
    readable = select.select([watch], [], [], 0)[0]
    changed = watch.drain()
    assert bool(readable) or not changed
    return changed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kdump"


def test_kdumpctl_is_seen_when_it_ends_and_not_before(path: Path) -> None:
    # As kdumpctl does: open for writing, lock, work in a subshell without it, exit.
    script = (
        'exec 9>"$1"; flock -n 9; ( exec 9<&-; echo begun; read -r _ ); echo through; read -r _'
    )
    watch = FileWatch([path])
    with subprocess.Popen(
        ["bash", "-c", script, "bash", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as kdumpctl:
        assert kdumpctl.stdin is not None
        assert kdumpctl.stdout is not None
        for message in ("begun\n", "through\n"):
            assert kdumpctl.stdout.readline() == message
            assert lock.is_held(path, Root())
            assert not drained(watch).paths
            kdumpctl.stdin.write("\n")
            kdumpctl.stdin.flush()
        assert kdumpctl.wait(30) == 0
    assert drained(watch) == Changed(frozenset({path}), lost=False)
    assert not lock.is_held(path, Root())
    watch.close()


def test_kdumpctl_is_seen_before_it_works(path: Path) -> None:
    """While its command can still be read in /proc."""
    other = path.with_name("other")
    watch = FileWatch()
    watch.watch([path, other], opening=[path])
    with path.open("w"), other.open("w"):
        assert drained(watch).opened == {path}
    closed = drained(watch)
    assert (closed.paths, closed.opened) == ({path, other}, frozenset())
    os.close(os.open(path, os.O_RDONLY))
    assert not watch.drain(), "our own lock is no change"
    watch.close()


def test_killed_kdumpctl_is_seen(path: Path) -> None:
    watch = FileWatch([path])
    with subprocess.Popen(
        ["bash", "-c", 'exec 9>"$1"; flock -n 9; echo begun; read -r _', "bash", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as kdumpctl:
        assert kdumpctl.stdout is not None
        assert kdumpctl.stdout.readline() == b"begun\n"
        kdumpctl.kill()
        kdumpctl.wait(30)
    assert drained(watch).paths == {path}
    watch.close()


def test_our_own_lock_wakes_nobody(path: Path) -> None:
    watch = FileWatch([path])
    for _ in range(2):
        with lock.hold(path, Root()):
            pass
    assert not drained(watch)
    watch.close()


def test_file_replaced_by_rename(path: Path) -> None:
    path.write_text("old")
    watch = FileWatch([path])
    fresh = path.with_suffix(".new")
    fresh.write_text("new")
    assert not drained(watch)
    fresh.replace(path)
    assert drained(watch).paths == {path}
    watch.close()


def test_link_and_what_it_leads_to(tmp_path: Path) -> None:
    target = tmp_path / "boot" / "initrd-6.1"
    target.parent.mkdir()
    target.write_text("initrd")
    link = tmp_path / "initrd.img"
    link.symlink_to(target)
    watch = FileWatch([link])
    target.write_text("rebuilt")
    assert drained(watch).paths == {link}
    link.unlink()
    link.symlink_to("elsewhere")
    assert drained(watch).paths == {link}
    watch.close()


def test_two_names_of_one_directory(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to("run")
    paths = {tmp_path / "run" / "kdump", tmp_path / "var" / "kdump"}
    watch = FileWatch(paths)
    (tmp_path / "run" / "kdump").write_text("")
    assert drained(watch).paths == paths
    watch.close()


def test_other_paths_from_here_on(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "one", tmp_path / "b" / "other"
    one.parent.mkdir()
    other.parent.mkdir()
    watch = FileWatch([one])
    watch.watch([other])
    one.write_text("")
    assert not drained(watch)
    other.write_text("")
    assert drained(watch) == Changed(frozenset({other}), lost=False)
    watch.close()


def test_directory_that_is_not_there_or_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "d" / "kdump"
    watch = FileWatch([path])
    assert watch.missing == (path,)
    path.parent.mkdir()
    watch.watch([path])
    assert watch.missing == ()
    path.parent.rmdir()
    assert drained(watch) == Changed(frozenset(), lost=True)
    assert not drained(watch)
    path.parent.mkdir()
    watch.watch([path])
    path.write_text("")
    assert drained(watch).paths == {path}
    watch.close()


def test_closed_descriptor_is_gone(path: Path) -> None:
    watch = FileWatch([path])
    fd = watch.fileno()
    watch.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@given(st.binary(max_size=300))
def test_event_parser_takes_anything(data: bytes) -> None:
    for event in inotify.parse(data):
        assert "\0" not in event.name


@given(
    st.lists(
        st.tuples(
            st.integers(-1, 2**31 - 1),
            st.integers(0, 2**32 - 1),
            st.text(st.characters(min_codepoint=1, max_codepoint=126), max_size=40),
        )
    )
)
def test_events_are_read_back(events: list[tuple[int, int, str]]) -> None:
    data = b""
    for wd, mask, name in events:
        padded = name.encode().ljust((len(name) // 16 + 1) * 16, b"\0")
        data += (
            wd.to_bytes(4, "little", signed=True)
            + mask.to_bytes(4, "little")
            + bytes(4)
            + len(padded).to_bytes(4, "little")
            + padded
        )
    assert [(one.wd, one.mask, one.name) for one in inotify.parse(data)] == events


def test_directory_that_is_made_later(tmp_path: Path) -> None:
    path = tmp_path / "var" / "crash" / "kexec_cmd"
    watch = FileWatch([path])
    (tmp_path / "other").mkdir()
    assert not drained(watch)
    for directory in (path.parent.parent, path.parent):
        directory.mkdir()
        assert drained(watch).lost, "what it holds by now was not seen"
    assert watch.missing == ()
    path.write_text("kexec")
    assert drained(watch) == Changed(frozenset({path}), lost=False)
    watch.close()


def test_directories_that_are_made_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c" / "file"
    watch = FileWatch([path])
    path.parent.mkdir(parents=True)
    path.write_text("before the directory was watched")
    assert drained(watch).lost
    path.write_text("again")
    assert drained(watch).paths == {path}
    watch.close()


def test_a_flood_of_other_files_is_taken_in_parts(path: Path) -> None:
    """One drain of them all took 12.6 s, in which no uevent was looked at."""
    watch = FileWatch([path])
    # Each with another name: the kernel drops an event like one that waits.
    for number in range(3000):
        (path.parent / f"{number:0200}").touch()
    path.write_text("")
    assert not watch.drain(), "not all at once"
    found = [watch.drain() for _ in range(20)]
    assert Changed(frozenset({path}), lost=False) in found
    assert not select.select([watch], [], [], 0)[0]
    watch.close()


def flood(directory: Path) -> None:
    """More than the kernel keeps; it drops an event like the one before it."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    (directory / "0").touch()
    for number in range(limit + 10):
        (directory / f"{number % 2}").rename(directory / f"{(number + 1) % 2}")


def emptied(watch: FileWatch) -> list[Changed]:
    found = []
    while select.select([watch], [], [], 0)[0]:
        found.append(watch.drain())
    return found


def test_a_flood_is_not_taken_for_kdump(path: Path) -> None:
    """It counted as "kdump acted": everything was asked and hashed again."""
    path.write_text("")
    watch = FileWatch([path])
    flood(path.parent)
    found = emptied(watch)
    assert found
    assert not any(found)
    watch.close()


@pytest.mark.parametrize("there", [False, True], ids=["made", "written"])
def test_a_change_in_a_flood_is_seen(path: Path, there: bool) -> None:
    """Its own event was lost; and after it all goes on as before."""
    if there:
        path.write_text("old")
    watch = FileWatch([path])
    flood(path.parent)
    path.write_text("new text")
    assert {one.paths for one in emptied(watch) if one} == {frozenset({path})}
    assert not drained(watch)
    path.write_text("again")
    assert drained(watch) == Changed(frozenset({path}), lost=False)
    watch.close()


def test_a_directory_that_was_made_in_a_flood_is_found(path: Path) -> None:
    inner = path.parent / "later" / "kdump"
    watch = FileWatch([inner])
    flood(path.parent)
    inner.parent.mkdir()
    assert any(one.lost for one in emptied(watch))
    inner.write_text("")
    assert drained(watch).paths == {inner}
    watch.close()


def test_a_directory_that_may_not_be_searched_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PermissionError, before: Path.is_dir() and Path.is_symlink() let it through."""

    def refuse(path: object, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    path = tmp_path / "closed" / "kdump"
    watch = FileWatch()
    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(os, "lstat", refuse)
    watch.watch([path])
    monkeypatch.undo()
    assert watch.missing == (path,)
    watch.close()
