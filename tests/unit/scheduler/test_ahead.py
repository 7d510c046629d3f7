"""A node gets a little more short work than it has slots, and never at the cost of anybody."""

from collections.abc import Callable

import pytest

from consensus.state.rows import Placement, Session
from node.scheduler import ahead
from node.scheduler.placement import Floor
from storage.ids import NodeId, SessionId
from tests.unit.scheduler.world import NOW_MS, SESSION, World, entry, lease, member, placed, session, view

OTHER = session(7)
BRANCHES = [entry(index, "async") for index in range(100)]


def short(*sessions: SessionId, average: float = 500.0) -> Callable[[SessionId], float | None]:
    return lambda session_id: average if session_id in sessions else None


def test_short_branches_wait_on_a_node_for_its_next_slot() -> None:
    members, begun = [member("a", async_slots=20), member("b", async_slots=10)], [lease(200, "a", "async")]
    world = view(members, BRANCHES, begun, average_ms=short(SESSION))
    assert sorted(placed(world).values()) == ["a"] * 39 + ["b"] * 20


def test_of_unknown_and_of_long_branches_nothing_is_given_ahead() -> None:
    assert len(placed(view([member("a", async_slots=10)], BRANCHES))) == 10


def test_the_stock_is_a_second_of_work() -> None:
    begun = [lease(200, "a", "async")]
    world = view([member("a", async_slots=4)], BRANCHES, begun, average_ms=short(SESSION, average=1_000.0))
    assert len(placed(world)) == 7
    assert ahead.allowance(1, 0.0) == ahead.BRANCHES_MAX
    assert ahead.allowance(100, 1.0) == 100


@pytest.mark.parametrize(
    ("slots", "average", "stock"), [(10, 500.0, 10), (10, 700.0, 10), (4, 400.0, 8), (1, 300.0, 3)]
)
def test_every_slot_is_given_the_same(slots: int, average: float, stock: int) -> None:
    assert ahead.allowance(slots, average) == stock


def test_slots_are_filled_before_anything_waits() -> None:
    """Also where what is preferred has none left."""
    leases = [lease(index + 200, "a", "async") for index in range(4)]
    world = view([member("a"), member("b")], BRANCHES[:4], leases, average_ms=short(SESSION))
    assert set(placed(world).values()) == {"b"}


def test_nothing_waits_behind_what_is_not_short() -> None:
    world = view([member("a")], BRANCHES, [lease(0, "a", "async", session_id=OTHER)], average_ms=short(SESSION))
    assert len(placed(world)) == 3


def test_nothing_is_given_ahead_while_another_waits_for_a_slot() -> None:
    """What is not short would never find a free one."""
    leases = [lease(index, "a", "async") for index in range(4)]
    waiting = entry(0, "async", session_id=OTHER)
    floor = Floor(view([member("a")], leases=leases, average_ms=short(SESSION)), NOW_MS)
    assert floor.choose(entry(9, "async")) is not None
    assert floor.choose(waiting) is None
    assert floor.choose(entry(9, "async")) is None


@pytest.mark.parametrize("one", [entry(9, "async", attempt=2), entry(9, "async", role="consolidation")])
def test_what_was_tried_before_and_consolidations_get_a_slot_of_their_own(one: object) -> None:
    leases = [lease(index, "a", "async") for index in range(4)]
    world: World = view([member("a")], [one], leases, average_ms=short(SESSION))  # type: ignore[list-item]
    assert placed(world) == {}


def test_an_average_is_believed_once_some_branches_have_completed() -> None:
    def of(completed: int, each_ms: int) -> float | None:
        row = Session(
            id=SESSION, thought="", total_branches=100, consolidation="collect", submit_index=1, body_digest=b"",
            submitted_by=NodeId("a"), rev=1, completed=completed, duration_sum_ms=completed * each_ms,
        )  # fmt: skip
        return ahead.average_ms(row)

    assert ahead.average_ms(None) is None
    assert of(ahead.LEARNED_MIN - 1, 10) is None
    assert of(ahead.LEARNED_MIN, 10) == 10
    assert of(50, ahead.SHORT_MS + 1) is None


def test_who_waits_for_one_node_holds_up_the_stock_of_that_node_only() -> None:
    leases = [lease(index, node, "async") for node in "ab" for index in range(4)]
    floor = Floor(view([member("a"), member("b")], leases=leases, average_ms=short(SESSION)), NOW_MS)
    assert floor.choose(entry(0, "async", session_id=OTHER, placement=Placement(node="a"))) is None
    chosen = floor.choose(entry(9, "async"))
    assert chosen is not None
    assert chosen.name == "b"
