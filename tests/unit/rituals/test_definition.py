"""Declarations and the check of parameters."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.state import rows
from node.executor import work
from node.rituals import BranchInput, Context, Failure, Knowledge, Parameter, ritual
from node.rituals.definition import RitualDefinition, declaration_of
from node.rituals.registry import Registry

PARAMETERS = (
    Parameter("seconds", "float", "how long", default=1.0, minimum=0.0, maximum=60.0),
    Parameter("times", "int", "how often", minimum=1),
    Parameter("mode", "str", "which way", default="fast", choices=("fast", "slow")),
    Parameter("names", "list", "who", default=None, length_max=3),
    Parameter("options", "object", "more", default={}),
    Parameter("strict", "bool", "really", default=False),
)
DEFINITION = RitualDefinition("example", "1", "async", "", "module:example", PARAMETERS)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, "'times': missing, needed is int of at least 1 (how often)"),
        ({"times": 0}, "'times': found 0 (int), allowed is int of at least 1"),
        ({"times": True}, "'times': found True (bool)"),
        ({"times": 1.5}, "'times': found 1.5 (float)"),
        ({"times": 1, "secnds": 2}, "'secnds': unknown to ritual 'example'; did you mean 'seconds'?"),
        ({"times": 1, "zzz": 2}, "it takes mode, names, options, seconds, strict, times"),
        ({"times": 1, "seconds": 61}, "allowed is float from 0 to 60"),
        ({"times": 1, "seconds": math.nan}, "'seconds'"),
        ({"times": 1, "mode": "odd"}, "str out of 'fast', 'slow'"),
        ({"times": 1, "names": [1, 2, 3, 4]}, "length at most 3"),
        ({"times": 1, "strict": 1}, "'strict': found 1 (int), allowed is bool"),
        ({"times": "x" * 1_000}, "..."),
    ],
)
def test_what_is_wrong_is_said(parameters: dict[str, Any], text: str) -> None:
    error = DEFINITION.check(parameters)
    assert error is not None
    assert text in error
    assert len(error) < 300


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(1, 1e8, "int from 1 to 100000000"), (-0.5, None, "int of at least -0.5"), (None, math.inf, "int of at most inf")],
)
def test_limits_are_written_out(low: float | None, high: float | None, text: str) -> None:
    assert Parameter("points", "int", "how many", minimum=low, maximum=high).allowed() == text


def test_allowed_parameters_pass_and_are_completed() -> None:
    given_ones = {"times": 2, "seconds": 0, "names": None}
    assert DEFINITION.check(given_ones) is None
    assert DEFINITION.complete(given_ones) == {
        "times": 2,
        "seconds": 0,
        "mode": "fast",
        "names": None,
        "options": {},
        "strict": False,
    }


@given(st.dictionaries(st.sampled_from([p.name for p in PARAMETERS]) | st.text(max_size=8), json_values, max_size=6))
def test_check_never_raises_and_agrees_with_the_declaration(parameters: dict[str, Any]) -> None:
    error = DEFINITION.check(parameters)
    if error is not None:
        assert error.startswith("parameter ")
        return
    completed = DEFINITION.complete(parameters)
    assert set(completed) == {parameter.name for parameter in PARAMETERS}
    assert isinstance(completed["times"], int)
    assert completed["times"] >= 1
    assert 0 <= completed["seconds"] <= 60
    assert completed["mode"] in {"fast", "slow"}
    assert DEFINITION.check(completed) is None


@given(st.sampled_from(sorted(Registry.load(entry_points=False))), st.dictionaries(st.text(max_size=8), json_values))
def test_check_of_the_builtins_never_raises(name: str, parameters: dict[str, Any]) -> None:
    definition = Registry.load(entry_points=False)[name]
    error = definition.check(parameters)
    assert error is None or name in error or "parameter" in error


def test_undeclared_parameters_accept_anything() -> None:
    @ritual
    async def anything(context: Context) -> None:
        """One line.

        More that is not the description."""

    definition = declaration_of(anything).definition("anything", "m:anything")
    assert definition.check({"whatever": [1]}) is None
    assert (definition.kind, definition.version, definition.description) == ("async", "1", "One line.")
    assert definition.to_json()["parameters"] is None


def test_the_kind_follows_from_the_function() -> None:
    def plain(context: Context) -> None: ...

    assert declaration_of(plain).kind == "cpu"
    with pytest.raises(TypeError, match="must be a function"):
        declaration_of(3)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 0},
        {"timeout_s": math.inf},
        {"version": ""},
        {"version": "x" * 100},
        {"parameters": [Parameter("n", "int", "n", default="1")]},
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"found|default"):
        ritual(**options)(lambda context: None)


def test_the_tuples_of_rituals_mirror_the_rows() -> None:
    assert Knowledge._fields == rows.Knowledge.__struct_fields__
    assert Failure._fields == rows.Failure.__struct_fields__
    assert BranchInput._fields == work.BranchInput.__struct_fields__


def test_a_context_can_be_made_by_hand() -> None:
    first, second = Context(seed=5), Context(seed=5)
    assert first.random.random() == second.random.random()
    first.progress(0.5)
    first.log("nothing listens")
    assert first.seen(["x"]) == {}
