"""Progress lines: what the rig is doing, and how many seconds each step took."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("rig")


class Step:
    """One step under way; ``seconds`` is final once the step has ended."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._ended: float | None = None

    def end(self) -> None:
        self._ended = time.monotonic()

    @property
    def seconds(self) -> float:
        return (self._ended or time.monotonic()) - self._began


@contextmanager
def step(what: str) -> Iterator[Step]:
    """Log ``what`` as it begins, and again with its time when it is done."""
    log.info("%s ...", what)
    measured = Step()
    try:
        yield measured
    except BaseException:
        log.error("%s: failed after %.1f s", what, measured.seconds)
        raise
    measured.end()
    log.info("%s: done in %.1f s", what, measured.seconds)
