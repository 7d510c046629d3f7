"""A stylised model of public debt over GDP, in quarters, with and without a policy on the same shocks.

The identity d' = d * (1 + i) / (1 + g) - b holds for any country (Blanchard 2019, "Public Debt and Low Interest Rates",
AER 109(4), section I): d debt over GDP, i effective interest rate, g nominal growth, b primary balance over GDP.
Growth, interest and balance are drawn around their calibrated means: growth independently each quarter, interest and
balance as first-order autoregressions whose shocks are correlated with growth's. Two feedbacks, both assumptions of
usual size: a higher debt ratio raises the interest rate (`RISK_PREMIUM`), and tightening the budget slows growth while
it happens (`multiplier`), a loss that is made good over the following years.

It is a stylised model for comparing policy mixes under the same luck, not a forecast: no inflation surprises, no
monetary policy, no default, effects of policies as assumed in `node.rituals.debt.policies`.
"""

import random
from math import sqrt
from typing import NamedTuple

from node.rituals.debt.calibration import BALANCE_HALF_LIFE_YEARS, INTEREST_HALF_LIFE_YEARS, Calibration

QUARTERS = 4

RISK_PREMIUM = 0.02
"""Percentage points of interest per percentage point of debt ratio above today's. Gamber and Seliski (CBO working paper
2019-01) find 2 to 3 basis points, Laubach (2009) 3 to 4; the low end, because only new debt pays it."""

DRAG_RECOVERY_YEARS = 5.0
"""Output lost to tightening comes back by half in about 3.5 years (e-folding time 5 years)."""

GROWTH_FLOOR = -0.2
RATE_FLOOR = 0.0
"""No negative effective rate was seen in the figures."""


class Policy(NamedTuple):
    """One policy mix. Balances in % of GDP, effects in percentage points a year, once fully phased in."""

    revenue_pct_gdp: float = 0.0
    spending_pct_gdp: float = 0.0
    """Change of spending; negative is a cut."""
    phase_in_years: float = 5.0
    growth_effect_pp: float = 0.0
    growth_delay_years: float = 0.0
    """Investments earn later than they cost."""
    interest_effect_pp: float = 0.0
    upfront_pct_gdp: float = 0.0
    """Extra cost a year during the first `upfront_years`."""
    upfront_years: float = 0.0
    multiplier: float = 0.5
    """Output lost at once per unit of tightening; 0.5 is the lower middle of what is estimated for normal times."""
    adoption: float = 1.0
    """Share of the mix that gets through; scales every lever."""
    volatility: float = 1.0
    """Scales all shocks: below 1 for policies that reduce risk."""


class Quarter(NamedTuple):
    """What a policy does in one quarter, as fractions a year."""

    balance: float
    growth: float
    interest: float


def schedule(policy: Policy, quarters: int) -> list[Quarter]:
    """What the policy does in every quarter, fiscal drag included."""
    steps: list[Quarter] = []
    structural_before = 0.0
    gap = 0.0  # output lost to tightening so far, as a fraction
    recovery = 1.0 / (QUARTERS * DRAG_RECOVERY_YEARS)
    for quarter in range(quarters):
        years = (quarter + 1) / QUARTERS
        phase = min(1.0, years / policy.phase_in_years) if policy.phase_in_years > 0 else 1.0
        late = years - policy.growth_delay_years
        effect = 0.0
        if late > 0:
            effect = min(1.0, late / policy.phase_in_years) if policy.phase_in_years > 0 else 1.0
        structural = policy.adoption * phase * (policy.revenue_pct_gdp - policy.spending_pct_gdp) / 100
        if years <= policy.upfront_years:
            structural -= policy.adoption * policy.upfront_pct_gdp / 100
        lost = policy.multiplier * (structural - structural_before)
        recovered = gap * recovery
        gap += lost - recovered
        structural_before = structural
        growth = policy.adoption * effect * policy.growth_effect_pp / 100
        interest = policy.adoption * phase * policy.interest_effect_pp / 100
        steps.append(Quarter(structural, growth + QUARTERS * (recovered - lost), interest))
    return steps


