"""CPU time of a look and of building a header, on a large machine made of files.

The machine is the unit tests' fake kernel, the code is the product's; nothing here
runs in a guest.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdumphpd.host import Host, open_host
from kdumphpd.load.keeper import State
from kdumphpd.machine.ranges import Range
from kdumphpd.machine.snapshot import MachineReader
from tests.bench.figures import Figure, Ratio, Section
from tests.unit import fake_files
from tests.unit.fake_kernel import FakeKernel
from tests.unit.synthetic import SyntheticBzImage

CPUS = 512
RANGES = 4096
ROUNDS = 15
HEADER_MSEC = 50

_MIB = 1 << 20
_GIB = 1 << 30
_BLOCK = 128 * _MIB
_INITRD_SIZE = 8 * _MIB
_CONFIG = "/etc/kdumphpd/kdumphpd.toml"
_CONFIG_TEXT = """\
[image]
source = "explicit"
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd.img"
command_line = "console=ttyS0"
"""


class BenchError(Exception):
    """What was measured is not what it was meant to be."""


def run(rounds: int = ROUNDS) -> Section:
    """Measure ``rounds`` times, each on a machine that has just got one more CPU."""
    with tempfile.TemporaryDirectory(prefix="kdumphpd-bench-") as directory:
        kernel = _machine(Path(directory), rounds)
        host = _loaded_host(kernel)
        values: dict[str, list[float]] = {}
        for extra in range(rounds):
            kernel.hot_add_cpu(CPUS + extra)
            _round(host, values)
        _check_header(host, CPUS + rounds)
    return _section({name: tuple(one) for name, one in values.items()})


def _machine(directory: Path, rounds: int) -> FakeKernel:
    """`CPUS` CPUs and `RANGES` ranges: every other memory block above 4 GiB is there."""
    ram = [Range(0x1000, 0x9FBFF), Range(_MIB, 2 * _GIB - 0x21001)]
    # The first is below 1 MiB and not dumped; the reservation splits the second.
    ram += (
        Range(start, start + _BLOCK - 1)
        for start in range(4 * _GIB, 4 * _GIB + (RANGES - 2) * 2 * _BLOCK, 2 * _BLOCK)
    )
    # The identity map of a terabyte takes control pages; they get room.
    reservation = Range(_GIB, _GIB + 512 * _MIB - 1)
    return FakeKernel(directory, ram, reservation, None, range(CPUS), CPUS + rounds)


def _loaded_host(kernel: FakeKernel) -> Host:
    files = {
        "/boot/vmlinuz": SyntheticBzImage().image(),
        "/boot/initrd.img": bytes(_INITRD_SIZE),
        _CONFIG: _CONFIG_TEXT.encode(),
    }
    for name, content in files.items():
        path = kernel.root.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    host = open_host(kernel.root, kernel, Path(_CONFIG))
    mended = host.keeper.load(host.reader.snapshot())
    if mended.loaded is None:
        raise mended.error()
    return host


def _round(host: Host, values: dict[str, list[float]]) -> None:
    def measure(name: str, function: Callable[[], Any]) -> Any:
        began = time.process_time_ns()
        result = function()
        values.setdefault(name, []).append((time.process_time_ns() - began) / 1e6)
        return result

    measure("first snapshot", MachineReader(host.root).snapshot)
    machine = measure("snapshot", host.reader.snapshot)
    header = measure("header", machine.header)
    stale = measure("stale", host.keeper.look)
    if stale.state is not State.STALE or stale.machine.header() != header:
        raise BenchError(f"a new CPU, but the look says {stale.state.value}")
    mended = host.keeper.mend(stale)
    if mended.loaded is None or mended.loaded.backend != "delta":
        raise BenchError(f"no delta load: {mended}")
    current = measure("current", host.keeper.look)
    if current.state is not State.CURRENT:
        raise BenchError(f"after a delta load, the look says {current.state.value}")


def _check_header(host: Host, cpus: int) -> None:
    """The unit tests' own reading of the header must find all that was asked for."""
    found = fake_files.read_elfcorehdr(host.reader.snapshot().header())
    # vmcoreinfo is one more note, the kernel text one more mapping.
    if (len(found.notes), len(found.loads)) != (cpus + 1, RANGES + 1):
        raise BenchError(f"{len(found.notes)} notes and {len(found.loads)} mappings in the header")


def _section(values: dict[str, tuple[float, ...]]) -> Section:
    update = tuple(map(sum, zip(values["snapshot"], values["header"])))
    first = Figure("first snapshot: every CPU's crash_notes", "ms CPU", values["first snapshot"])
    snapshot = Figure("snapshot after one CPU was added", "ms CPU", values["snapshot"])
    return Section(
        "header",
        f"on this machine itself, no emulation ({cpu_model()}, Python {platform.python_version()})",
        (
            first,
            snapshot,
            Figure("header built from it", "ms CPU", values["header"], HEADER_MSEC),
            Figure("snapshot and header", "ms CPU", update, HEADER_MSEC),
            Figure("whole look that finds nothing changed", "ms CPU", values["current"]),
            Figure("whole look that finds the new CPU", "ms CPU", values["stale"]),
        ),
        (Ratio(first, snapshot),),
        {"CPUs": CPUS, "memory ranges": RANGES, "tree": "generated"},
    )


def cpu_model() -> str:
    """The host's CPU as /proc/cpuinfo names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
