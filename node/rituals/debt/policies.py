"""A hundred policy mixes: five themes, four policies each, five strengths of every policy.

The sizes are round figures of the order discussed in public for such measures; they are assumptions to be varied, not
estimates. Strength scales the measure (revenue, spending, up-front cost, effects), not its timing.
"""

from collections.abc import Iterator
from typing import NamedTuple

from node.rituals.debt.model import Policy

STRENGTHS = (0.4, 0.7, 1.0, 1.3, 1.6)


class PolicyMix(NamedTuple):
    theme: str
    policy: str
    strength: float
    levers: Policy

    @property
    def task(self) -> str:
        return f"{self.theme}: {self.policy}, strength {self.strength:g}"


THEMES: dict[str, dict[str, Policy]] = {
    "Revenue Optimization": {
        "tax policy": Policy(revenue_pct_gdp=2.0, phase_in_years=4, growth_effect_pp=-0.05, multiplier=0.5),
        "economic growth first": Policy(revenue_pct_gdp=0.5, phase_in_years=6, growth_effect_pp=0.30, multiplier=0.3),
        "innovation incentives": Policy(
            revenue_pct_gdp=-0.3, phase_in_years=8, growth_effect_pp=0.25, growth_delay_years=2, multiplier=0.3
        ),
        "technology sector returns": Policy(
            revenue_pct_gdp=0.8, phase_in_years=5, growth_effect_pp=0.10, multiplier=0.3
        ),
    },
    "Spending Efficiency": {
        "program effectiveness": Policy(spending_pct_gdp=-1.0, phase_in_years=6, multiplier=0.4),
        "infrastructure investment": Policy(
            spending_pct_gdp=0.2,
            phase_in_years=6,
            growth_effect_pp=0.30,
            growth_delay_years=3,
            upfront_pct_gdp=0.6,
            upfront_years=6,
            multiplier=0.8,
        ),
        "defense optimization": Policy(spending_pct_gdp=-0.6, phase_in_years=5, multiplier=0.6),
        "entitlement reform": Policy(
            spending_pct_gdp=-2.2, phase_in_years=15, interest_effect_pp=-0.10, multiplier=0.3
        ),
    },
    "Energy Transition": {
        "nuclear expansion": Policy(
            phase_in_years=15,
            growth_effect_pp=0.20,
            growth_delay_years=7,
            upfront_pct_gdp=0.4,
            upfront_years=10,
            multiplier=0.6,
        ),
        "grid modernization": Policy(
            phase_in_years=8,
            growth_effect_pp=0.18,
            growth_delay_years=3,
            upfront_pct_gdp=0.3,
            upfront_years=8,
            multiplier=0.8,
        ),
        "energy independence": Policy(
            spending_pct_gdp=-0.2, phase_in_years=10, growth_effect_pp=0.10, volatility=0.9, multiplier=0.4
        ),
        "job creation": Policy(
            revenue_pct_gdp=0.3,
            phase_in_years=5,
            growth_effect_pp=0.12,
            upfront_pct_gdp=0.4,
            upfront_years=4,
            multiplier=0.9,
        ),
    },
    "Innovation Impact": {
        "AI transformation": Policy(
            revenue_pct_gdp=0.3, phase_in_years=12, growth_effect_pp=0.50, growth_delay_years=2, multiplier=0.3
        ),
        "automation productivity": Policy(
            spending_pct_gdp=0.1, phase_in_years=10, growth_effect_pp=0.35, growth_delay_years=2, multiplier=0.3
        ),
        "research investment": Policy(
            spending_pct_gdp=0.3, phase_in_years=12, growth_effect_pp=0.40, growth_delay_years=5, multiplier=0.5
        ),
        "technology exports": Policy(revenue_pct_gdp=0.2, phase_in_years=8, growth_effect_pp=0.18, multiplier=0.3),
    },
    "Strategic Consolidation": {
        "cross-domain mix": Policy(
            revenue_pct_gdp=1.0,
            spending_pct_gdp=-1.0,
            phase_in_years=8,
            growth_effect_pp=0.25,
            growth_delay_years=2,
            interest_effect_pp=-0.15,
            multiplier=0.4,
        ),
        "politically feasible mix": Policy(
            revenue_pct_gdp=1.2,
            spending_pct_gdp=-1.2,
            phase_in_years=10,
            growth_effect_pp=0.20,
            interest_effect_pp=-0.10,
            multiplier=0.4,
            adoption=0.6,
        ),
        "early implementation": Policy(
            revenue_pct_gdp=1.0, spending_pct_gdp=-1.0, phase_in_years=2, interest_effect_pp=-0.20, multiplier=0.7
        ),
        "risk mitigation": Policy(
            revenue_pct_gdp=0.6,
            spending_pct_gdp=-0.6,
            phase_in_years=8,
            interest_effect_pp=-0.25,
            volatility=0.7,
            multiplier=0.4,
        ),
    },
}

_SCALED = ("revenue_pct_gdp", "spending_pct_gdp", "growth_effect_pp", "interest_effect_pp", "upfront_pct_gdp")


def policy_branches() -> Iterator[PolicyMix]:
    """All mixes, theme by theme: branches 1 to 20 are the first theme, and so on."""
    for theme, policies in THEMES.items():
        for name, levers in policies.items():
            for strength in STRENGTHS:
                scaled = {field: round(getattr(levers, field) * strength, 4) for field in _SCALED}
                yield PolicyMix(theme, name, strength, levers._replace(**scaled))
