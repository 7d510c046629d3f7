"""Monte-Carlo debt dynamics for one policy mix: what happens to public debt over GDP, with it and without it?

The model is in `node.rituals.debt.model`, its calibration on US figures in `node.rituals.debt.calibration`, the figures
with their caveats in `node/rituals/data`. It is stylised: for comparing mixes under the same luck, not a forecast.
"""

from typing import Any

from node.rituals import Context, Knowledge, Parameter, ritual
from node.rituals.debt.calibration import Calibration, calibrate
from node.rituals.debt.model import QUARTERS, Paths, Policy, contributions, schedule, simulate_one
from node.rituals.debt.policies import policy_branches

SCENARIOS_MIN = 100
SCENARIOS_MAX = 100_000
HORIZON_YEARS_MAX = 100
STABLE_PP = 0.5
"""Debt counts as stable from the first year after which the median rises by less than this, in points of GDP a year."""

_POLICY = Policy()


@ritual(
    version="1",
    timeout_s=120.0,
    parameters=[
        Parameter("theme", "str", "the group of branches it belongs to", default="", length_max=100),
        Parameter("policy", "str", "name of the policy mix", default="", length_max=100),
        Parameter("strength", "float", "how strong the mix is, for the record", default=1.0, minimum=0.0, maximum=10.0),
        Parameter("scenarios", "int", "random scenarios", default=100, minimum=SCENARIOS_MIN, maximum=SCENARIOS_MAX),
        Parameter("horizon_years", "int", "years to look ahead", default=30, minimum=1, maximum=HORIZON_YEARS_MAX),
        Parameter("revenue_pct_gdp", "float", "change of revenue, % of GDP", default=0.0, minimum=-20, maximum=20),
        Parameter("spending_pct_gdp", "float", "change of spending, % of GDP", default=0.0, minimum=-20, maximum=20),
        Parameter("phase_in_years", "float", "until it is in full effect", default=5.0, minimum=0, maximum=100),
        Parameter("growth_effect_pp", "float", "change of growth, points a year", default=0.0, minimum=-5, maximum=5),
        Parameter("growth_delay_years", "float", "before growth responds", default=0.0, minimum=0, maximum=100),
        Parameter("interest_effect_pp", "float", "change of the interest rate", default=0.0, minimum=-5, maximum=5),
        Parameter("upfront_pct_gdp", "float", "extra cost at first, % of GDP", default=0.0, minimum=0, maximum=20),
        Parameter("upfront_years", "float", "how long the extra cost lasts", default=0.0, minimum=0, maximum=100),
        Parameter("multiplier", "float", "output lost per unit of tightening", default=0.5, minimum=0, maximum=3),
        Parameter("adoption", "float", "share of the mix that gets through", default=1.0, minimum=0, maximum=1),
        Parameter("volatility", "float", "factor on all shocks", default=1.0, minimum=0, maximum=5),
    ],
)
def debt_scenario(context: Context) -> Knowledge:
    """Simulates public debt over GDP under one policy mix and compares it with no change, over random scenarios."""
    parameters = context.parameters
    scenarios, horizon = int(parameters.get("scenarios", 100)), int(parameters.get("horizon_years", 30))
    policy = Policy(**{field: float(parameters.get(field, getattr(_POLICY, field))) for field in Policy._fields})
    calibration = calibrate()
    steps = schedule(policy, horizon * QUARTERS)
    paths = Paths([], [])
    report_every = max(1, scenarios // 10)
    for number in range(scenarios):
        debts, bases = simulate_one(calibration, steps, policy.volatility, context.random)
        paths.policy.append(debts)
        paths.baseline.append(bases)
        if (number + 1) % report_every == 0:
            context.progress((number + 1) / scenarios, f"{number + 1} of {scenarios} scenarios")
    return findings(calibration, policy, paths, contributions(calibration, policy, horizon * QUARTERS), parameters)


def findings(
    calibration: Calibration, policy: Policy, paths: Paths, lowered: dict[str, float], parameters: Any
) -> Knowledge:
    """What the simulated paths say. Ratios are reported in % of GDP."""
    horizon = len(paths.policy[0]) - 1
    fan = [[calibration.year + year, *_quantiles([path[year] for path in paths.policy])] for year in range(horizon + 1)]
    start, (_, low, median, high) = calibration.debt_ratio * 100, fan[-1]
    base_low, base_median, base_high = _quantiles([path[-1] for path in paths.baseline])
    reductions = sorted((base[-1] - path[-1]) * 100 for path, base in zip(paths.policy, paths.baseline, strict=True))
    reduction = reductions[len(reductions) // 2]
    falls = sum(path[-1] < calibration.debt_ratio for path in paths.policy) / len(paths.policy)
    better = sum(value > 0 for value in reductions) / len(reductions)
    stable_year = _stable_year(fan)
    strongest = max(lowered, key=lambda name: abs(lowered[name])) if any(lowered.values()) else None

    patterns = []
    if reduction > 1:
        patterns.append("lowers debt compared with no change")
    elif reduction < -1:
        patterns.append("raises debt compared with no change")
    else:
        patterns.append("makes little difference to debt")
    if falls > 0.5:
        patterns.append("debt ratio falls below today's in most scenarios")
    elif falls > 0.1:
        patterns.append("debt ratio falls below today's in some scenarios")
    else:
        patterns.append("debt ratio ends above today's in nearly all scenarios")
    if stable_year is not None:
        for years in (10, 20, 30):
            if stable_year - calibration.year <= years:
                patterns.append(f"median debt ratio is stable within {years} years")
                break
    if strongest is not None and abs(lowered[strongest]) > 0.01:
        patterns.append(f"{strongest} is the strongest lever")
    if high < base_median:
        patterns.append("even bad luck ends better than the median without change")
    if len(fan) > 3 and fan[3][2] > _quantiles([path[3] for path in paths.baseline])[1] + 0.1:
        patterns.append("costs come first: debt is higher after three years")
    if policy.upfront_pct_gdp > 0 and reduction > 0:
        patterns.append("up-front investment pays for itself within the horizon")
    if high - low < 0.9 * (base_high - base_low):
        patterns.append("narrows the range of outcomes")
    if abs(reduction) < 0.5 * (base_high - base_low):
        patterns.append("luck matters more than the policy")

    name = str(parameters.get("policy") or "the policy mix")
    label = f"{name}, strength {parameters.get('strength', 1.0):g}" if parameters.get("policy") else name
    return Knowledge(
        patterns=patterns,
        connections=_connections(policy, lowered),
        novelty=round(min(1.0, abs(reduction) / max(base_high - base_low, 1e-9)), 4),
        score=round(reduction, 3),
        summary=(
            f"{label}: debt at {median:.0f} % of GDP in {calibration.year + horizon} (80 % of scenarios between "
            f"{low:.0f} and {high:.0f}), {base_median:.0f} % without it"
        ),
        result={
            "theme": str(parameters.get("theme", "")),
            "policy": str(parameters.get("policy", "")),
            "levers": {key: value for key, value in policy._asdict().items() if value != getattr(_POLICY, key)},
            "scenarios": len(paths.policy),
            "horizon_years": horizon,
            "debt_pct_gdp": {
                "start": round(start, 1),
                "median": median,
                "p10": low,
                "p90": high,
                "without_change": base_median,
            },
            "reduction_points": round(reduction, 1),
            "probability_falls": round(falls, 3),
            "probability_better": round(better, 3),
            "stable_from_year": stable_year,
            "lowered_by_lever_points": {key: round(value * 100, 1) for key, value in lowered.items()},
            "fan": fan,
            "fan_columns": ["year", "p10", "median", "p90"],
        },
    )


def branches(count: int | str = 100, scenarios: int | str = 100, horizon_years: int | str = 30) -> list[dict[str, Any]]:
    """The branches of a session over the hundred policy mixes, spread evenly over the themes if `count` is smaller.
    ValueError if a number is out of range."""
    mixes = list(policy_branches())
    count, scenarios, horizon_years = int(count), int(scenarios), int(horizon_years)
    if not 1 <= count <= len(mixes):
        raise ValueError(f"count: found {count}, allowed are 1 to {len(mixes)}")
    if not SCENARIOS_MIN <= scenarios <= SCENARIOS_MAX:
        raise ValueError(f"scenarios: found {scenarios}, allowed are {SCENARIOS_MIN} to {SCENARIOS_MAX}")
    if not 1 <= horizon_years <= HORIZON_YEARS_MAX:
        raise ValueError(f"horizon_years: found {horizon_years}, allowed are 1 to {HORIZON_YEARS_MAX}")
    chosen = [mixes[position * len(mixes) // count] for position in range(count)]
    return [
        {
            "ritual": "debt_scenario",
            "task": mix.task,
            "parameters": {
                "theme": mix.theme,
                "policy": mix.policy,
                "strength": mix.strength,
                "scenarios": scenarios,
                "horizon_years": horizon_years,
                **{key: value for key, value in mix.levers._asdict().items() if value != getattr(_POLICY, key)},
            },
        }
        for mix in chosen
    ]


def _quantiles(ratios: list[float]) -> tuple[float, float, float]:
    """10th percentile, median and 90th percentile, in % of GDP, to a tenth."""
    ordered = sorted(ratios)
    last = len(ordered) - 1
    low, middle, high = (round(ordered[round(last * share)] * 100, 1) for share in (0.1, 0.5, 0.9))
    return low, middle, high


def _stable_year(fan: list[list[float]]) -> int | None:
    """First year after which the median never again rises by more than `STABLE_PP` in a year."""
    stable = None
    for before, after in zip(reversed(fan[:-1]), reversed(fan[1:]), strict=True):
        if after[2] - before[2] > STABLE_PP:
            break
        stable = int(before[0])
    return stable


def _connections(policy: Policy, lowered: dict[str, float]) -> list[tuple[str, str]]:
    """Which lever works through what, for levers that are used."""
    found = []
    if policy.revenue_pct_gdp:
        found.append(("more revenue" if policy.revenue_pct_gdp > 0 else "less revenue", "primary balance"))
    if policy.spending_pct_gdp:
        found.append(("less spending" if policy.spending_pct_gdp < 0 else "more spending", "primary balance"))
    if policy.upfront_pct_gdp:
        found.append(("up-front investment", "higher debt at first"))
    if policy.growth_effect_pp:
        found.append(("faster growth" if policy.growth_effect_pp > 0 else "slower growth", "debt ratio"))
    if policy.interest_effect_pp:
        found.append(("lower interest" if policy.interest_effect_pp < 0 else "higher interest", "debt ratio"))
    if policy.multiplier and policy.revenue_pct_gdp - policy.spending_pct_gdp > 0:
        found.append(("tightening", "slower growth at first"))
    for lever, value in lowered.items():
        if abs(value) > 0.01:
            found.append((lever, "lower debt" if value > 0 else "higher debt"))
    return found
