"""The daemon's loop: file descriptors, signals and time go in, the service does the rest."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from kdumphpd.adopter import Adopter
from kdumphpd.distribution.hotplug_rules import LiveHotplugRules, RulesKeeper
from kdumphpd.distribution.watch import FileWatch
from kdumphpd.errors import MachineError
from kdumphpd.events.monitor import UeventMonitor, UeventSource, kernel_monitor
from kdumphpd.host import monotonic_usec, open_host
from kdumphpd.load.lock import single_instance
from kdumphpd.load.syscalls import Kernel
from kdumphpd.machine.files import Root
from kdumphpd.report.journal import open_reporter
from kdumphpd.report.notify import Notifier
from kdumphpd.service import Service

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def run_daemon(root: Root, kernel: Kernel, config: Path) -> int:
    """Run the service on the live host until SIGTERM or SIGINT; returns the exit code.

    Raises:
        KdumphpdError: it cannot start; what was loaded before still is.
    """
    with single_instance(root), _signals() as signals:
        # In this order nothing falls between: uevents are waited for before the service
        # looks, and it looks again once the hotplug rules are ours.
        monitor = UeventMonitor(kernel_monitor())
        reporter, rules, watch = open_reporter(), LiveHotplugRules(root), _file_watch()
        service = Service(
            lambda: open_host(root, kernel, config),
            reporter,
            monotonic_usec,
            Adopter(monotonic_usec, watch),
            RulesKeeper(rules),
        )
        try:
            service.start()
            Loop(service, monitor, signals, Notifier(), watch).run()
            service.stop()
        finally:
            # The unit's ExecStopPost= does the same, however this process ends.
            rules.give_back()
    return 0


def _file_watch() -> FileWatch:
    try:
        return FileWatch()
    except OSError as error:
        raise MachineError(
            f"inotify: {error.strerror}", "raise the sysctl fs.inotify.max_user_instances"
        ) from error


class Loop:
    """Waits for whatever comes first, and never longer than the watchdog allows.

    Args:
        service: does the work.
        monitor: the uevents.
        signals: a socket with a byte for each signal that arrived.
        notifier: tells the service manager.
        watch: the files that say when the host's kdump has acted.
    """

    def __init__(
        self,
        service: Service,
        monitor: UeventSource,
        signals: socket.socket,
        notifier: Notifier,
        watch: FileWatch,
    ) -> None:
        self._service = service
        self._monitor = monitor
        self._signals = signals
        self._notifier = notifier
        self._watch = watch
        self._stopping = False

    def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        self._notifier.ready()
        with selectors.DefaultSelector() as selector:
            selector.register(self._monitor, selectors.EVENT_READ, self._uevents)
            selector.register(self._signals, selectors.EVENT_READ, self._take_signals)
            selector.register(self._watch, selectors.EVENT_READ, self._service.files_changed)
            while not self._stopping:
                self._notifier.status(self._service.status)
                ready = selector.select(self._patience())
                # Before and after what may take as long as the watchdog waits.
                self._notifier.watchdog()
                for key, _ in ready:
                    self._guard(key.data)
                if not self._stopping:
                    self._guard(self._service.turn)
                self._notifier.watchdog()
        self._notifier.stopping()

    def _guard(self, step: Callable[[], object]) -> None:
        """Do one thing; whatever it raises must not end the service."""
        try:
            step()
        except Exception as error:
            self._service.unforeseen(error)

    def _patience(self) -> float:
        wait = max(0, self._service.deadline - monotonic_usec()) / 1e6
        watchdog = self._notifier.watchdog_interval
        return wait if watchdog is None else min(wait, watchdog / 2)

    def _uevents(self) -> None:
        self._service.uevents(self._monitor.drain())

    def _take_signals(self) -> None:
        for number in self._signals.recv(64):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stopping = True
            elif number == signal.SIGHUP:
                self._notifier.reloading()
                self._service.reload()
                self._notifier.ready()
            elif number == signal.SIGUSR1:
                self._service.report_status()


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that gets a byte with the number of each signal of `SIGNALS`."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = {number: signal.signal(number, _ignore) for number in SIGNALS}
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(previous)
            for number, handler in before.items():
                signal.signal(number, handler)


def _ignore(number: int, frame: object) -> None:
    """The wakeup descriptor has the number already."""
