"""How long no crash kernel is loaded: unload-and-reload, full load, delta load.

All of them in one guest, in turn, round after round: what disturbs one disturbs the
others too. Where the kernel updates the header by itself, its time stands beside them.
"""

from __future__ import annotations

import time
from typing import Any

from tests.bench import guest, trace
from tests.bench.figures import Figure, Ratio, Section
from tests.bench.header import BenchError
from tests.vm.rig import CAPTURE_COMMAND_LINE, GIB, Machine
from tests.vm.rig.progress import log

ROUNDS = 5
TIMES_SHORTER = 500

# Figures, by the kernel's trace.
RELOAD = "unload-and-reload (trace)"
FULL = "full load (trace)"
DELTA = "delta load (trace)"
KERNEL = "kernel's own updates for one DIMM (trace)"

_RECORD_SECONDS = 60
_DIMM = 2 * GIB
_RELOAD = (
    "kexec -p -u && "
    f"kexec -c -p {guest.KERNEL} --initrd={guest.INITRD} --append='{CAPTURE_COMMAND_LINE}'"
)


class Rounds:
    """Collects microseconds by what was measured.

    Args:
        vm: traced already.
    """

    def __init__(self, vm: Machine) -> None:
        self.values: dict[str, list[float]] = {}
        self._vm = vm
        self._records = guest.Records(vm.guest)
        self._managed = trace.has_handler(vm.guest)

    def settle(self) -> None:
        """Leave out what has been traced so far, once the header is as it should be."""
        self._audited()
        trace.take(self._vm.guest)

    def run(self, cpus: int) -> None:
        """One round: a DIMM comes and goes, an unload-and-reload, a full load over that."""
        vm = self._vm
        dimm = vm.hot_add_dimm(_DIMM)
        if self._managed:
            vm.wait_for_memory(dimm)
            self._kept_by_kernel(cpus)
        else:
            self._our_load("delta", cpus, "DIMM added")
            vm.wait_for_memory(dimm)
        vm.hot_remove_dimm(dimm)
        self._our_load("delta", cpus, "DIMM removed")
        self._unload_reload(cpus)
        vm.guest.run(f"systemctl reload {guest.UNIT}", timeout=300)
        self._our_load("full", cpus, "reload over kexec-tools' image")

    def _note(self, cpus: int, name: str, value: float) -> None:
        self.values.setdefault(f"{cpus} {name}", []).append(value)

    def _our_load(self, backend: str, cpus: int, what: str) -> None:
        """Wait for the record of one load; take its figure, and the kernel's beside it."""
        record = self._record_of_load()
        calls = trace.loads(trace.take(self._vm.guest))
        if len(calls) != 1:
            raise BenchError(f"{what}: {len(calls)} loads instead of one: {calls}")
        call = calls[0]
        usec = int(record["KDUMPHPD_UNARMED_USEC"])
        if record["KDUMPHPD_BACKEND"] != backend or call.result or record["PRIORITY"] < "5":
            raise BenchError(f"{what}: not a {backend} load: {record['MESSAGE']}")
        self._note(cpus, f"{backend} journal", usec)
        self._note(cpus, f"{backend} trace", call.usec)
        log.info("%s: %s load, %d us (trace: %d us)", what, backend, usec, call.usec)

    def _record_of_load(self) -> dict[str, Any]:
        deadline = time.monotonic() + _RECORD_SECONDS
        while time.monotonic() < deadline:
            loads = [one for one in self._records.take() if "KDUMPHPD_UNARMED_USEC" in one]
            if loads:
                return loads[-1]
            time.sleep(0.5)
        raise BenchError(f"no load in {_RECORD_SECONDS} s\n{self._vm.console.tail()}")

    def _kept_by_kernel(self, cpus: int) -> None:
        """The kernel's own updates for one DIMM: once for each of its memory blocks."""
        self._audited()
        calls = trace.take(self._vm.guest)
        handled = [one.usec for one in calls if one.name == trace.HANDLER]
        if not handled:
            raise BenchError(f"the kernel did not keep the header by itself: {calls}")
        # On a busy host the kernel may be so late that the daemon does not wait for it.
        self._records.take()
        self._note(cpus, "handler calls", len(handled))
        self._note(cpus, "handler sum", sum(handled))
        self._note(cpus, "handler longest", max(handled))
        log.info("DIMM added: %d updates by the kernel, %d us", len(handled), sum(handled))

    def _audited(self) -> None:
        self._vm.guest.wait_until("kdumphpd audit", _RECORD_SECONDS)

    def _unload_reload(self, cpus: int) -> None:
        """What 98-kexec.rules ends in, timed by the guest's own clock."""
        vm = self._vm
        printed = vm.guest.run(
            f"date +%s%N; {_RELOAD} >/dev/null && date +%s%N", timeout=300
        ).split()
        calls = trace.loads(trace.take(vm.guest))
        # Newer kexec-tools unload by kexec_file_load.
        if len(calls) != 2 or not calls[1].segments or any(one.result for one in calls):
            raise BenchError(f"kexec-tools did not unload and load: {calls}")
        begin, end = map(int, printed)
        usec, traced = (end - begin) // 1000, trace.unarmed_by(calls)
        self._note(cpus, "reload commands", usec)
        self._note(cpus, "reload trace", traced)
        log.info("kexec-tools: unload and load, %d us (trace: %d us)", usec, traced)


