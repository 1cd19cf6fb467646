"""The guest's serial console, which QEMU writes to a file."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from .errors import RigError

_POLL_SECONDS = 0.1
_TAIL_LINES = 80  # a panic alone takes 40


class Console:
    """Reads and waits for what the guest prints."""

    def __init__(self, path: Path, alive: Callable[[], bool]) -> None:
        """Watch the file at ``path``; ``alive`` says whether the machine still runs."""
        self.path = path
        self._alive = alive

    def text(self) -> str:
        try:
            return self.path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
        except FileNotFoundError:
            return ""

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines, introduced, for an error message."""
        last = self.text().splitlines()[-lines:]
        return "\n".join([f"--- last {len(last)} lines of {self.path}", *last])

    def wait_for(self, pattern: str, timeout: float) -> re.Match[str]:
        """Wait until ``pattern`` matches anywhere in what was printed so far.

        Raises:
            RigError: the machine ended, or ``timeout`` seconds passed, without it.
        """
        deadline = time.monotonic() + timeout
        while True:
            alive = self._alive()  # asked first: what was printed last still counts
            match = re.search(pattern, self.text(), re.MULTILINE)
            if match is not None:
                return match
            if not alive:
                raise RigError(f"the machine ended without {pattern!r}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise RigError(f"no {pattern!r} in {timeout:.0f} s\n{self.tail()}")
            time.sleep(_POLL_SECONDS)