class Paths(NamedTuple):
    """Debt over GDP at the start and at the end of every year; one list a scenario. Both sides of a scenario are run on
    the same draws, so that their difference is due to the policy alone."""

    policy: list[list[float]]
    baseline: list[list[float]]


def simulate_one(
    calibration: Calibration, steps: list[Quarter], volatility: float, rng: random.Random | None
) -> tuple[list[float], list[float]]:
    """One scenario: the path with the policy and the path without. Without `rng` there are no shocks."""
    c = calibration
    interest_keep = 0.5 ** (1 / (QUARTERS * INTEREST_HALF_LIFE_YEARS))
    balance_keep = 0.5 ** (1 / (QUARTERS * BALANCE_HALF_LIFE_YEARS))
    growth_shock = c.growth_deviation * sqrt(QUARTERS)  # of a quarter's growth at a yearly rate
    interest_shock = c.interest_deviation / sqrt(QUARTERS)
    balance_shock = c.balance_deviation * sqrt(1 - balance_keep**2)  # so that the spread over time is as calibrated
    with_interest, with_balance = c.growth_interest_correlation, c.growth_balance_correlation
    own_interest, own_balance = sqrt(1 - with_interest**2), sqrt(1 - with_balance**2)
    gauss = rng.gauss if rng is not None else _zero
    start = c.debt_ratio
    debt = base = start
    debts, bases = [start], [start]
    interest_gap = balance_gap = 0.0
    growth_mean, rate_mean, balance_mean = c.growth_mean, c.interest_rate, c.balance
    # The one hot loop of the ritual: 24,000 steps a branch. Hence written out for both sides without calls.
    for number, (step_balance, step_growth, step_interest) in enumerate(steps, 1):
        z = gauss(0.0, 1.0)
        interest_gap *= interest_keep
        interest_gap += interest_shock * (with_interest * z + own_interest * gauss(0.0, 1.0))
        balance_gap *= balance_keep
        balance_gap += balance_shock * (with_balance * z + own_balance * gauss(0.0, 1.0))
        shock = growth_shock * z

        rate = rate_mean + interest_gap + RISK_PREMIUM * (base - start)
        growth = growth_mean + shock
        if rate < RATE_FLOOR:
            rate = RATE_FLOOR
        if growth < GROWTH_FLOOR:
            growth = GROWTH_FLOOR
        base = base * (QUARTERS + rate) / (QUARTERS + growth) - (balance_mean + balance_gap) / QUARTERS

        rate = rate_mean + step_interest + volatility * interest_gap + RISK_PREMIUM * (debt - start)
        growth = growth_mean + step_growth + volatility * shock
        if rate < RATE_FLOOR:
            rate = RATE_FLOOR
        if growth < GROWTH_FLOOR:
            growth = GROWTH_FLOOR
        balance = balance_mean + step_balance + volatility * balance_gap
        debt = debt * (QUARTERS + rate) / (QUARTERS + growth) - balance / QUARTERS

        if number % QUARTERS == 0:
            debts.append(debt)
            bases.append(base)
    return debts, bases


def _zero(_mean: float, _deviation: float) -> float:
    return 0.0


def contributions(calibration: Calibration, policy: Policy, quarters: int) -> dict[str, float]:
    """By how much each group of levers alone lowers the debt ratio at the end, without shocks. They need not add up:
    the model is not linear."""
    alone = {
        "primary balance": policy._replace(growth_effect_pp=0.0, interest_effect_pp=0.0),
        "growth": policy._replace(
            revenue_pct_gdp=0.0, spending_pct_gdp=0.0, upfront_pct_gdp=0.0, interest_effect_pp=0.0
        ),
        "interest": policy._replace(
            revenue_pct_gdp=0.0, spending_pct_gdp=0.0, upfront_pct_gdp=0.0, growth_effect_pp=0.0
        ),
    }
    lowered = {}
    for name, part in alone.items():
        debts, bases = simulate_one(calibration, schedule(part, quarters), 1.0, None)
        lowered[name] = bases[-1] - debts[-1]
    return lowered