def run(vm: Machine, rounds: int = ROUNDS) -> Section:
    """Run ``rounds`` rounds in ``vm`` with one CPU, and as many with two.

    Apart, because each call makes the reservation writable and read-only again
    (``arch_kexec_unprotect_crashkres``, with one image loaded and then the other, but with
    the kexec lock held), which has every other CPU flush its TLB. Between emulated CPUs
    on a busy host that takes milliseconds: of a delta load of 43 ms the function_graph
    tracer showed 19 ms in it at the beginning, 23 at the end, and 0.8 in between. Nothing in
    the call's arguments makes it less: it is two ranges, whatever the segments are.
    """
    measured = Rounds(vm)
    for cpus in (1, 2):
        guest.online(vm, cpus)
        measured.settle()
        for number in range(1, rounds + 1):
            log.info("loads: round %d of %d with %d CPUs", number, rounds, cpus)
            measured.run(cpus)
    values = {name: tuple(one) for name, one in measured.values.items()}
    figures, ratios = zip(*(_of(values, cpus) for cpus in (1, 2)))
    return Section(
        f"loads {vm.image.guest.name}",
        guest.where(vm),
        sum(figures, ()),
        sum(ratios, ()),
        guest.facts(vm),
    )


def _of(
    values: dict[str, tuple[float, ...]], cpus: int
) -> tuple[tuple[Figure, ...], tuple[Ratio, ...]]:
    """Figures and ratios with ``cpus`` CPUs online."""

    def figure(text: str, name: str, unit: str = "us") -> Figure:
        return Figure(with_cpus(text, cpus), unit, values[f"{cpus} {name}"])

    commands = figure("unload-and-reload (commands)", "reload commands")
    reload = figure(RELOAD, "reload trace")
    full = figure(FULL, "full trace")
    journal = figure("delta load (journal)", "delta journal")
    delta = figure(DELTA, "delta trace")
    figures = (commands, reload, full, journal, delta)
    ratios = (
        Ratio(commands, journal, TIMES_SHORTER),
        Ratio(reload, delta, TIMES_SHORTER),
        Ratio(reload, full),
        Ratio(full, delta),
    )
    if f"{cpus} handler sum" not in values:
        return figures, ratios
    handled = figure(KERNEL, "handler sum")
    longest = figure("longest of them", "handler longest")
    number = figure("how many they are", "handler calls", "calls")
    return (*figures, handled, longest, number), (*ratios, Ratio(handled, delta))


def with_cpus(name: str, cpus: int) -> str:
    """The figure ``name``, measured with ``cpus`` CPUs online."""
    return f"{name}, 1 CPU" if cpus == 1 else f"{name}, {cpus} CPUs"
