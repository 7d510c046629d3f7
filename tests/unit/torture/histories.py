"""What the tests of the checker share: a register, histories written down, and a slow checker to compare with."""

import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from tests.torture.linearizability import Model, Operation


class Register:
    """Read, write, compare-and-set. Written as ("write", 1) -> "ok", ("read",) -> 1, ("cas", 1, 2) -> True."""

    initial = 0

    def step(self, state: int, given: Any, output: Any) -> Iterator[int]:
        match given:
            case ("write", value):
                if output in (None, "ok"):
                    yield value
            case ("read",):
                if output is None or output == ("value", state):
                    yield state
            case ("cas", old, new):
                happens = state == old
                if output is None or output == ("swapped", happens):
                    yield new if happens else state
            case _:
                raise ValueError(f"a register is not asked {given}")


Row = tuple[float, float | None, Hashable, Hashable | None]
"""Call, return, what was asked, what was answered."""


def history(*rows: Row) -> list[Operation]:
    return [
        Operation(f"client-{number}", call, back, given, output)
        for number, (call, back, given, output) in enumerate(rows)
    ]


def is_linearizable_by_force(model: Model, operations: Sequence[Operation]) -> bool:
    """Tries every order of every subset that holds all answered operations."""
    answered = [operation for operation in operations if operation.back is not None]
    others = [operation for operation in operations if operation.back is None]
    for count in range(len(others) + 1):
        for some in itertools.combinations(others, count):
            for order in itertools.permutations([*answered, *some]):
                if respects_time(order) and is_possible(model, order):
                    return True
    return False


def respects_time(order: Sequence[Operation]) -> bool:
    return not any(
        later.back is not None and later.back < earlier.call for earlier, later in itertools.combinations(order, 2)
    )


def is_possible(model: Model, order: Sequence[Operation]) -> bool:
    states: set[Hashable] = {model.initial}
    for operation in order:
        states = {after for state in states for after in model.step(state, operation.given, operation.output)}
    return bool(states)
