"""The daemon's loop on real descriptors: uevents, signals, the service manager's socket."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdumphpd import daemon
from kdumphpd.adopter import Adopter
from kdumphpd.daemon import Loop, run_daemon
from kdumphpd.distribution.hotplug_rules import RulesKeeper
from kdumphpd.distribution.watch import FileWatch
from kdumphpd.errors import BusyError, ConfigError
from kdumphpd.events.monitor import UeventMonitor
from kdumphpd.host import open_host
from kdumphpd.load.lock import single_instance
from kdumphpd.report.journal import Reporter
from kdumphpd.report.notify import Notifier
from kdumphpd.report.records import Kind, Priority
from kdumphpd.service import Service
from tests.unit.fake_monitor import FakeMonitor
from tests.unit.host_fixture import CONFIG, DIMM, FakeHost, Records

pytestmark = pytest.mark.timeout(60)


class Script(Records):
    """Records, and what a test does when one of a kind comes."""

    def __init__(self, armed: Callable[[], bool]) -> None:
        super().__init__(armed)
        self._steps: list[tuple[Kind, Callable[[], object]]] = []

    def when(self, kind: Kind, step: Callable[[], object]) -> None:
        """At the next record of ``kind`` after the steps before this one."""
        self._steps.append((kind, step))

    def __call__(self, logger: Any, method_name: str, event_dict: Any) -> Any:
        if self._steps and event_dict["kind"] is self._steps[0][0]:
            self._steps.pop(0)[1]()
        super().__call__(logger, method_name, event_dict)


class Setup:
    """A loop with everything real but the kernel: descriptors, clock, datagram socket."""

    def __init__(self, host: FakeHost, monitor: FakeMonitor, signals: socket.socket) -> None:
        self.host = host
        self.monitor = monitor
        self.signals = signals
        self.records = Script(lambda: host.kernel.loaded)
        self.watch = FileWatch()
        self.service = Service(
            lambda: open_host(host.root, host.kernel, CONFIG),
            Reporter(self.records),
            daemon.monotonic_usec,
            Adopter(daemon.monotonic_usec, self.watch, host.state_of),
            RulesKeeper(host.rules),
        )

    def send(self, *numbers: signal.Signals) -> None:
        self.signals.send(bytes(numbers))

    def run(self, reader: socket.socket, notifier: Notifier) -> None:
        self.service.start()
        Loop(self.service, UeventMonitor(self.monitor), reader, notifier, self.watch).run()
        self.service.stop()
        self.watch.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield listener


def heard(manager: socket.socket) -> list[str]:
    """First words of what the manager was told, in order; repeated ones once."""
    words: list[str] = []
    while True:
        try:
            message = manager.recv(4096).decode()
        except BlockingIOError:
            return words
        word = message.partition("\n")[0].partition(":")[0]
        if not words or words[-1] != word:
            words.append(word)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path / "host")


@pytest.fixture
def ends(host: FakeHost) -> Iterator[tuple[Setup, socket.socket]]:
    reader, writer = socket.socketpair()
    monitor = FakeMonitor()
    reader.setblocking(False)
    with reader, writer:
        yield Setup(host, monitor, writer), reader
    monitor.close()


def test_a_uevent_is_answered_and_sigterm_ends_it(
    ends: tuple[Setup, socket.socket], manager: socket.socket
) -> None:
    setup, reader = ends

    def plug() -> None:
        setup.host.kernel.hot_add_memory(DIMM)
        for number in range(32, 48):
            setup.monitor.emit("add", f"memory{number}")

    setup.records.when(Kind.STARTED, plug)
    setup.records.when(Kind.UPDATED, lambda: setup.send(signal.SIGTERM))
    setup.run(reader, Notifier())
    assert setup.records.kinds == [Kind.STARTED, Kind.UPDATED, Kind.STOPPED]
    assert setup.records[1].details.uevents == 16
    assert [call.names for call in setup.host.kernel.calls[1:]] == [("elfcorehdr",)]
    setup.host.assert_complete()
    said = heard(manager)
    assert said[:2] == ["READY=1", "STATUS=complete"]
    assert "WATCHDOG=1" in said
    assert said[-1] == "STOPPING=1"


def test_an_overrun_is_answered_too(ends: tuple[Setup, socket.socket]) -> None:
    setup, reader = ends

    def plug() -> None:
        setup.host.kernel.hot_add_cpu(4)
        setup.monitor.overrun()

    setup.records.when(Kind.STARTED, plug)
    setup.records.when(Kind.UPDATED, lambda: setup.send(signal.SIGINT))
    setup.run(reader, Notifier())
    setup.host.assert_complete()


def test_sigusr1_records_the_status(ends: tuple[Setup, socket.socket]) -> None:
    setup, reader = ends
    setup.send(signal.SIGUSR1, signal.SIGTERM)
    setup.run(reader, Notifier())
    assert setup.records.kinds == [Kind.STARTED, Kind.STATUS, Kind.STOPPED]
    assert setup.records[1].details.verdict == "complete"


def test_sighup_reads_the_configuration_again(
    ends: tuple[Setup, socket.socket], manager: socket.socket
) -> None:
    setup, reader = ends

    def configure() -> None:
        setup.host.configure(command_line="root=/dev/vdz nr_cpus=1")
        setup.send(signal.SIGHUP)

    setup.records.when(Kind.STARTED, configure)
    setup.records.when(Kind.UPDATED, lambda: setup.send(signal.SIGTERM))
    setup.run(reader, Notifier())
    assert "root=/dev/vdz" in setup.host.command_line()
    said = heard(manager)
    assert said.index("RELOADING=1") > said.index("READY=1")
    assert said[said.index("RELOADING=1") + 1] == "READY=1"
    assert said[-1] == "STOPPING=1"


def test_sighup_with_a_broken_configuration_keeps_the_old_one(
    ends: tuple[Setup, socket.socket], manager: socket.socket
) -> None:
    setup, reader = ends

    def break_it() -> None:
        setup.host.write(str(CONFIG), "[image")
        setup.send(signal.SIGHUP)

    setup.records.when(Kind.STARTED, break_it)
    setup.records.when(Kind.STATUS, lambda: setup.send(signal.SIGTERM))
    setup.run(reader, Notifier())
    (status,) = setup.records.of(Kind.STATUS)
    assert status.priority is Priority.ERR
    assert "the old configuration stays" in status.message
    setup.host.assert_complete()
    said = heard(manager)
    assert said[said.index("RELOADING=1") + 1] == "READY=1", "a failed reload is over too"


def test_many_signals_at_once_are_all_taken(ends: tuple[Setup, socket.socket]) -> None:
    setup, reader = ends
    setup.send(*[signal.SIGUSR1] * 100)
    setup.send(signal.SIGTERM)
    setup.run(reader, Notifier())
    assert setup.records.kinds.count(Kind.STATUS) == 100


# --- the whole daemon ------------------------------------------------------------------


def test_the_whole_daemon_lives_on_real_signals(
    host: FakeHost,
    manager: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monitor = FakeMonitor()
    monkeypatch.setattr(daemon, "kernel_monitor", lambda: monitor)
    records = Script(lambda: host.kernel.loaded)
    monkeypatch.setattr(daemon, "open_reporter", lambda: Reporter(records))

    def change() -> None:
        host.kernel.hot_add_memory(DIMM)
        monitor.emit("add", "memory32")
        os.kill(os.getpid(), signal.SIGUSR1)

    records.when(Kind.STARTED, change)
    records.when(Kind.UPDATED, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = {number: signal.getsignal(number) for number in daemon.SIGNALS}
    assert run_daemon(host.root, host.kernel, CONFIG) == 0
    monitor.close()
    assert sorted(one.name for one in records.kinds) == ["STARTED", "STATUS", "STOPPED", "UPDATED"]
    assert records.kinds[-1] is Kind.STOPPED
    host.assert_complete()
    assert heard(manager)[-1] == "STOPPING=1"
    assert {number: signal.getsignal(number) for number in daemon.SIGNALS} == before
    with single_instance(host.root):
        pass
    assert capsys.readouterr().err == ""


def test_it_does_not_start_beside_another(host: FakeHost) -> None:
    with single_instance(host.root), pytest.raises(BusyError):
        run_daemon(host.root, host.kernel, CONFIG)


def test_it_does_not_start_with_a_broken_configuration(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = FakeMonitor()
    monkeypatch.setattr(daemon, "kernel_monitor", lambda: monitor)
    host.load()
    host.write(str(CONFIG), "colour = 1")
    before = {number: signal.getsignal(number) for number in daemon.SIGNALS}
    with pytest.raises(ConfigError, match="colour"):
        run_daemon(host.root, host.kernel, CONFIG)
    monitor.close()
    assert {number: signal.getsignal(number) for number in daemon.SIGNALS} == before
    host.assert_complete()
