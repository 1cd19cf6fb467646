"""How long no crash kernel is loaded: unload-and-reload, full load, delta load.

All of them in one guest, in turn, round after round: what disturbs one disturbs the
others too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.bench import guest, trace
from tests.bench.figures import Figure, Ratio, Section
from tests.bench.header import BenchError
from tests.vm.rig import CAPTURE_COMMAND_LINE, GIB, Dimm, Machine
from tests.vm.rig.progress import log

ROUNDS = 5
TIMES_SHORTER = 500

_RECORD_SECONDS = 60
_DIMM = 2 * GIB
_RELOAD = (
    "kexec -p -u && "
    f"kexec -c -p {guest.KERNEL} --initrd={guest.INITRD} --append='{CAPTURE_COMMAND_LINE}'"
)


class Rounds:
    """Collects microseconds by what was measured."""

    def __init__(self, vm: Machine) -> None:
        self.values: dict[str, list[float]] = {}
        self._vm = vm
        self._records = guest.Records(vm.guest)
        trace.start(vm.guest)

    def run(self) -> None:
        """One round: three delta loads, an unload-and-reload, a full load over that.

        No CPU is taken away: QEMU 7.2's software emulation, having lost a CPU, dies of
        a segmentation fault when memory goes next.
        """
        vm = self._vm
        dimm: Dimm = self._delta("DIMM added", lambda: vm.hot_add_dimm(_DIMM))
        vm.wait_for_memory(dimm)
        self._delta("CPU added", vm.hot_add_cpu)
        self._delta("DIMM removed", lambda: vm.hot_remove_dimm(dimm))
        self._unload_reload()
        self._full()

    def _note(self, name: str, usec: float) -> None:
        self.values.setdefault(name, []).append(usec)

    def _delta(self, what: str, change: Callable[[], Any]) -> Any:
        result = change()
        self._our_load("delta", what)
        return result

    def _full(self) -> None:
        self._vm.guest.run(f"systemctl reload {guest.UNIT}", timeout=300)
        self._our_load("full", "reload over kexec-tools' image")

    def _our_load(self, backend: str, what: str) -> None:
        """Wait for the record of one load; take its figure, and the kernel's beside it."""
        record = self._record_of_load()
        (call,) = trace.take(self._vm.guest)
        usec = int(record["KDUMPHPD_UNARMED_USEC"])
        if record["KDUMPHPD_BACKEND"] != backend or call.result or record["PRIORITY"] < "5":
            raise BenchError(f"{what}: not a {backend} load: {record['MESSAGE']}")
        self._note(f"{backend} journal", usec)
        self._note(f"{backend} trace", call.usec)
        log.info("%s: %s load, %d us (trace: %d us)", what, backend, usec, call.usec)

    def _record_of_load(self) -> dict[str, Any]:
        deadline = time.monotonic() + _RECORD_SECONDS
        while time.monotonic() < deadline:
            loads = [one for one in self._records.take() if "KDUMPHPD_UNARMED_USEC" in one]
            if loads:
                return loads[-1]
            time.sleep(0.5)
        raise BenchError(f"no load in {_RECORD_SECONDS} s\n{self._vm.console.tail()}")

    def _unload_reload(self) -> None:
        """What 98-kexec.rules ends in, timed by the guest's own clock."""
        vm = self._vm
        printed = vm.guest.run(
            f"date +%s%N; {_RELOAD} >/dev/null && date +%s%N", timeout=300
        ).split()
        calls = trace.take(vm.guest)
        if [one.segments == 0 for one in calls] != [True, False] or any(c.result for c in calls):
            raise BenchError(f"kexec-tools did not unload and load: {calls}")
        begin, end = map(int, printed)
        usec, traced = (end - begin) // 1000, trace.unarmed_by(calls)
        self._note("reload commands", usec)
        self._note("reload trace", traced)
        log.info("kexec-tools: unload and load, %d us (trace: %d us)", usec, traced)


def run(vm: Machine, rounds: int = ROUNDS) -> Section:
    """Run ``rounds`` rounds in ``vm``."""
    measured = Rounds(vm)
    for number in range(1, rounds + 1):
        log.info("loads: round %d of %d", number, rounds)
        measured.run()
    return _section(
        {name: tuple(one) for name, one in measured.values.items()},
        guest.where(vm),
        {
            "initrd": f"{guest.initrd_size(vm)} bytes",
            "kexec-tools": vm.guest.run("kexec --version").strip(),
            "rounds": rounds,
        },
    )


def _section(values: dict[str, tuple[float, ...]], where: str, facts: dict[str, Any]) -> Section:
    commands = Figure("kexec -p -u && kexec -c -p, whole commands", "us", values["reload commands"])
    reload = Figure("unload call to load call's end (trace)", "us", values["reload trace"])
    full = Figure("full load (trace)", "us", values["full trace"])
    delta = Figure("delta load (trace)", "us", values["delta trace"])
    journal = Figure("delta load (journal)", "us", values["delta journal"])
    return Section(
        "loads",
        where,
        (
            commands,
            reload,
            Figure("full load (journal)", "us", values["full journal"]),
            full,
            journal,
            delta,
        ),
        (
            Ratio(commands, journal, TIMES_SHORTER),
            Ratio(reload, delta, TIMES_SHORTER),
            Ratio(reload, full),
            Ratio(full, delta),
        ),
        facts,
    )
