"""One line for each kernel: how long each rung leaves the host not armed, beside the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.bench import files, loads
from tests.bench.figures import Section, number, table

_COLUMNS = {
    loads.RELOAD: "unload and reload",
    files.COMMAND: "kexec -s -p",
    files.FILE: "file",
    loads.FULL: "full",
    loads.KERNEL: "kernel, one DIMM",
    loads.DELTA: "delta",
}
_HEAD = ("kernel", "CPUs", *_COLUMNS.values(), "reload/delta")


def text(sections: Sequence[Section]) -> str:
    """Medians of `loads` and `files` in milliseconds; empty without any.

    A blank where a kernel has no such way, or where it was not measured.
    """
    medians = {
        (one.facts["kernel"], figure.name): figure.median
        for one in sections
        if "kernel" in one.facts
        for figure in one.figures
    }
    kernels = dict.fromkeys(kernel for kernel, _ in medians)
    rows = [row for kernel in kernels for row in _rows(kernel, medians)]
    if not rows:
        return ""
    title = "not armed per update, medians in ms"
    return "\n".join((title, *table((_HEAD, *rows), right=range(1, len(_HEAD)))))


def _rows(kernel: str, medians: dict[tuple[str, str], float]) -> Iterable[tuple[str, ...]]:
    for cpus in (1, 2):
        usec = [medians.get((kernel, loads.with_cpus(name, cpus))) for name in _COLUMNS]
        if usec[0] is None or usec[-1] is None:
            continue
        cells = ("" if one is None else number(one / 1e3) for one in usec)
        yield (kernel, str(cpus), *cells, number(usec[0] / usec[-1]))
