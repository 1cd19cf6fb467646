"""The parts of a host put together: what every command and the daemon begin with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kdumphpd.config import DEFAULT_PATH, Config, explicit_image, load_config
from kdumphpd.distribution import auto, verification
from kdumphpd.distribution.adoption import Owner
from kdumphpd.distribution.auto import Kdump
from kdumphpd.distribution.lock import KdumpLock
from kdumphpd.errors import ConfigError
from kdumphpd.image.source import ImageSource, ImageSpec
from kdumphpd.load.command import CommandLoader, command_of
from kdumphpd.load.file import FileLoader
from kdumphpd.load.keeper import Keeper
from kdumphpd.load.loader import Loader
from kdumphpd.load.rungs import Rungs
from kdumphpd.load.syscalls import Kernel
from kdumphpd.machine.files import Root
from kdumphpd.machine.snapshot import MachineReader


@dataclass(frozen=True)
class Host:
    """One host, live or recorded, with the image that its configuration asks for.

    Attributes:
        owner: who says what is loaded: our configuration, or the host's kdump.
        kdump: the distribution's kdump, whoever says it; None if there is none.
        lock: its lock, to be held around looks that decide a load, and the load.
    """

    root: Root
    config: Config
    reader: MachineReader
    source: ImageSource
    loader: Loader
    keeper: Keeper
    owner: Owner
    kdump: Kdump | None
    lock: KdumpLock
    kernel: Kernel
    clock: Callable[[], int]

    @property
    def asks(self) -> bool:
        """Whether what is to be loaded is asked of a kdump that may be at work."""
        return self.owner is Owner.KDUMP and self.root.is_live

    def asked_again(self) -> Host:
        """The same host, which asks anew what to load and opens the files anew.

        What this one has open stays as it is.
        """
        if self.owner is Owner.CONFIGURATION:
            source = ImageSource(self.source.spec)
        else:
            source = _ask(self.root, self.kdump, self.config)
        rungs = _rungs(
            self.root, self.config, self.kernel, self.reader, source, self.clock, self.lock
        )
        keeper = Keeper(self.root, self.reader, rungs)
        return replace(self, source=source, loader=rungs.loader, keeper=keeper)


def config_path(root: Root, path: Path) -> Path:
    """Where ``path`` lies: on the live host it is relative to where the user is."""
    return path.absolute() if root.is_live else root.path(str(path))


def read_config(root: Root, path: Path) -> Config:
    """The configuration under ``root``; it need not exist unless the user named it.

    Raises:
        ConfigError: it cannot be used.
    """
    return load_config(
        config_path(root, path), required=path != DEFAULT_PATH, check_owner=root.is_live
    )


def monotonic_usec() -> int:
    """CLOCK_MONOTONIC in microseconds, the clock of everything here."""
    return time.monotonic_ns() // 1000


def open_host(
    root: Root, kernel: Kernel, path: Path, clock: Callable[[], int] = monotonic_usec
) -> Host:
    """Read the configuration at ``path`` under ``root`` and put the parts together.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    config = read_config(root, path)
    if config.image.source == "auto":
        owner, kdump = Owner.KDUMP, auto.find(root)
        source = _ask(root, kdump, config)
    else:
        owner, kdump = Owner.CONFIGURATION, _find(root)
        source = _explicit(root, config, config_path(root, path))
    reader = MachineReader(root)
    lock = KdumpLock(kdump.lock if kdump else None, root)
    rungs = _rungs(root, config, kernel, reader, source, clock, lock)
    keeper = Keeper(root, reader, rungs)
    return Host(
        root, config, reader, source, rungs.loader, keeper, owner, kdump, lock, kernel, clock
    )


def _explicit(root: Root, config: Config, origin: Path) -> ImageSource:
    image = explicit_image(config, origin)
    return ImageSource(
        ImageSpec(
            root.path(str(image.kernel)),
            root.path(str(image.initrd)),
            image.command_line,
            origin=str(origin),
            no_kexec_load=verification.no_kexec_load(config.image.syscall, (), ""),
        )
    )


def _ask(root: Root, kdump: Kdump | None, config: Config) -> ImageSource:
    syscall = config.image.syscall
    if kdump is None:
        # There is nobody to ask, now or later.
        return ImageSource(auto.ask(root, kdump, syscall))
    return ImageSource(lambda: auto.ask(root, kdump, syscall))


def _find(root: Root) -> Kdump | None:
    """The kdump whose lock to take; with a configuration of our own it need not be usable."""
    try:
        return auto.find(root)
    except ConfigError:
        return None


def _rungs(
    root: Root,
    config: Config,
    kernel: Kernel,
    reader: MachineReader,
    source: ImageSource,
    clock: Callable[[], int],
    lock: KdumpLock,
) -> Rungs:
    command = command_of(root, config.update.command)
    return Rungs(
        root,
        kernel,
        source,
        Loader(root, kernel, reader, source, clock),
        FileLoader(root, kernel, reader, source, clock),
        CommandLoader(root, reader, command, clock) if command else None,
        lock.let_go,
    )
