"""Runs the matrix of guests and machines; ``python -m tests.vm.matrix``.

Leaves ``build/matrix/results.json``, and for each row that fails its console and error
in ``build/matrix/<row>/``. A run of some rows only (``--only``) renews theirs. ``--readme``
puts the results into the README's support table.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.vm.rig import build_wheel
from tests.vm.rig.progress import log
from tests.vm.rows import ROWS, TREE, Row, run

_KEY = ("guest", "firmware", "scenario")
_COLUMNS = ("guest", "kernel", "firmware", "scenario", "rung", "passed", "unarmed_usec")

Result = dict[str, Any]

_BEGIN, _END = "<!-- support table: python -m tests.vm.matrix --readme -->", "<!-- end -->"

# By the rungs that a row took.
_GUARANTEES = {
    "delta": "complete, image proven by its digest",
    "delta, full": "complete, image proven by its digest; loaded anew where it must be",
    "kernel, full": "the kernel adds; loaded anew where it must be",
    "kernel": "kept by the kernel, complete",
    "kernel, delta": "the kernel adds, what it leaves is repaired by a delta",
    "kernel, file": "the kernel adds, what it leaves is repaired by a new load",
    "file": "complete after each new load; no digest to prove the image by",
    "command": "complete after each run of the command; no digest of ours",
    "none": "the audit tells complete from stale, whoever loaded it",
    "all refused": "stays armed as it is; a crit record says that it is stale",
}


# Where the rungs do not tell.
_GUARANTEES_OF_SCENARIOS = {
    "lockdown=confidentiality": "the kernel adds; a removal is neither seen nor mended",
}


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%X")
    if options.readme:
        readme = TREE / "README.md"
        readme.write_text(with_table(readme.read_text(), _read(options.output / "results.json")))
        return 0
    rows = [row for row in ROWS if all(word in row.id for word in options.only)]
    if options.list or not rows:
        print("\n".join(row.id for row in rows) or "no such row")
        return 0 if rows else 64
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    wheel = _wheel(output / "wheel")
    known = _read(output / "results.json")
    for number, row in enumerate(rows, 1):
        log.info("row %d of %d: %s", number, len(rows), row.id)
        began = time.monotonic()
        result = run_row(row, wheel, output / row.id)
        outcome = "passed" if result["passed"] else "FAILED"
        log.info("%s: %s after %.0f s", row.id, outcome, time.monotonic() - began)
        known = merged(known, result)
        _write(output / "results.json", known)
    print(table(known))
    ours = {key(_identity(row)) for row in rows}
    failed = [one for one in known if key(one) in ours and not one["passed"]]
    return 1 if failed else 0


def run_row(row: Row, wheel: Path, directory: Path) -> Result:
    """Run ``row`` in ``directory``, which is kept only if it fails."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    result = {**_identity(row), "kernel": None, "rung": None, "passed": False, "unarmed_usec": None}
    try:
        seen = run(row, wheel, directory)
    except Exception:  # whatever a row fails with, the others are still to run
        text = traceback.format_exc()
        (directory / "error.txt").write_text(text)
        log.error("%s", text)
        return result
    shutil.rmtree(directory)
    return {
        **result,
        "kernel": seen.kernel,
        "rung": ", ".join(seen.rungs),
        "passed": True,
        "unarmed_usec": int(statistics.median(seen.unarmed_usec)) if seen.unarmed_usec else None,
    }


def key(result: Result) -> tuple[str, ...]:
    """What tells a row from the others."""
    return tuple(result[name] for name in _KEY)


def merged(known: Iterable[Result], new: Result) -> list[Result]:
    """Replace a row's result by its newer one, in the order of ROWS; drop rows that are gone."""
    by_key = {key(one): one for one in (*known, new)}
    order = [key(_identity(row)) for row in ROWS]
    return [by_key[one] for one in order if one in by_key]


def table(results: Iterable[Result]) -> str:
    """The results as a table, in Markdown."""
    return _markdown([_COLUMNS, *(tuple(_cell(one[name]) for name in _COLUMNS) for one in results)])


def with_table(readme: str, results: Iterable[Result]) -> str:
    """``readme`` with the support table of ``results`` between its two markers."""
    columns = ("kernel", "firmware", "scenario", "rung")
    rows: list[tuple[str, ...]] = [(*columns, "what is guaranteed")]
    for one in results:
        shown = {**one, "rung": one["rung"] or "all refused"}
        guarantee = _GUARANTEES_OF_SCENARIOS.get(one["scenario"]) or _GUARANTEES[shown["rung"]]
        guarantee = guarantee if one["passed"] else "FAILED"
        rows.append((*(_cell(shown[name]) for name in columns), guarantee))
    before, _, rest = readme.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{_markdown(rows)}\n{_END}{after}"


def _markdown(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return "" if value is None else str(value)


def _identity(row: Row) -> Result:
    return {
        "guest": row.guest.name,
        "firmware": row.options.firmware.value,
        "scenario": row.name,
    }


def _wheel(directory: Path) -> Path:
    given = os.environ.get("KDUMPHPD_WHEEL")
    if given:
        return Path(given).resolve()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return build_wheel(TREE, directory)


def _read(path: Path) -> list[Result]:
    return list(json.loads(path.read_text())) if path.exists() else []


def _write(path: Path, results: Iterable[Result]) -> None:
    ordered = [{name: one[name] for name in _COLUMNS} for one in results]
    path.write_text(json.dumps(ordered, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.vm.matrix", description=__doc__)
    parser.add_argument(
        "--only", metavar="TEXT", action="append", default=[], help="rows with TEXT in their name"
    )
    parser.add_argument("--list", action="store_true", help="name the rows, run none")
    parser.add_argument("--readme", action="store_true", help="renew the README's table, run none")
    parser.add_argument("--output", metavar="DIR", type=Path, default=TREE / "build/matrix")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
