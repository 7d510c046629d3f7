"""The checker accepts what a real register may show and names what it may not."""

import random
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.torture.linearizability import Operation, check
from tests.unit.torture.histories import Register, Row, history, is_linearizable_by_force

WRITE_1, WRITE_2, READ = ("write", 1), ("write", 2), ("read",)


def value(number: int) -> tuple[str, int]:
    return ("value", number)


GOOD = {
    "nothing": [],
    "one after another": [(0, 1, WRITE_1, "ok"), (2, 3, READ, value(1)), (4, 5, WRITE_2, "ok"), (6, 7, READ, value(2))],
    "a read beside a write sees the old": [(0, 3, WRITE_1, "ok"), (1, 2, READ, value(0))],
    "a read beside a write sees the new": [(0, 3, WRITE_1, "ok"), (1, 2, READ, value(1))],
    "writes side by side end in either order": [
        (0, 5, WRITE_1, "ok"), (0, 5, WRITE_2, "ok"), (6, 7, READ, value(1)), (8, 9, READ, value(1)),
    ],
    "an unknown write took effect late": [(0, None, WRITE_1, None), (1, 2, READ, value(0)), (3, 4, READ, value(1))],
    "an unknown write never took effect": [(0, None, WRITE_1, None), (1, 2, READ, value(0)), (8, 9, READ, value(0))],
    "two unknown writes took effect between reads": [
        (0, None, WRITE_1, None), (0, None, WRITE_2, None),
        (1, 2, READ, value(2)), (3, 4, READ, value(1)),
    ],
    "an unknown swap took effect": [(0, None, ("cas", 0, 2), None), (1, 2, READ, value(2))],
    "called at the moment another returned": [(0, 1, WRITE_1, "ok"), (1, 2, READ, value(0))],
}  # fmt: skip

