"""Files that somebody else may have put there: opened without waiting, and only if trusted."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kdumphpd.errors import InputError, PermissionMissingError
from kdumphpd.machine import trust
from kdumphpd.machine.files import MAX_BYTES, Root
from kdumphpd.machine.trust import DistrustError, NotRegularError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    path.chmod(0o644)
    return path


def content(fd: int) -> bytes:
    try:
        return trust.read_limited(fd, 100)
    finally:
        os.close(fd)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_opened(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)
    with pytest.raises(NotRegularError):
        trust.open_regular(path)


def test_a_link_is_followed_only_where_it_may_be(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    assert content(trust.open_regular(link)) == b"content"
    with pytest.raises(NotRegularError):
        trust.open_regular(link, follow=False)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write_is_not_trusted(path: Path, mode: int) -> None:
    path.chmod(mode)
    os.close(trust.open_regular(path))
    with pytest.raises(DistrustError) as caught:
        trust.open_regular(path, check_owner=True)
    assert f"mode {mode:04o}" in caught.value.problem
    assert caught.value.remedy == f"chmod go-w {path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_users_file_is_not_trusted(path: Path) -> None:
    os.chown(path, 4242, 4242)
    with pytest.raises(DistrustError, match="belongs to user 4242"):
        trust.open_regular(path, check_owner=True)


def test_a_lease_on_the_file_makes_nobody_wait(path: Path) -> None:
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with path.open("r+b") as holder:
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            with pytest.raises(BlockingIOError):
                trust.open_regular(path)
    finally:
        signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize(("mode", "trusted"), [(0o755, True), (0o777, False), (0o1777, True)])
def test_parents_in_which_others_can_replace_it(path: Path, mode: int, trusted: bool) -> None:
    path.parent.chmod(mode)
    if trusted:
        trust.trusted_parents(path)
        return
    with pytest.raises(DistrustError, match=str(path.parent)):
        trust.trusted_parents(path)


def test_the_parents_of_what_a_link_leads_to_count(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (open_to_all / "file").write_text("")
    link = tmp_path / "link"
    link.symlink_to(open_to_all / "file")
    with pytest.raises(DistrustError, match=str(open_to_all)):
        trust.trusted_parents(link)


def test_no_more_is_read_than_the_limit(path: Path) -> None:
    os.truncate(path, 1 << 40)
    assert len(content(trust.open_regular(path))) == 101


# --- files of the kernel, and of a recorded tree -------------------------------------------


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_recorded_tree_s_devices_end_in_an_error(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "iomem")
    with pytest.raises(InputError, match=f"{tmp_path}/iomem: not a regular file"):
        Root(tmp_path).read_text("/iomem")


def test_a_file_without_end_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "iomem").touch()
    os.truncate(tmp_path / "iomem", 1 << 40)
    with pytest.raises(InputError, match=f"larger than {MAX_BYTES >> 20} MiB"):
        Root(tmp_path).read_text("/iomem")


def test_what_cannot_be_reached_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    assert not Root().exists("/etc/passwd")


def test_missing_unreadable_and_no_file_are_told_apart() -> None:
    missing = FileNotFoundError(2, "No such file or directory")
    assert isinstance(trust.unreadable("kernel /k", missing, "name one"), InputError)
    assert "/k is not a regular file; name one" in str(
        trust.unreadable("kernel /k", NotRegularError(Path("/k")), "name one")
    )
    refused = trust.unreadable("kernel /k", PermissionError(13, "Permission denied"), "name one")
    assert isinstance(refused, PermissionMissingError)
    assert refused.exit_code == 77


def test_regular_means_regular(path: Path) -> None:
    fd = trust.open_regular(path)
    assert stat.S_ISREG(os.fstat(fd).st_mode)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(fd)
