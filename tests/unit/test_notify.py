"""What the service manager hears, on a real socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.report.notify import Notifier, watchdog_usec


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def heard(manager: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_states(manager: socket.socket) -> None:
    notifier = Notifier(clock=lambda: 123_456_789)
    assert notifier.ready()
    assert notifier.reloading()
    assert notifier.watchdog()
    assert notifier.stopping()
    assert heard(manager) == [
        "READY=1",
        "RELOADING=1\nMONOTONIC_USEC=123456789",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_reload_carries_the_monotonic_clock(manager: socket.socket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier().reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    (message,) = heard(manager)
    said = int(message.partition("MONOTONIC_USEC=")[2])
    assert before <= said <= after


def test_status_is_one_line_and_sent_when_it_changes(manager: socket.socket) -> None:
    notifier = Notifier()
    for status in ("complete", "complete", "bad\nREADY=1", "complete"):
        assert notifier.status(status)
    assert heard(manager) == ["STATUS=complete", "STATUS=bad READY=1", "STATUS=complete"]


def test_status_that_was_not_heard_is_said_again(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = Notifier()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notifier.status("complete")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    assert notifier.status("complete")
    assert heard(manager) == ["STATUS=complete"]


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not Notifier().ready()


def test_manager_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not Notifier().ready()


def test_watchdog_interval() -> None:
    mine = {"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier(environ=mine).watchdog_interval == 1.5
    assert Notifier(environ={}).watchdog_interval is None


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000"}, 3000),
        ({"WATCHDOG_USEC": "3000", "WATCHDOG_PID": "42"}, 3000),
        ({"WATCHDOG_USEC": "3000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "3000", "WATCHDOG_PID": ""}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_PID": "42"}, None),
    ],
)
def test_watchdog_of_the_environment(environ: dict[str, str], wanted: int | None) -> None:
    assert watchdog_usec(environ, 42) == wanted


@given(st.text(), st.one_of(st.none(), st.text()))
def test_any_environment_gives_a_limit_or_none(usec: str, pid: str | None) -> None:
    environ = {"WATCHDOG_USEC": usec, **({} if pid is None else {"WATCHDOG_PID": pid})}
    limit = watchdog_usec(environ, 42)
    assert limit is None or limit > 0