BAD = {
    "stale read": ([(0, 1, WRITE_1, "ok"), (2, 3, READ, value(0))], 1),
    "own write is not read": ([(0, 1, WRITE_1, "ok"), (1.5, 1.6, READ, value(0)), (2, 3, READ, value(1))], 1),
    "reads go back": ([(0, 9, WRITE_1, "ok"), (1, 2, READ, value(1)), (3, 4, READ, value(0))], 2),
    "lost update": (
        [(0, 1, ("cas", 0, 1), ("swapped", True)), (0, 1, ("cas", 0, 2), ("swapped", True))], None,
    ),
    "applied twice": (
        [(0, None, WRITE_1, None), (1, 2, READ, value(1)), (3, 4, WRITE_2, "ok"), (5, 6, READ, value(1))], 3,
    ),
    "a value nobody wrote": ([(0, 1, WRITE_1, "ok"), (0, 1, READ, value(7))], 1),
    "an unknown write was seen before it was called": ([(0, 1, READ, value(1)), (2, None, WRITE_1, None)], 0),
    "an unknown write was taken back": (
        [(0, None, WRITE_1, None), (1, 2, READ, value(1)), (3, 4, READ, value(0))], 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("rows", GOOD.values(), ids=GOOD.keys())
def test_good_histories_are_accepted(rows: list[Row]) -> None:
    assert check(Register(), history(*rows)).word == "linearizable"


@pytest.mark.parametrize(("rows", "culprit"), BAD.values(), ids=BAD.keys())
def test_bad_histories_are_rejected_and_the_answer_is_named(rows: list[Row], culprit: int | None) -> None:
    operations = history(*rows)
    verdict = check(Register(), operations)
    assert verdict.word == "violated"
    assert not verdict.is_pass
    assert verdict.culprit in operations
    if culprit is not None:
        assert verdict.culprit == operations[culprit]


def test_too_much_work_is_given_up_and_no_pass() -> None:
    unknown = [Operation(f"c{i}", 0, None, ("write", i), None) for i in range(40)]
    verdict = check(Register(), [*unknown, Operation("reader", 1, 2, READ, value(99))], steps_max=1_000)
    assert verdict.word == "gave_up"
    assert not verdict.is_pass


def test_many_equal_unknown_operations_cost_little() -> None:
    unknown = [Operation(f"c{i}", i, None, WRITE_1, None) for i in range(200)]
    reads = [Operation("reader", 300 + i, 300.5 + i, READ, value(1)) for i in range(200)]
    assert check(Register(), [*unknown, *reads], steps_max=5_000).is_pass
    late = Operation("reader", 900, 901, READ, value(0))
    assert check(Register(), [*unknown, *reads, late], steps_max=20_000).word == "violated"


def real_history(seed: int, clients: int, operations: int, values: int) -> list[Operation]:
    """What clients of a real register may record: each operation takes effect at a random moment between call and
    return; some are never answered, of which some take effect late or never."""
    dice = random.Random(seed)
    planned: list[tuple[float, float, float | None, tuple[Any, ...], str]] = []
    for client in range(clients):
        now = dice.random()
        for _ in range(operations):
            call = now
            effect = call + dice.random()
            back: float | None = effect + dice.random()
            fate = dice.random()
            if fate < 0.1:
                back, effect = None, call + dice.random() * 10
            elif fate < 0.2:
                back, effect = None, float("inf")
            ask: tuple[Any, ...] = dice.choice(
                [READ, ("write", dice.randrange(values)), ("cas", dice.randrange(values), dice.randrange(values))]
            )
            planned.append((effect, call, back, ask, f"client-{client}"))
            now = (back if back is not None else call + 1) + dice.random()
    state: int = Register.initial
    recorded = []
    for effect, call, back, ask, name in sorted(planned, key=lambda row: row[0]):
        answer: Hashable = None
        if effect < float("inf"):
            if ask[0] == "read":
                answer = value(state)
            elif ask[0] == "write":
                state, answer = ask[1], "ok"
            else:
                answer = ("swapped", state == ask[1])
                state = ask[2] if state == ask[1] else state
        recorded.append(Operation(name, call, back, ask, None if back is None else answer))
    return recorded


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 12), st.integers(2, 4))
def test_what_a_real_register_shows_is_always_accepted(seed: int, clients: int, operations: int, values: int) -> None:
    verdict = check(Register(), real_history(seed, clients, operations, values))
    assume(verdict.word != "gave_up")  # one in many thousands has too many ways to look at
    assert verdict.word == "linearizable"


TIMES = st.integers(0, 8)
ASKED = st.one_of(
    st.just(READ),
    st.tuples(st.just("write"), st.integers(0, 2)),
    st.tuples(st.just("cas"), st.integers(0, 2), st.integers(0, 2)),
)


@st.composite
def any_operation(draw: st.DrawFn) -> Operation:
    ask = draw(ASKED)
    call = draw(TIMES)
    if draw(st.integers(0, 4)) == 0:
        return Operation("x", call, None, ask, None)
    answer: Hashable = {
        "read": ("value", draw(st.integers(0, 2))),
        "write": "ok",
        "cas": ("swapped", draw(st.booleans())),
    }[ask[0]]
    return Operation("x", call, call + draw(st.integers(0, 4)), ask, answer)


@settings(max_examples=400, deadline=None)
@given(st.lists(any_operation(), max_size=5))
def test_the_verdict_is_that_of_trying_everything(operations: list[Operation]) -> None:
    """Arbitrary histories, most of them wrong."""
    verdict = check(Register(), operations)
    assert verdict.word == ("linearizable" if is_linearizable_by_force(Register(), operations) else "violated")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**16))
def test_a_falsified_read_gets_the_verdict_of_trying_everything(seed: int, dice_seed: int) -> None:
    """Histories that are right but for one answer."""
    operations = real_history(seed, 2, 3, 3)
    dice = random.Random(dice_seed)
    number = dice.randrange(len(operations))
    changed = operations[number]
    if changed.back is not None and changed.given == READ:
        operations[number] = Operation(changed.client, changed.call, changed.back, READ, value(dice.randrange(3)))
    verdict = check(Register(), operations)
    assert verdict.word == ("linearizable" if is_linearizable_by_force(Register(), operations) else "violated")
