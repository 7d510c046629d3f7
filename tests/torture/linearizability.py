"""Decides whether a history of operations on one object is linearizable.

Just-in-time linearization with memoized configurations: G. Lowe, "Testing for linearizability" (2017), which refines
Wing and Gong (1993). The calls and returns are walked in order of time with the set of all configurations that explain
what was seen so far; a configuration is the object's state and the open operations that have taken effect. An operation
takes effect no earlier than it must: when it, or one that follows it, returns. No configuration left: not linearizable.

Objects are independent of each other, so a history of many is checked object by object (Herlihy and Wing, theorem 1).

An operation that was never answered may take effect at any time after its call, or never. It stays open for ever, so
the search may grow with their number; beyond a cap the verdict is `gave_up`, which is not a pass.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

STEPS_MAX = 200_000
"""Transitions tried for one object: a few seconds and about a hundred megabytes; honest histories need some hundred."""


@dataclass(frozen=True, slots=True)
class Operation:
    """Times are of one clock. `back` and `output` are None if the outcome is not known."""

    client: str
    call: float
    back: float | None
    given: Hashable
    output: Hashable | None

    def __str__(self) -> str:
        until = "?" if self.back is None else f"{self.back:.4f}"
        return f"{self.call:.4f} - {until}  {self.client:<12} {self.given} -> {self.output or 'not known'}"


class Model(Protocol):
    """What the object does when nobody else is there."""

    @property
    def initial(self) -> Hashable: ...

    def step(self, state: Any, given: Any, output: Any) -> Iterable[Hashable]:
        """The states that the operation may lead to if it takes effect in `state` and is answered `output`; none if it
        cannot be answered so. `output` None: whatever it may answer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`culprit` is the first answer that nothing explains; `states` those that the object could have been in before."""

    word: str
    culprit: Operation | None = None
    states: tuple[Hashable, ...] = ()

    @property
    def is_pass(self) -> bool:
        return self.word == "linearizable"


LINEARIZABLE = Verdict("linearizable")
GAVE_UP = Verdict("gave_up")

Configuration = tuple[Hashable, frozenset[int]]


class _TooMany(Exception):
    """More transitions than allowed."""


def check(model: Model, history: Sequence[Operation], steps_max: int = STEPS_MAX) -> Verdict:
    """`linearizable`, `violated` or `gave_up`. The history is of one object, in any order."""
    return _Search(model, history, steps_max).run()


class _Search:
    def __init__(self, model: Model, history: Sequence[Operation], steps_max: int) -> None:
        self._model = model
        self._history = history
        self._steps_left = steps_max
        self._open: list[int] = []  # in order of their calls

    def run(self) -> Verdict:
        configurations: set[Configuration] = {(self._model.initial, frozenset())}
        try:
            for _, is_return, number in self._events():
                if not is_return:
                    self._open.append(number)
                    continue
                explained = self._let_return(configurations, number)
                if not explained:
                    states = {state for state, _ in configurations}
                    return Verdict("violated", self._history[number], tuple(sorted(states, key=repr)))
                configurations = explained
                self._open.remove(number)
        except _TooMany:
            return GAVE_UP
        return LINEARIZABLE

    def _events(self) -> list[tuple[float, bool, int]]:
        """Calls before returns at equal times: what may have been concurrent counts as concurrent."""
        events = [(operation.call, False, number) for number, operation in enumerate(self._history)]
        events += [
            (operation.back, True, number)
            for number, operation in enumerate(self._history)
            if operation.back is not None
        ]
        return sorted(events)

    def _let_return(self, configurations: set[Configuration], returning: int) -> set[Configuration]:
        """All configurations after this return: the operation has taken effect before, or takes effect now, after any
        number of other open ones."""
        explained: set[Configuration] = set()
        waiting: list[Configuration] = []
        for state, done in configurations:
            if returning in done:
                explained.add((state, done - {returning}))
            else:
                waiting.append((state, done))
        tried = set(waiting)
        while waiting:
            state, done = waiting.pop()
            for number in self._candidates(done):
                operation = self._history[number]
                for after in self._step(state, operation):
                    if number == returning:
                        explained.add((after, done))
                    elif operation.back is not None or after != state:  # never answered, no effect: as if it never was
                        following = (after, done | {number})
                        if following not in tried:
                            tried.add(following)
                            waiting.append(following)
        return explained

    def _candidates(self, done: frozenset[int]) -> list[int]:
        """Open operations that may take effect next. Of equal ones never answered the oldest stands for all."""
        seen: set[Hashable] = set()
        candidates = []
        for number in self._open:
            operation = self._history[number]
            if number in done:
                continue
            if operation.back is None:
                if operation.given in seen:
                    continue
                seen.add(operation.given)
            candidates.append(number)
        return candidates

    def _step(self, state: Hashable, operation: Operation) -> Iterable[Hashable]:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise _TooMany
        return self._model.step(state, operation.given, operation.output)
