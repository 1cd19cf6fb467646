"""Files of the running kernel (and of a recorded tree) under one root directory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kdumphpd.errors import InputError, PermissionMissingError
from kdumphpd.machine import trust

#: A list of all memory and devices has a few hundred KiB. What is larger is something else.
MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Root:
    """A directory that stands for ``/``: the live host, or a recorded tree.

    Attributes:
        directory: the directory.
        pause: waits some seconds, where a file shows what is so for a moment only.
        recorded: nothing is ever loaded from it, so it may be anybody's.
    """

    directory: Path = Path("/")
    pause: Callable[[float], None] = field(default=time.sleep, compare=False, repr=False)
    recorded: bool = False

    @property
    def is_live(self) -> bool:
        """Whether this is the running host and not a recording of one."""
        return self.directory == Path("/")

    def path(self, name: str) -> Path:
        """The path of absolute ``name`` under this root."""
        return self.directory / name.lstrip("/")

    def exists(self, name: str) -> bool:
        """Whether ``name`` can be seen under this root."""
        try:
            return self.path(name).exists()
        except OSError:  # in a directory that may not be searched
            return False

    def read_bytes(self, name: str) -> bytes:
        """Content of ``name``.

        Raises:
            PermissionMissingError: the kernel does not let this user read it.
            InputError: it is missing or cannot be read.
        """
        path = self.path(name)
        try:
            fd = trust.open_regular(path)
            try:
                content = trust.read_limited(fd, MAX_BYTES)
            finally:
                os.close(fd)
        except PermissionError as error:
            raise PermissionMissingError(
                f"{path}: {error.strerror}", "run kdumphpd as root"
            ) from error
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror}", "check that the kernel provides it"
            ) from error
        if len(content) > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB", "it is no such file")
        return content

    def read_text(self, name: str) -> str:
        """Content of ``name`` as text without the blanks around it; errors as `read_bytes`."""
        return self.read_bytes(name).decode("utf-8", "replace").strip()

    def first_existing(self, *names: str) -> str | None:
        """The first of ``names`` that exists; kernels moved some files over time."""
        return next((name for name in names if self.exists(name)), None)
