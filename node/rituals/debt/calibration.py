"""Turns the yearly figures in `node/rituals/data` into the parameters of the debt model.

What is estimated from the figures: mean and spread of nominal growth, the effective interest rate and the spread of
its yearly changes, the primary balance and its spread, and how the last two move with growth. What the few years cannot
tell is an assumption and named so. All rates are per year and fractions (0.04 is 4 %).
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import NamedTuple

FIGURES_PATH = Path(__file__).parent.parent / "data" / "us_public_finance.csv"

INTEREST_HALF_LIFE_YEARS = 8.0
"""Assumption: a shock to the effective rate fades by half in this time. About the pace at which the debt is refinanced:
its average maturity is around six years."""

BALANCE_HALF_LIFE_YEARS = 1.5
"""Assumption: budgets recover by half from a shock in this time, as after 2009 and 2020."""

MAD_TO_DEVIATION = 1.4826
"""Median absolute deviation to standard deviation, for a normal distribution."""


class Year(NamedTuple):
    year: int
    debt: float
    gdp: float
    net_interest: float | None


class Calibration(NamedTuple):
    year: int
    """The scenarios start at its end."""
    debt_ratio: float
    growth_mean: float
    growth_deviation: float
    interest_rate: float
    """Effective rate of the last year: net interest over the debt at the end of the year before."""
    interest_deviation: float
    """Of its yearly changes."""
    balance: float
    """Primary balance over GDP, negative for a deficit: the median year, so that 2020 does not set the norm."""
    balance_deviation: float
    """Robust, from the median absolute deviation, for the same reason."""
    growth_interest_correlation: float
    growth_balance_correlation: float


def read_figures(path: Path = FIGURES_PATH) -> list[Year]:
    """The table, oldest year first. ValueError names the line that cannot be read."""
    lines = path.read_text(encoding="utf-8").splitlines()
    years = []
    for number, line in enumerate(lines[1:], 2):
        try:
            year, debt, gdp, interest = line.split(",")
            years.append(Year(int(year), float(debt), float(gdp), float(interest) if interest else None))
        except ValueError as error:
            raise ValueError(f"{path.name} line {number}: {line!r} is not year,debt,gdp,interest") from error
    return years


@cache
def calibrate() -> Calibration:
    """From the figures that come with meshnode."""
    return calibration_of(read_figures())


def calibration_of(years: Sequence[Year]) -> Calibration:
    """The estimates. Needs at least three years with interest figures, each with the year before it."""
    growth = {after.year: after.gdp / before.gdp - 1.0 for before, after in pairwise(years)}
    interest: dict[int, float] = {}
    balance: dict[int, float] = {}
    for before, after in pairwise(years):
        if after.net_interest is None:
            continue
        interest[after.year] = after.net_interest / before.debt
        # Whatever raised the debt and was not interest. So it holds also what is no deficit in the budget's sense:
        # lending programmes, the Treasury's cash, the funds the government keeps for itself.
        balance[after.year] = -(after.debt - before.debt - after.net_interest) / after.gdp
    if len(interest) < 3:
        raise ValueError(f"found {len(interest)} years with interest figures, needed are 3")
    ordered = sorted(interest)
    changes = [interest[b] - interest[a] for a, b in pairwise(ordered)]
    balance_median = _median(list(balance.values()))
    absolute = [abs(value - balance_median) for value in balance.values()]
    last = years[-1]
    return Calibration(
        year=last.year,
        debt_ratio=last.debt / last.gdp,
        growth_mean=_mean(list(growth.values())),
        growth_deviation=_deviation(list(growth.values())),
        interest_rate=interest[ordered[-1]],
        interest_deviation=_deviation(changes),
        balance=balance_median,
        balance_deviation=MAD_TO_DEVIATION * _median(absolute),
        growth_interest_correlation=_correlation([growth[year] for year in ordered[1:]], changes),
        growth_balance_correlation=_correlation([growth[year] for year in ordered], [balance[y] for y in ordered]),
    )


# `statistics` would do all of this and costs a worker 30 ms at its start.


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _deviation(values: Sequence[float]) -> float:
    mean = _mean(values)
    return sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    x_mean, y_mean = _mean(xs), _mean(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    spread = sqrt(sum((x - x_mean) ** 2 for x in xs) * sum((y - y_mean) ** 2 for y in ys))
    return covariance / spread if spread else 0.0
