"""Leases run out by the clock of whoever leads, which is never set."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from consensus.state.rows import Lease
from node.scheduler.lease_clock import LONG_S, LeaseClock
from tests.unit.scheduler.world import lease


def test_a_lease_runs_out_when_it_was_seen_for_as_long_as_it_lasts_whatever_its_deadline_says() -> None:
    clock = LeaseClock()
    leases = [lease(0, "a", deadline_ms=0), lease(1, "b", deadline_ms=10**15)]
    lasts = {0: 10_000, 1: 20_000}

    def over(now_s: float) -> list[int]:
        return [one.branch_index for one in clock.run_out(leases, now_s, lambda one: lasts[one.branch_index])]

    assert [over(now_s) for now_s in (100.0, 109.9, 110.0, 119.0, 120.0)] == [[], [], [0], [0], [0, 1]]


def test_an_attempt_is_as_old_as_it_was_seen() -> None:
    clock = LeaseClock()
    clock.run_out([lease(0, "a")], 10.0, lambda one: 60_000)
    clock.run_out([lease(0, "a"), lease(1, "a")], 12.0, lambda one: 60_000)
    assert [clock.age_ms(lease(index, "a"), 12.5) for index in range(3)] == [2_500, 500, 0]


def test_how_long_one_lasts_is_looked_up_once_and_not_for_the_short() -> None:
    clock = LeaseClock()
    asked: list[int] = []

    def lasts_ms(one: Lease) -> int:
        asked.append(one.branch_index)
        return 60_000

    clock.run_out([lease(0, "a"), lease(1, "a")], 0.0, lasts_ms)
    clock.run_out([lease(1, "a")], LONG_S - 0.1, lasts_ms)
    assert asked == []
    for now_s in (LONG_S, 2 * LONG_S, 3 * LONG_S):
        clock.run_out([lease(1, "a")], now_s, lasts_ms)
    assert asked == [1]


def test_another_attempt_is_another_lease() -> None:
    clock = LeaseClock()
    clock.run_out([lease(0, "a")], 0.0, lambda one: 5_000)
    second = replace(lease(0, "b"), attempt=2)
    assert clock.run_out([second], 6.0, lambda one: 5_000) == []
    assert clock.run_out([second], 11.0, lambda one: 5_000) == [second]


@given(st.lists(st.tuples(st.floats(0.1, 3), st.sets(st.integers(0, 4))), max_size=40))
def test_none_runs_out_early_and_none_that_stays_is_missed(looks: Sequence[tuple[float, set[int]]]) -> None:
    clock, now_s, since, lasts_s = LeaseClock(), 0.0, dict[int, float](), 4.0
    for passed_s, held in looks:
        now_s += passed_s
        since = {index: since.get(index, now_s) for index in held}
        over = clock.run_out([lease(index, "a") for index in sorted(held)], now_s, lambda one: int(lasts_s * 1000))
        assert [one.branch_index for one in over] == [i for i in sorted(held) if now_s - since[i] >= lasts_s]
