"""The ways of loading of one host put together, with what is asked before any is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdumphpd.errors import KdumphpdError
from kdumphpd.image.source import ImageSource, ImageSpec
from kdumphpd.load import kept
from kdumphpd.load.command import CommandLoader
from kdumphpd.load.file import FileLoader
from kdumphpd.load.ladder import Route, Rung, route
from kdumphpd.load.loader import Loaded, Loader, NotDoneError
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
        spec = self._spec(ask=not own_image)
        return route(
            probe(self.root, self.kernel),
            own_image=own_image,
            no_kexec_load=spec.no_kexec_load if spec else "",
            no_file_load=spec.no_file_load if spec else "",
            command=self.command is not None,
        )

    def _spec(self, *, ask: bool) -> ImageSpec | None:
        """What is to be loaded; a delta load needs to know nothing, so that asks nobody."""
        try:
            return self.source.spec if ask else self.source.known
        except KdumphpdError:
            # Whoever says what to load cannot say; the load itself tells why.
            return None

    def load(self, rung: Rung, machine: Machine) -> Loaded:
        """Load the whole image by ``rung``; errors as the loaders'."""
        if rung is Rung.COMMAND and self.command is not None:
            self.before_command()
            return self.command.load(machine)
        spec = self.source.spec
        unfit = spec.no_file_load if rung is Rung.FILE else spec.no_kexec_load
        if unfit:
            raise NotDoneError(unfit)
        return self.file.load(machine) if rung is Rung.FILE else self.loader.full(machine)

    def take(self, machine: Machine, rung: Rung) -> Loaded | None:
        """Keep kdump's image; see `kdumphpd.load.kept.take`."""
        return kept.take(self.root, self.loader.reader, machine, rung, self.loader.clock)

    def is_made_of(self, image: Remembered) -> bool:
        """Whether ``image`` is made of what is configured."""
        if image.backend == kept.BY_KDUMP:
            return True
        if image.backend == Rung.COMMAND.value:
            return self.command is not None
        return image.image == self.file.image_digest()
