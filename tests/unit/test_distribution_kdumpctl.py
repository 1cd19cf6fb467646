"""Commands of kdumpctl that run: a /proc of files, and one real process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.distribution.kdumpctl import commands
from kdumphpd.machine.files import Root


def process(directory: Path, pid: int | str, *words: str) -> None:
    path = directory / "proc" / str(pid)
    path.mkdir(parents=True)
    (path / "cmdline").write_text("".join(f"{word}\0" for word in words))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("/bin/bash", "/usr/bin/kdumpctl", "stop"), {"stop"}),
        (("/bin/bash", "-x", "/usr/bin/kdumpctl", "restart"), {"restart"}),
        (("bash", "kdumpctl", "reload"), {"reload"}),
        (("/bin/bash", "/usr/bin/kdumpctl"), set()),
        (("vi", "/usr/bin/kdumpctl.orig", "stop"), set()),
        ((), set()),
    ],
)
def test_one_process(tmp_path: Path, words: tuple[str, ...], found: set[str]) -> None:
    process(tmp_path, 7, *words)
    process(tmp_path, "self", "/bin/bash", "/usr/bin/kdumpctl", "start")
    (tmp_path / "proc/8").mkdir()  # has just ended
    assert commands(Root(tmp_path)) == found


def test_several(tmp_path: Path) -> None:
    process(tmp_path, 1, "/sbin/init")
    process(tmp_path, 2, "/bin/bash", "/usr/bin/kdumpctl", "stop")
    process(tmp_path, 3, "/bin/bash", "/usr/bin/kdumpctl", "reload")
    assert commands(Root(tmp_path)) == {"stop", "reload"}


def test_no_proc(tmp_path: Path) -> None:
    assert commands(Root(tmp_path)) == frozenset()


@given(content=st.binary(max_size=5000))
def test_any_command_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("host")
    process(directory, 9)
    (directory / "proc/9/cmdline").write_bytes(content)
    assert all(isinstance(one, str) for one in commands(Root(directory)))


def test_a_real_one(tmp_path: Path) -> None:
    script = tmp_path / "kdumpctl"
    script.write_text("#!/bin/bash\necho ready\nread line\n")
    script.chmod(0o755)
    command = f"stop-{os.getpid()}"
    with subprocess.Popen(
        [str(script), command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout
        running.stdout.readline()
        assert command in commands(Root())
        running.communicate(b"\n")
    assert command not in commands(Root())


def test_another_users_process_is_no_kdumpctl(tmp_path: Path) -> None:
    """Anybody can run a program whose command line says "kdumpctl stop"."""
    for pid, uid, command in ((7, 4242, "stop"), (8, os.getuid(), "reload")):
        process(tmp_path, pid, "/bin/bash", "/usr/bin/kdumpctl", command)
        status = f"Name:\tbash\nUid:\t{uid}\t0\t0\t0\n"
        (tmp_path / f"proc/{pid}/status").write_text(status)
    assert commands(Root(tmp_path)) == {"reload"}
