"""One kdumphpd at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdumphpd.errors import BusyError, KdumphpdError
from kdumphpd.load.lock import LOCK, single_instance
from kdumphpd.machine.files import Root


def test_the_second_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    root = Root(tmp_path)
    with single_instance(root):
        with pytest.raises(BusyError, match=rf"pid {os.getpid()}\); .*systemctl"):
            single_instance(root).__enter__()
        assert root.path(LOCK).read_text() == f"{os.getpid()}\n"
    with single_instance(root):
        pass


def test_an_error_inside_releases_it(tmp_path: Path) -> None:
    root = Root(tmp_path)
    with pytest.raises(KdumphpdError, match="inside"), single_instance(root):
        raise KdumphpdError("inside")
    with single_instance(root):
        pass


def test_what_an_earlier_holder_wrote_is_replaced(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.path(LOCK).parent.mkdir(parents=True)
    root.path(LOCK).write_text("1234567890123456789\n")
    with single_instance(root):
        assert root.path(LOCK).read_text() == f"{os.getpid()}\n"


def test_the_kernel_drops_it_when_the_process_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from kdumphpd.load.lock import single_instance\n"
        "from kdumphpd.machine.files import Root\n"
        "with single_instance(Root(Path(sys.argv[1]))):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"pid {process.pid}"):
            single_instance(Root(tmp_path)).__enter__()
        process.kill()
        process.wait(timeout=60)
        with single_instance(Root(tmp_path)):
            pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file in the way")
    with pytest.raises(KdumphpdError, match="run/kdumphpd"):
        single_instance(Root(tmp_path)).__enter__()


def test_others_cannot_open_it(tmp_path: Path) -> None:
    """Whoever can read it can lock it; commands run by hand made it readable."""
    root = Root(tmp_path)
    path = root.path(LOCK)
    path.parent.mkdir(parents=True)
    path.touch()
    path.chmod(0o644)
    with single_instance(root):
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("then", ["print('held', flush=True); sys.stdin.read()", "fork()"])
def test_another_user_who_opened_it_before_is_passed_over(tmp_path: Path, then: str) -> None:
    """Also one that has its child hold the lock, and ends."""
    (tmp_path / "proc").symlink_to("/proc")
    root = Root(tmp_path)
    path = root.path(LOCK)
    path.parent.mkdir(parents=True)
    path.touch()
    script = (
        "import fcntl, os, sys\n"
        "def fork():\n"
        "    if os.fork() == 0:\n"
        "        sys.stdin.readline()\n"
        "        print('held', flush=True); sys.stdin.read()\n"
        "    os._exit(0)\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY); os.setuid(4242)\n"
        f"fcntl.flock(fd, fcntl.LOCK_EX); {then}\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        if then == "fork()":
            other.wait(60)
            other.stdin.write("\n")
            other.stdin.flush()
        assert other.stdout.readline() == "held\n"
        with single_instance(root), pytest.raises(BusyError, match=rf"pid {os.getpid()}\)"):
            single_instance(root).__enter__()
