"""Figures as a table: median, least and most of the runs, and what was to be reached."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from scripts.bench.reference import ROUND_TRIPS_THERE

_IN_SECONDS = {"s": 1.0, "ms": 1e-3}


@dataclass(slots=True)
class Figure:
    """One measured quantity. `values` has one entry a run."""

    what: str
    unit: str
    reach: str
    values: list[float] = field(default_factory=list)
    note: str = ""
    is_work: bool = False
    """A processor is what limits it, so it is told in R too."""

    def row(self, round_trips_s: float) -> list[str]:
        digits = 0 if self.unit in ("/s", "MB") else 3 if self.unit == "s" else 2
        median, least, most = (f"{f(self.values):,.{digits}f}" for f in (statistics.median, min, max))
        in_r = self._in_r(round_trips_s) if self.is_work else ""
        return [
            self.what,
            f"{median} {self.unit}",
            f"{least} - {most}",
            str(len(self.values)),
            self.reach,
            in_r,
            self.note,
        ]

    def _in_r(self, round_trips_s: float) -> str:
        here = self._told(statistics.median(self.values), round_trips_s)
        return f"{here}, to reach {self._told(_number(self.reach), ROUND_TRIPS_THERE)}" if self.reach else here

    def _told(self, value: float, round_trips_s: float) -> str:
        """A rate for each round trip, a time in round trips."""
        if self.unit in _IN_SECONDS:
            return f"{value * _IN_SECONDS[self.unit] * round_trips_s:,.0f}"
        return f"{value / round_trips_s:.2g}"


def _number(reach: str) -> float:
    return float(reach.replace(",", ""))


HEADINGS = ["what", "median", "least - most", "runs", "to reach", "in R", "note"]


def markdown(figures: Sequence[Figure], round_trips_s: float) -> str:
    """`round_trips_s` is the R of the call."""
    rows = [HEADINGS, ["---"] * len(HEADINGS), *(figure.row(round_trips_s) for figure in figures if figure.values)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
