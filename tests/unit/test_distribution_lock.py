"""kdump's lock, against flock(1) and against ourselves."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdumphpd.distribution import lock
from kdumphpd.distribution.lock import KdumpLock
from kdumphpd.errors import BusyError
from kdumphpd.machine.files import Root

LIVE = Root()


class Clock:
    """Seconds that pass only while something waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def flock_says(path: Path) -> bool:
    """Whether flock(1), as kdumpctl calls it, gets the lock."""
    done = subprocess.run(["flock", "-n", str(path), "true"], check=False, timeout=30)
    return done.returncode == 0


def test_kdumpctl_waits_while_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "kdump"
    with lock.hold(path, LIVE):
        assert not flock_says(path)
    assert flock_says(path)
    assert not lock.is_held(path, LIVE)


def test_given_back_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "kdump"
    with pytest.raises(RuntimeError), lock.hold(path, LIVE):
        raise RuntimeError
    assert flock_says(path)


def test_time_limit_names_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "kdump"
    clock = Clock()
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert lock.is_held(path, LIVE)
        with pytest.raises(BusyError) as caught, lock.hold(path, LIVE, 3, clock, clock.sleep):
            pytest.fail("not held by us")
    assert clock.now == pytest.approx(3)
    assert str(path) in str(caught.value)
    assert f"process {os.getpid()} " in str(caught.value)
    assert "3 s" in str(caught.value)


def test_taken_as_soon_as_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "kdump"
    clock = Clock()
    other = path.open("w")
    fcntl.flock(other, fcntl.LOCK_EX)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now >= 1:
            other.close()

    with lock.hold(path, LIVE, 10, clock, sleep):
        assert 1 <= clock.now < 1.2
        assert not flock_says(path)


def test_directory_that_is_not_there(tmp_path: Path) -> None:
    """Nobody can hold a lock there: a load must not fail for a kdump that never ran."""
    path = tmp_path / "no" / "kdump"
    with lock.hold(path, LIVE):
        assert not path.parent.exists()
    assert not lock.is_held(path, LIVE)


@pytest.mark.parametrize(
    "make",
    [os.mkdir, os.mkfifo, lambda path: path.symlink_to(path.with_name("elsewhere"))],
    ids=["directory", "FIFO", "link"],
)
def test_what_is_no_file_is_no_lock(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A FIFO stopped the daemon, a link refused every load."""
    make(tmp_path / "kdump")
    with lock.hold(tmp_path / "kdump", LIVE):
        assert not (tmp_path / "elsewhere").exists()
    assert not lock.is_held(tmp_path / "kdump", LIVE)


def test_a_lock_that_others_can_write_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "kdump"
    path.touch()
    path.chmod(0o666)
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not lock.is_held(path, LIVE)


def test_it_is_closed_to_others(tmp_path: Path) -> None:
    """Whoever can open it for reading can lock it, and keep us and kdumpctl waiting."""
    for name in ("there", "made"):
        path = tmp_path / name
        if name == "there":
            path.touch()
            path.chmod(0o644)
        with lock.hold(path, LIVE):
            assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_users_lock_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "kdump"
    path.touch()
    os.chown(path, 4242, 4242)
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not lock.is_held(path, LIVE)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("hide", ["", "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0);"])
def test_another_user_who_opened_it_before_is_passed_over(tmp_path: Path, hide: str) -> None:
    """Also one whose /proc files seem to be root's (PR_SET_DUMPABLE, 0)."""
    path = tmp_path / "kdump"
    path.touch()
    script = (
        "import ctypes, fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY);"
        f"os.setuid(4242); {hide} fcntl.flock(fd, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert not flock_says(path)
        assert not lock.is_held(path, LIVE)
        other.kill()


def test_no_lock_at_all() -> None:
    with lock.hold(None, LIVE):
        pass
    assert not lock.is_held(None, LIVE)


def test_the_lock_is_let_go_for_kdumps_own_command(tmp_path: Path) -> None:
    path = tmp_path / "kdump"
    kdump = KdumpLock(path, LIVE)
    for _ in range(2):
        with kdump.held():
            assert not flock_says(path)
            kdump.let_go()
            assert flock_says(path)
        with kdump.held():
            assert not flock_says(path)
        assert flock_says(path)


def test_let_go_of_what_is_not_held() -> None:
    KdumpLock(None, LIVE).let_go()
