"""Whose turn it is: shares of sessions, priorities, limits, and what a decision costs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from consensus.state.rows import QueueEntry
from node.scheduler.fairness import Turns, serve
from storage.ids import SessionId
from tests.unit.scheduler.world import ListQueue, entry, session

ONE, TWO, THREE = session(1), session(2), session(3)


def entries(identity: SessionId, count: int, start: int = 0, **more: Any) -> list[QueueEntry]:
    return [entry(start + index, session_id=identity, **more) for index in range(count)]


def given_out(
    sessions: Sequence[tuple[int, Sequence[QueueEntry]]],
    places: int,
    running: dict[SessionId, int] | None = None,
    turns: Turns | None = None,
    fits: object = None,
) -> list[tuple[SessionId, int]]:
    taken: list[tuple[SessionId, int]] = []

    def offer(entry: QueueEntry) -> bool | None:
        if len(taken) == places:
            return None
        if fits is not None and entry.ritual != fits:
            return False
        taken.append((entry.session_id, entry.branch_index))
        return True

    serve(ListQueue(sessions), turns or Turns(), running or {}, offer, places + 12)
    return taken


def shares(taken: list[tuple[SessionId, int]]) -> dict[SessionId, int]:
    return dict(Counter(identity for identity, _ in taken))


def test_a_large_session_does_not_hold_up_a_small_one() -> None:
    taken = given_out([(0, entries(ONE, 10_000)), (0, entries(TWO, 3))], 8)
    assert shares(taken) == {ONE: 5, TWO: 3}
    assert [index for identity, index in taken if identity == ONE] == [0, 1, 2, 3, 4], "in order within a session"


def test_who_runs_less_comes_first() -> None:
    sessions = [(0, entries(ONE, 100)), (0, entries(TWO, 100))]
    assert shares(given_out(sessions, 4, {ONE: 10, TWO: 2})) == {TWO: 4}
    assert shares(given_out(sessions, 10, {ONE: 4, TWO: 2})) == {ONE: 4, TWO: 6}


def test_higher_priorities_come_first_and_lower_ones_get_what_is_left() -> None:
    sessions = [(0, entries(ONE, 9)), (5, entries(TWO, 2)), (-5, entries(THREE, 9))]
    assert given_out(sessions, 3) == [(TWO, 0), (TWO, 1), (ONE, 0)]
    assert shares(given_out(sessions, 12)) == {TWO: 2, ONE: 9, THREE: 1}


def test_a_session_does_not_get_more_than_its_limit() -> None:
    sessions = [(0, entries(ONE, 9, concurrency=3)), (0, entries(TWO, 9))]
    assert shares(given_out(sessions, 9, {ONE: 1})) == {ONE: 2, TWO: 7}
    assert shares(given_out(sessions[:1], 9, {ONE: 3})) == {}


def test_equals_take_turns_from_decision_to_decision() -> None:
    turns = Turns()
    queue = [(0, entries(session(number), 100)) for number in range(50)]
    served = [given_out(queue, 1, turns=turns)[0][0] for _ in range(100)]
    assert set(Counter(served).values()) == {2}
    assert len(set(served[:50])) == 50


def test_what_lies_behind_many_that_fit_nowhere_is_found_and_no_decision_reads_all() -> None:
    turns = Turns()
    sessions = [(0, [*entries(ONE, 1_000, ritual="async"), entry(1_000, "cpu", session_id=ONE)])]
    decisions = 0
    while not (found := given_out(sessions, 1, turns=turns, fits="cpu")):
        decisions += 1
        assert decisions < 200
    assert found == [(ONE, 1_000)]


def test_what_fits_nowhere_does_not_hold_up_others() -> None:
    urgent = (10, entries(ONE, 1_000, ritual="async"))
    assert shares(given_out([urgent, (0, entries(TWO, 2))], 2, fits="cpu")) == {TWO: 2}


def test_who_runs_much_is_served_though_others_that_run_less_fit_nowhere() -> None:
    lost = [(0, entries(session(number), 1_000 * number, ritual="async")) for number in (1, 2, 3)]
    sessions = [*lost, (0, entries(session(4), 100))]
    assert len(given_out(sessions, 20, {session(4): 100}, fits="cpu")) >= 10


def test_those_at_their_limit_are_passed_over_once() -> None:
    """However many they are: the leader's loop goes on for as long as there is more to look at."""
    sessions = [(0, entries(session(number), 9, concurrency=1)) for number in range(100)]
    turns, running, decisions = Turns(), {session(number): 1 for number in range(100)}, 0
    for again in range(3):
        has_more = True
        while has_more:
            has_more = serve(ListQueue(sessions), turns, running, lambda entry: True, 10).has_more
            decisions += 1
            assert decisions <= 25 * (again + 1)
    del running[session(77)]
    found: list[SessionId] = []

    def offer(entry: QueueEntry) -> bool:
        found.append(entry.session_id)
        return True

    for _ in range(25):
        serve(ListQueue(sessions), turns, running, offer, 10)
        if found:
            break
    assert found == [session(77)]


def test_a_session_to_which_nothing_was_left_keeps_its_turn() -> None:
    turns = Turns()
    lower = [(0, entries(session(number), 1)) for number in range(2, 40)]
    assert shares(given_out([(5, entries(ONE, 9)), *lower], 3, turns=turns)) == {ONE: 3}
    assert [identity for identity, _ in given_out(lower, 2, turns=turns)] == [session(2), session(3)]


def test_a_decision_reads_as_much_as_there_are_places() -> None:
    queue = ListQueue([(0, entries(session(number), 20)) for number in range(2_000)])
    serve(queue, Turns(), {}, lambda entry: True, 10)
    assert queue.reads < 200


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), min_size=1, max_size=6),
    st.integers(0, 30),
)
def test_shares_are_as_equal_as_they_can_be(sizes: list[tuple[int, int]], places: int) -> None:
    """Max-min: nobody who wants more has less than another one who got something, but for one place."""
    sessions = [(0, entries(session(number), queued)) for number, (queued, _) in enumerate(sizes)]
    running = {session(number): held for number, (_, held) in enumerate(sizes)}
    got = shares(given_out(sessions, places, running))
    assert sum(got.values()) == min(places, sum(queued for queued, _ in sizes))
    for number, (queued, _) in enumerate(sizes):
        mine = session(number)
        if got.get(mine, 0) < queued:
            for other, count in got.items():
                assert count == 0 or running[other] + count <= running[mine] + got.get(mine, 0) + 1


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(1, 3))
def test_nobody_starves(sizes: list[int], places: int) -> None:
    """Those that wait get their first turn in one round, whatever the number of sessions."""
    turns = Turns()
    left = {session(number): count for number, count in enumerate(sizes)}
    done: dict[SessionId, int] = dict.fromkeys(left, 0)
    for _ in range(-(-len(sizes) // places)):
        queue = [(0, entries(identity, count - done[identity], done[identity])) for identity, count in left.items()]
        for identity, _ in given_out(queue, places, turns=turns):
            done[identity] += 1
    assert all(done.values())
