"""The ways of loading of one host put together, with what is asked before any is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdumphpd.errors import KdumphpdError
from kdumphpd.image.source import ImageSource
from kdumphpd.load.command import CommandLoader
from kdumphpd.load.file import FileLoader
from kdumphpd.load.ladder import Route, Rung, route
from kdumphpd.load.loader import Loaded, Loader
from kdumphpd.load.probe import probe
from kdumphpd.load.remembered import Remembered
from kdumphpd.load.syscalls import Kernel
from kdumphpd.machine.files import Root
from kdumphpd.machine.snapshot import Machine


@dataclass(frozen=True)
class Rungs:
    """What each rung does.

    Attributes:
        root: the host.
        kernel: is asked what it permits.
        source: what is to be loaded.
        loader: ``delta`` and ``full``.
        file: ``file``.
        command: ``command``, if there is one.
        before_command: makes way for it.
    """

    root: Root
    kernel: Kernel
    source: ImageSource
    loader: Loader
    file: FileLoader
    command: CommandLoader | None
    before_command: Callable[[], None]

    def route(self, *, own_image: bool) -> Route:
        """Which rungs to try now; see `kdumphpd.load.ladder.route`."""
        return route(
            probe(self.root, self.kernel),
            own_image=own_image,
            needs_file_load=self._needs_file_load(),
            command=self.command is not None,
        )

    def _needs_file_load(self) -> str:
        try:
            return self.source.spec.needs_file_load
        except KdumphpdError:
            # Whoever says what to load cannot say; a delta load needs to know nothing.
            return ""

    def load(self, rung: Rung, machine: Machine) -> Loaded:
        """Load the whole image by ``rung``; errors as the loaders'."""
        if rung is Rung.COMMAND and self.command is not None:
            self.before_command()
            return self.command.load(machine)
        return self.file.load(machine) if rung is Rung.FILE else self.loader.full(machine)

    def take(self, machine: Machine) -> Loaded | None:
        """Take what is loaded for what ``command`` would load; None if it is not complete."""
        try:
            return self.command.take(machine) if self.command is not None else None
        except KdumphpdError:
            # Whatever it is, the command's own is better known.
            return None

    def is_made_of(self, image: Remembered) -> bool:
        """Whether ``image`` is made of what is configured."""
        if image.backend == "command":
            return self.command is not None
        return image.image == self.file.image_digest()
