"""What is measured and held against the mesh afterwards, on records made by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.torture.history import Glimpse, History, going_back
from tests.torture.judgement import COMPARED, availability, judge_operations, judge_tables
from tests.torture.linearizability import Operation
from tests.torture.session_model import Absent, Created, Read, Submit
from tests.torture.watchers import Lives, differences


def every_half(begin: float, end: float) -> list[float]:
    return [begin + 0.5 * number for number in range(1, int((end - begin) * 2))]


def test_available_all_the_time() -> None:
    found = availability(every_half(0, 10), 0, 10, [])
    assert (found.share, found.counted_s, found.longest_gap_s) == (1.0, 10, 0.5)


def test_of_a_gap_all_but_its_last_second_counts() -> None:
    found = availability([*every_half(0, 4), *every_half(7, 10)], 0, 10, [])
    assert found.gaps[0] == (3.5, 4.0)
    assert found.share == pytest.approx(0.7)


def test_time_without_a_majority_does_not_count() -> None:
    times = [*every_half(0, 4), *every_half(7, 10)]
    found = availability(times, 0, 10, [(3.6, 7.2)])
    assert found.counted_s == pytest.approx(6.4)
    assert found.share == 1.0
    slow_to_return = availability(times, 0, 10, [(3.6, 5.0)])
    assert slow_to_return.gaps[0] == (5.0, 2.5)
    assert slow_to_return.share == pytest.approx(1 - 1.5 / 8.6)


def test_nothing_acknowledged_is_not_available() -> None:
    assert availability([], 0, 10, []).share == pytest.approx(0.1)
    assert availability([1.0], 5, 10, []).share == pytest.approx(0.2)


def glimpse(call: float, back: float, index: int, node: str = "a", is_fresh: bool = True) -> Glimpse:
    return Glimpse(call, back, index, node, is_fresh)


def test_indexes_that_go_forward_are_fine() -> None:
    assert not going_back([glimpse(0, 1, 5), glimpse(2, 3, 5, "b"), glimpse(4, 5, 9)])


def test_answers_side_by_side_may_differ() -> None:
    assert not going_back([glimpse(0, 3, 9), glimpse(1, 2, 5, "b"), glimpse(1, 4, 5, "b")])


def test_a_linearizable_answer_must_not_show_less_than_any_before_it() -> None:
    newer, older = glimpse(0, 1, 9, "a", is_fresh=False), glimpse(2, 3, 8, "b")
    assert going_back([newer, older]) == [(newer, older)]


def test_a_stale_answer_is_held_against_its_own_node_only() -> None:
    newer, elsewhere, here = glimpse(0, 1, 9), glimpse(2, 3, 8, "b", is_fresh=False), glimpse(2, 3, 8, is_fresh=False)
    assert going_back([newer, elsewhere]) == []
    assert going_back([newer, here]) == [(newer, here)]


def test_a_violation_is_told_with_its_history() -> None:
    history = History()
    history.note("good", Operation("one@a", 0, 1, Submit("short"), Created(3)), is_write=True)
    history.note("bad", Operation("one@a", 0, 1, Submit("short"), Created(4)), is_write=True)
    history.note("bad", Operation("two@b", 2, 3, Read(), Absent()), is_write=False)
    found = judge_operations(history)
    assert (found.objects, found.operations) == (2, 3)
    (told,) = found.violations
    assert "session bad" in told
    assert "two@b" in told
    assert "Created(rev=4)" in told


def test_tables_must_be_equal() -> None:
    same = dict.fromkeys(("sessions", "branches"), (1, "x"))
    everything = dict.fromkeys(COMPARED, (0, ""))
    assert judge_tables({"a": {**everything, **same}, "b": {**everything, **same}}) == []
    (told,) = judge_tables({"a": {**everything, **same}, "b": {**everything, **same, "sessions": (1, "y")}})
    assert "sessions" in told


def events(*rows: tuple[Any, ...]) -> Lives:
    lives = Lives()
    for number, (kind, *rest) in enumerate(rows):
        event = {"id": f"{number}.0", "event": kind, "session_id": "s"}
        if rest:
            event |= {"branch_index": rest[0], "attempt": rest[1], "node_id": rest[2] if len(rest) > 2 else "a"}
        lives.take(event)
    return lives


BEGIN = (("session_submitted",), ("branch_assigned", 0, 1))


def test_an_ordinary_life() -> None:
    lives = events(
        *BEGIN, ("branch_requeued", 0, 1), ("branch_assigned", 0, 2), ("branch_completed", 0, 2),
        ("branch_assigned", 1, 1), ("branch_completed", 1, 1), ("session_completed",),
    )  # fmt: skip
    assert (lives.faults, lives.open, lives.ended) == ([], {}, {"s": "completed"})
    assert (lives.attempts, lives.repeated) == (3, 1)


BESIDE = (*BEGIN, ("branch_assigned", 0, 2, "b"))


@pytest.mark.parametrize(
    "rows",
    [
        (("attempt_ended", 0, 1), ("branch_completed", 0, 2, "b")),
        (
            ("attempt_ended", 0, 2, "b"),
            ("branch_assigned", 0, 3, "c"),
            ("attempt_ended", 0, 3),
            ("branch_failed", 0, 1),
        ),
        (("attempt_ended", 0, 1), ("branch_requeued", 0, 2), ("branch_assigned", 0, 3), ("branch_completed", 0, 3)),
        (("attempt_ended", 0, 2), ("branch_cancelled", 0, 1)),
    ],
)
def test_a_life_with_two_attempts_at_a_time(rows: tuple[Any, ...]) -> None:
    assert events(*BESIDE, *rows).faults == []


@pytest.mark.parametrize(
    "rows",
    [
        (*BEGIN, ("branch_completed", 0, 1), ("branch_completed", 0, 1)),
        (*BEGIN, ("branch_assigned", 0, 2, "a")),
        (*BEGIN, ("branch_assigned", 0, 3, "b")),
        (*BESIDE, ("branch_assigned", 0, 3, "c")),
        (*BESIDE, ("branch_completed", 0, 2)),
        (*BESIDE, ("branch_requeued", 0, 1)),
        (*BESIDE, ("attempt_ended", 0, 1), ("attempt_ended", 0, 2)),
        (*BESIDE, ("attempt_ended", 0, 1), ("branch_completed", 0, 1)),
        (*BEGIN, ("attempt_ended", 0, 1)),
        (*BEGIN, ("branch_requeued", 0, 1), ("branch_assigned", 0, 1)),
        (*BEGIN, ("branch_requeued", 0, 1), ("branch_completed", 0, 1)),
        (*BEGIN, ("branch_completed", 0, 2)),
        (*BEGIN, ("branch_completed", 0, 1), ("branch_assigned", 0, 2)),
        (*BEGIN, ("session_completed",)),
        (*BEGIN, ("session_cancelled",), ("branch_completed", 0, 1)),
        (*BEGIN, ("session_cancelled",), ("session_cancelled",)),
        (("session_submitted",), ("session_submitted",)),
        (("branch_assigned", 0, 1),),
    ],
)
def test_a_life_that_may_not_be(rows: tuple[Any, ...]) -> None:
    assert events(*rows).faults


def test_streams_are_compared_event_by_event() -> None:
    def stream(name: str, ids: list[int], digests: list[int]) -> SimpleNamespace:
        return SimpleNamespace(name=name, ids=ids, digests=digests)

    first = stream("a", [1, 2, 3], [7, 8, 9])
    assert differences([first, stream("b", [1, 2], [7, 8])]) == []
    assert differences([first, stream("b", [1, 3], [7, 9])])
    assert differences([first, stream("b", [1, 2, 3], [7, 8, 8])])
