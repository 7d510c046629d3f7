"""The debt model: its numbers, its identity, its reproducibility."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from node.executor.knowledge import encode_knowledge
from node.executor.limits import KNOWLEDGE_BYTES_MAX
from node.rituals import Context, Knowledge
from node.rituals.builtin.debt_scenario import branches, debt_scenario
from node.rituals.debt.calibration import Year, calibrate, calibration_of, read_figures
from node.rituals.debt.model import RISK_PREMIUM, Policy, schedule, simulate_one
from node.rituals.debt.policies import THEMES, policy_branches
from node.rituals.registry import Registry

STILL = calibrate()._replace(growth_deviation=0.0, interest_deviation=0.0, balance_deviation=0.0)


def run(seed: int = 1, **parameters: object) -> Knowledge:
    definition = Registry.load(entry_points=False)["debt_scenario"]
    assert definition.check(parameters) is None
    knowledge = debt_scenario(Context(parameters=definition.complete(parameters), seed=seed))
    assert isinstance(knowledge, Knowledge)
    return knowledge


def test_the_figures_are_read() -> None:
    years = read_figures()
    assert [year.year for year in years] == list(range(2000, 2024))
    assert years[-1] == Year(2023, 33167.3, 27721.0, 658.3)
    assert years[0].net_interest is None


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "figures.csv"
    path.write_text("year,debt,gdp,interest\n2000,1,2,\n2001,one,2,3\n")
    with pytest.raises(ValueError, match=r"figures.csv line 3: '2001,one,2,3'"):
        read_figures(path)


def test_calibration_on_the_figures() -> None:
    c = calibrate()
    assert c.year == 2023
    assert c.debt_ratio == pytest.approx(33167.3 / 27721)
    assert c.growth_mean == pytest.approx(0.0446, abs=1e-4)
    assert c.growth_deviation == pytest.approx(0.0279, abs=1e-4)
    assert c.interest_rate == pytest.approx(658.3 / 30928.9)
    assert c.interest_deviation == pytest.approx(0.0025, abs=1e-4)
    assert c.balance == pytest.approx(-0.0478, abs=1e-4), "a deficit of about five percent, not that of 2020"
    assert c.balance_deviation == pytest.approx(0.0224, abs=1e-4)
    assert -1 < c.growth_interest_correlation < 1
    assert c.growth_balance_correlation > 0, "budgets are better in good years"


def test_calibration_by_hand() -> None:
    c = calibration_of(
        [
            Year(1, 100, 200, None),
            Year(2, 110, 210, 2),
            Year(3, 121, 220, 3),
            Year(4, 130, 231, 4),
            Year(5, 140, 240, 5),
        ]
    )
    assert c.interest_rate == pytest.approx(5 / 130)
    balances = sorted([-8 / 210, -8 / 220, -5 / 231, -5 / 240])
    assert c.balance == pytest.approx((balances[1] + balances[2]) / 2)
    with pytest.raises(ValueError, match="needed are 3"):
        calibration_of([Year(1, 100, 200, None), Year(2, 110, 210, 2)])


def test_without_shocks_the_identity_holds() -> None:
    debts, bases = simulate_one(STILL, schedule(Policy(), 4), 1.0, None)
    assert debts == bases
    debt = STILL.debt_ratio
    for _ in range(4):
        rate = STILL.interest_rate + RISK_PREMIUM * (debt - STILL.debt_ratio)
        debt = debt * (1 + rate / 4) / (1 + STILL.growth_mean / 4) - STILL.balance / 4
    assert debts[-1] == pytest.approx(debt)


@pytest.mark.parametrize(
    ("policy", "lowers"),
    [
        (Policy(revenue_pct_gdp=1.0), True),
        (Policy(spending_pct_gdp=-1.0), True),
        (Policy(spending_pct_gdp=1.0), False),
        (Policy(growth_effect_pp=0.5), True),
        (Policy(interest_effect_pp=-0.5), True),
        (Policy(upfront_pct_gdp=1.0, upfront_years=3), False),
    ],
)
def test_levers_point_the_right_way(policy: Policy, lowers: bool) -> None:
    debts, bases = simulate_one(STILL, schedule(policy, 120), 1.0, None)
    assert (debts[-1] < bases[-1]) == lowers
    half, _ = simulate_one(STILL, schedule(policy._replace(adoption=0.5), 120), 1.0, None)
    assert abs(half[-1] - bases[-1]) < abs(debts[-1] - bases[-1])


def test_tightening_slows_growth_only_for_a_while() -> None:
    steps = schedule(Policy(revenue_pct_gdp=2.0, phase_in_years=2, multiplier=1.0), 400)
    assert steps[0].growth < 0
    assert steps[20].growth > 0
    assert sum(step.growth for step in steps) == pytest.approx(0.0, abs=1e-6)
    assert steps[-1].balance == pytest.approx(0.02)


def test_the_same_seed_gives_the_same_result_and_another_seed_another() -> None:
    first, again, other = run(seed=7), run(seed=7), run(seed=8)
    assert first == again
    assert first != other


def test_doing_nothing_changes_nothing() -> None:
    knowledge = run()
    assert knowledge.score == 0.0
    assert "makes little difference to debt" in knowledge.patterns
    debt = knowledge.result["debt_pct_gdp"]
    assert debt["median"] == debt["without_change"]
    assert debt["p10"] < debt["median"] < debt["p90"]
    assert debt["start"] == 119.6


def test_a_hundred_mixes_in_five_themes() -> None:
    mixes = list(policy_branches())
    assert len(mixes) == 100
    assert len({mix.task for mix in mixes}) == 100
    assert [mix.theme for mix in mixes[::20]] == list(THEMES)
    definition = Registry.load(entry_points=False)["debt_scenario"]
    for branch in branches():
        assert definition.check(branch["parameters"]) is None
        assert branch["parameters"]["scenarios"] == 100


def test_branches_are_spread_over_the_themes() -> None:
    assert [branch["parameters"]["theme"] for branch in branches("5", "200", "10")] == list(THEMES)
    for wrong in ({"count": 0}, {"count": 101}, {"scenarios": 99}, {"horizon_years": 0}, {"count": "many"}):
        with pytest.raises(ValueError, match=r"found|invalid"):
            branches(**wrong)


def test_results_of_real_branches() -> None:
    results = [run(**branch["parameters"]) for branch in branches(10)]
    for knowledge in results:
        assert len(encode_knowledge(knowledge, KNOWLEDGE_BYTES_MAX)) < 4_000
        assert json.dumps(knowledge.result)
        assert len(knowledge.result["fan"]) == 31
        assert knowledge.result["scenarios"] == 100
        assert 0 <= knowledge.novelty <= 1
        assert knowledge.patterns
        assert knowledge.connections
    patterns = [set(knowledge.patterns) for knowledge in results]
    assert any(first & second for first, second in pairwise(patterns)), "some are shared"
