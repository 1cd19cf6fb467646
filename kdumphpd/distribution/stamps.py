"""What tells one content of a file from another, without reading it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

#: Path, and device, inode, size, time in nanoseconds.
Stamp = tuple[tuple[str, int, int, int, int], ...]


def stamp(paths: Iterable[Path]) -> Stamp:
    """What the files are now; one that is not there has zeros."""
    return tuple(_one(path) for path in paths)


def _one(path: Path) -> tuple[str, int, int, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (str(path), 0, 0, 0, 0)
    return (str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
