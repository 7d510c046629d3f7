"""Figures as a table: median, least and most of the runs, and what was to be reached."""

import statistics
from dataclasses import dataclass, field


@dataclass(slots=True)
class Figure:
    """One measured quantity. `values` has one entry a run."""

    what: str
    unit: str
    reach: str
    values: list[float] = field(default_factory=list)
    note: str = ""

    def row(self) -> list[str]:
        digits = 0 if self.unit in ("/s", "MB") else 3 if self.unit == "s" else 2
        median, least, most = (f"{f(self.values):,.{digits}f}" for f in (statistics.median, min, max))
        return [self.what, f"{median} {self.unit}", f"{least} - {most}", str(len(self.values)), self.reach, self.note]


HEADINGS = ["what", "median", "least - most", "runs", "to reach", "note"]


def markdown(figures: list[Figure]) -> str:
    rows = [HEADINGS, ["---"] * len(HEADINGS), *(figure.row() for figure in figures if figure.values)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
