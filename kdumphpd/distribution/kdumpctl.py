"""Which commands of kdumpctl run now.

``kdumpctl stop`` and a ``kdumpctl reload`` that failed leave the same behind: nothing
loaded, kdump.service active, the lock closed. Only the command itself tells an
administrator's decision from a fault, and only while it runs. kdumpctl opens its lock
before anything else (single_instance_lock); that is when to look.
"""

from __future__ import annotations

import os

from kdumphpd.machine import flocks
from kdumphpd.machine.files import Root

STOP = "stop"
_NAME = b"kdumpctl"
_LIMIT = 4096


def commands(root: Root) -> frozenset[str]:
    """The first argument of each kdumpctl that runs: ``start``, ``stop``, ``reload``."""
    try:
        processes = [
            name for name in os.listdir(root.path("/proc")) if name.isascii() and name.isdecimal()
        ]
    except OSError:
        return frozenset()
    # Whoever runs a program chooses what its command line seems to be.
    found = (
        _command(root, process)
        for process in processes
        if not flocks.is_another_user(flocks.real_user(int(process), root))
    )
    return frozenset(one for one in found if one)


def _command(root: Root, process: str) -> str:
    """It is a script: ``/bin/bash /usr/bin/kdumpctl stop``, with ``-x`` before it or not."""
    try:
        with root.path(f"/proc/{process}/cmdline").open("rb") as file:
            words = file.read(_LIMIT).split(b"\0")
    except OSError:
        return ""  # it has just ended
    for index, word in enumerate(words[:-1]):
        if word.rpartition(b"/")[2] == _NAME:
            return words[index + 1].decode("utf-8", "replace")
    return ""
