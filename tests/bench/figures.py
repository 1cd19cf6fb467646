"""Figures, ratios and the table that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One thing measured in several rounds.

    Attributes:
        name: what was measured.
        unit: of the values.
        values: one a round, in the order of the rounds.
        below: what the median is meant to stay below; None where nothing is asked.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    below: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without one."""
        return None if self.below is None else self.median < self.below

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "values": list(self.values),
            "min": min(self.values),
            "median": self.median,
            "max": max(self.values),
            "below": self.below,
            "met": self.met,
        }

    def cells(self) -> tuple[str, ...]:
        aim = "" if self.below is None else f"under {number(self.below)}: {_word(self.met)}"
        spread = (min(self.values), self.median, max(self.values))
        return (self.name, *(number(one) for one in spread), self.unit, str(len(self.values)), aim)


@dataclass(frozen=True)
class Ratio:
    """How many times as large one figure is as another of the same run.

    Attributes:
        large: the larger one.
        small: the smaller one.
        at_least: what the ratio of the medians is meant to reach; None where nothing is asked.
    """

    large: Figure
    small: Figure
    at_least: float | None = None

    @property
    def value(self) -> float:
        return self.large.median / self.small.median

    @property
    def worst(self) -> float:
        """The smallest value of the one over the largest of the other."""
        return min(self.large.values) / max(self.small.values)

    @property
    def best(self) -> float:
        return max(self.large.values) / min(self.small.values)

    @property
    def met(self) -> bool | None:
        return None if self.at_least is None else self.value >= self.at_least

    def to_json(self) -> dict[str, Any]:
        return {
            "large": self.large.name,
            "small": self.small.name,
            "worst": self.worst,
            "of_medians": self.value,
            "best": self.best,
            "at_least": self.at_least,
            "met": self.met,
        }

    def cells(self) -> tuple[str, ...]:
        aim = (
            "" if self.at_least is None else f"at least {number(self.at_least)}: {_word(self.met)}"
        )
        spread = (self.worst, self.value, self.best)
        name = f"{self.large.name} / {self.small.name}"
        return (name, *(number(one) for one in spread), "times", "", aim)


@dataclass(frozen=True)
class Section:
    """The figures of one part of the benchmark.

    Attributes:
        name: as ``--only`` takes it.
        where: what it was measured on, emulation said outright.
        facts: sizes and counts that the figures depend on.
    """

    name: str
    where: str
    figures: tuple[Figure, ...]
    ratios: tuple[Ratio, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "where": self.where,
            "facts": self.facts,
            "figures": [one.to_json() for one in self.figures],
            "ratios": [one.to_json() for one in self.ratios],
        }

    def text(self) -> str:
        head = ("", "min", "median", "max", "", "n", "aim")
        rows = [head, *(one.cells() for one in self.figures), *(one.cells() for one in self.ratios)]
        facts = "; ".join(f"{name}: {value}" for name, value in self.facts.items())
        return "\n".join((f"{self.name}: {self.where}", f"  {facts}", *table(rows)))


def number(value: float) -> str:
    """Three digits that mean something; whole above 100."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def table(rows: Sequence[tuple[str, ...]], right: Container[int] = (1, 2, 3, 5)) -> Iterable[str]:
    """Lines of ``rows`` in columns; the cells of those in ``right`` stand to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        )
        yield ("  " + "  ".join(cells)).rstrip()


def _word(met: bool | None) -> str:
    return "met" if met else "MISSED"
