"""What a daemon that was killed owes the host: a load under way, or ``kdumpctl stop`` seen.

A load has the kernel free the old image before it looks at the new one. Whoever is killed
then, or fails, has left nothing, and the next daemon cannot see that: nothing loaded looks
like kdump stopped. So each load is noted before, and the note goes when something is loaded.

The note lies in /run, which ends with the boot that it is about.
"""

from __future__ import annotations

import contextlib
import os

from kdumphpd.errors import KdumphpdError
from kdumphpd.machine.files import Root

STATE = "/run/kdumphpd/duty"
_LOAD = "load"
_STOPPED = "stopped"
_LIMIT = 64


def begin_load(root: Root) -> None:
    """A load is about to be made: nothing loaded after this is ours to mend."""
    _write(root, _LOAD)


def note_stop(root: Root) -> None:
    """``kdumpctl stop`` was seen: nothing loaded is meant."""
    _write(root, _STOPPED)


def settle(root: Root) -> None:
    """Something is loaded, or nothing is and is meant to be."""
    with contextlib.suppress(OSError):
        root.path(STATE).unlink()


def load_is_owed(root: Root) -> bool:
    """Whether a load of ours was not ended; it counts where nothing is loaded."""
    return _read(root) == _LOAD


def stop_was_seen(root: Root) -> bool:
    """Whether ``kdumpctl stop`` was the last that an earlier daemon saw of kdump."""
    return _read(root) == _STOPPED


def _write(root: Root, text: str) -> None:
    path = root.path(STATE)
    beside = path.with_name(f"{path.name}.new")
    # Without /run/kdumphpd there is no daemon whose duty it could be.
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        beside.write_text(f"{text}\n", encoding="ascii")
        os.replace(beside, path)


def _read(root: Root) -> str:
    try:
        return root.read_text(STATE)[:_LIMIT]
    except KdumphpdError:
        return ""
