"""``python -m tests.bench``: measure, print tables, write build/bench/report.json."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import kdumphpd.image
from tests.bench import files, guest, header, idle, loads, summary, trace
from tests.bench.figures import Section
from tests.bench.header import BenchError
from tests.vm.rig import BOOKWORM, GUESTS, Guest, RigError

PARTS = ("header", "loads", "idle")
REPORT = guest.TREE / "build/bench/report.json"


def main() -> int:
    """Run the parts that were asked for; the exit code does not depend on the figures."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    sections: list[Section] = []
    failures: list[str] = []
    for section in _sections(arguments, failures):
        sections.append(section)
        print(f"\n{section.text()}\n", flush=True)
        _write(sections)
    print(f"{summary.text(sections)}\n\nreport: {REPORT.relative_to(guest.TREE)}")
    for one in failures:
        logging.error("not measured: %s", one)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given again")
    parser.add_argument(
        "--guest",
        choices=[one.name for one in GUESTS],
        action="append",
        help="where loads are measured (all); may be given again",
    )
    parser.add_argument(
        "--rounds", type=int, default=loads.ROUNDS, help="of loads in a guest (%(default)s)"
    )
    parser.add_argument(
        "--initrd-mib",
        type=int,
        default=32,
        help="pad the guest's initrd to this size, a usual kdump initrd's (%(default)s)",
    )
    parser.add_argument("--idle-seconds", type=float, default=idle.SECONDS, help="(%(default)s)")
    parser.add_argument("--wheel", type=Path, default=_given_wheel(), help="what to measure")
    return parser


def _given_wheel() -> Path | None:
    given = os.environ.get("KDUMPHPD_WHEEL")
    built = sorted((guest.TREE / "build/dist").glob("*.whl"))
    return Path(given) if given else (built[-1] if built else None)


def _sections(arguments: argparse.Namespace, failures: list[str]) -> Iterator[Section]:
    parts = arguments.only or PARTS
    if "header" in parts:
        _provide_purgatory(arguments.wheel)
        logging.info("header: %d rounds", header.ROUNDS)
        yield header.run()
    if "loads" in parts:
        chosen = [one for one in GUESTS if one.name in (arguments.guest or one.name)]
        for number, release in enumerate(chosen):
            left = (len(chosen) - number) * _minutes(arguments.rounds)
            logging.info("loads: %s; about %d min to go", release.name, left)
            try:
                yield from _loads(release, arguments)
            except (BenchError, RigError) as error:
                # The others are worth having all the same.
                failures.append(f"{release.name}: {error}")
    if "idle" in parts:
        with guest.running_daemon(BOOKWORM, arguments.wheel, arguments.initrd_mib) as vm:
            yield idle.run(vm, arguments.idle_seconds)


def _loads(release: Guest, arguments: argparse.Namespace) -> Iterator[Section]:
    with guest.running_daemon(release, arguments.wheel, arguments.initrd_mib, cpus=2) as vm:
        trace.start(vm.guest)
        yield files.run(vm, arguments.rounds)
        yield loads.run(vm, arguments.rounds)


def _minutes(rounds: int) -> float:
    """How long the loads of one guest take under emulation, about."""
    return 1 + rounds * 0.7


def _provide_purgatory(wheel: Path | None) -> None:
    """A source tree has no purgatory until something builds it; the wheel has."""
    place = Path(kdumphpd.image.__file__).parent / "purgatory.bin"
    if place.exists() or wheel is None:
        return
    with zipfile.ZipFile(wheel) as packed:
        place.write_bytes(packed.read("kdumphpd/image/purgatory.bin"))


def _write(sections: list[Section]) -> None:
    report = {
        "machine": {
            "cpu": header.cpu_model(),
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **{one.name: one.to_json() for one in sections},
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
