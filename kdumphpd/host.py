"""The parts of a host put together: what every command and the daemon begin with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdumphpd.config import DEFAULT_PATH, Config, explicit_image, load_config
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
    """One host, live or recorded, with the image that its configuration asks for."""

    root: Root
    config: Config
    reader: MachineReader
    source: ImageSource
    loader: Loader
    keeper: Keeper


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
    origin = config_path(root, path)
    image = explicit_image(config, origin)
    spec = ImageSpec(
        root.path(str(image.kernel)),
        root.path(str(image.initrd)),
        image.command_line,
        origin=str(origin),
    )
    reader, source = MachineReader(root), ImageSource(spec)
    loader = Loader(root, kernel, reader, source, clock)
    command = command_of(root, config.update.command)
    rungs = Rungs(
        root,
        kernel,
        source,
        loader,
        FileLoader(root, kernel, reader, source, clock),
        CommandLoader(root, reader, command, clock) if command else None,
    )
    return Host(root, config, reader, source, loader, Keeper(root, reader, rungs))
