"""On whom a Leaf hangs: whom it asks and takes, and how parents even out."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.limits import MOVES_AT_ONCE_MAX, PARENT_RETRY_MAX_S, PARENTS_KNOWN_MAX, PARENTS_PROBED_AT_ONCE
from mesh.parents import Alternative, Candidates, Load, Sample, choose, moves
from storage.ids import NodeId

DICE = random.Random(7)


def sample(name: str, *, rtt_ms: float = 0.2, taken: int = 0, most: int = 128, tier: str = "edge") -> Sample:
    return Sample(NodeId(name), tier, rtt_ms / 1000, taken, most)


def drawn(*samples: Sample) -> Counter[str]:
    return Counter(chosen.node_id for _ in range(400) if (chosen := choose(samples, DICE)) is not None)


def test_nobody_is_chosen_who_has_no_room() -> None:
    assert choose([sample("a", most=0), sample("b", taken=128)], DICE) is None
    assert drawn(sample("a", most=0), sample("b"))["a"] == 0


def test_the_near_and_the_idle_are_preferred() -> None:
    assert drawn(sample("near"), sample("far", rtt_ms=40))["near"] > 390
    assert drawn(sample("idle"), sample("busy", taken=24))["idle"] > 390
    assert drawn(sample("edge"), sample("core", tier="core"))["edge"] > 300


def test_equals_share_so_that_orphans_do_not_meet_at_one() -> None:
    assert min(drawn(sample("a"), sample("b"), sample("c", taken=1)).values()) > 60


def told(*names: str) -> list[Alternative]:
    return [Alternative(NodeId(name), name, "edge", (f"10.0.0.{i + 1}:7781",)) for i, name in enumerate(names)]


def asked(candidates: Candidates, now: float = 0.0) -> list[str]:
    return [key for key, _ in candidates.next(now, DICE)]


def test_those_told_by_the_last_parent_go_first() -> None:
    candidates = Candidates(["seed:1"])
    candidates.hint(NodeId("heard"), ("10.0.0.9:7781",), DICE)
    candidates.told(told("x", "y"))
    assert set(asked(candidates)) == {"x", "y", "heard"}
    assert len(asked(candidates)) == PARENTS_PROBED_AT_ONCE


def test_who_does_not_answer_is_left_alone_for_longer_and_longer() -> None:
    candidates = Candidates(["seed:1"])
    now, waits = 0.0, []
    for _ in range(12):
        assert asked(candidates, now) == ["seed:1"]
        candidates.failed("seed:1", now, DICE)
        assert asked(candidates, now) == []
        due_at = candidates.due_at()
        assert due_at is not None
        waits.append(due_at - now)
        now = due_at
    assert waits[0] < 0.3
    assert max(waits) <= PARENT_RETRY_MAX_S
    candidates.failed("seed:1", now, DICE)
    candidates.hurry()
    assert asked(candidates, now) == ["seed:1"], "an orphan does not wait"


def test_news_of_an_address_end_the_wait() -> None:
    candidates = Candidates([])
    assert candidates.hint(NodeId("a"), ("10.0.0.1:1",), DICE)
    candidates.failed("a", 0.0, DICE)
    assert not candidates.hint(NodeId("a"), ("10.0.0.1:1",), DICE)
    assert asked(candidates) == []
    assert candidates.hint(NodeId("a"), ("10.0.0.2:1",), DICE)
    assert candidates.next(0.0, DICE) == [("a", ("10.0.0.2:1", "10.0.0.1:1"))]


def test_strangers_cannot_fill_the_memory() -> None:
    candidates = Candidates(["seed:1"])
    for number in range(2 * PARENTS_KNOWN_MAX):
        candidates.hint(NodeId(f"n{number}"), ("10.0.0.1:1",), DICE)
    assert len(candidates) == PARENTS_KNOWN_MAX
    candidates.told(told("parent"))
    assert len(candidates) == PARENTS_KNOWN_MAX
    assert "parent" in asked(candidates)
    assert set(candidates.known()) == {"parent"}


def test_parents_are_asked_while_a_stranger_announces_thousands_of_names() -> None:
    real = {"seed:1", "last", "told", "heard"}
    candidates = Candidates(["seed:1"])
    candidates.recall(NodeId("last"), ("10.0.0.1:1",))
    candidates.told(told("told"))
    for name in real:
        candidates.failed(name, 0.0, DICE)
    found: Counter[str] = Counter()
    for second in range(1, 400):
        for number in range(20):
            candidates.hint(NodeId(f"n{second}-{number}"), ("10.0.0.1:1",), DICE)
        candidates.hint(NodeId("heard"), ("10.0.0.9:1",), DICE)
        for key in asked(candidates, float(second)):
            found[key] += key in real
            if key == "heard":
                candidates.answered(key)
            else:
                candidates.failed(key, float(second), DICE)
    assert all(found[key] >= 10 for key in real), found
    assert set(candidates.known()) == {"last", "told", "heard"}
    assert len(candidates) == PARENTS_KNOWN_MAX


def test_a_stranger_cannot_take_the_addresses_of_a_parent() -> None:
    candidates = Candidates([])
    candidates.hint(NodeId("a"), ("10.0.0.1:1",), DICE)
    candidates.answered("a")
    for number in range(100):
        candidates.hint(NodeId("a"), (f"10.0.1.{number}:1",), DICE)
    assert candidates.known()["a"][0] == "10.0.0.1:1"
    candidates.failed("a", 0.0, DICE)
    assert not candidates.hint(NodeId("a"), ("10.0.2.1:1",), DICE)
    assert asked(candidates) == []


def loads(**taken: int) -> list[Load]:
    return [Load(NodeId(name), name.partition("_")[0], count) for name, count in taken.items()]


def test_small_differences_are_left_as_they_are() -> None:
    assert moves(NodeId("edge_a"), loads(edge_a=3, edge_b=0)) == {}
    assert moves(NodeId("edge_a"), loads(edge_a=40, edge_b=31)) == {}
    assert moves(NodeId("edge_a"), loads(edge_a=9)) == {}


def test_an_edge_that_joins_gets_some() -> None:
    assert moves(NodeId("core_a"), loads(core_a=6, edge_b=0)) == {"edge_b": MOVES_AT_ONCE_MAX}
    assert moves(NodeId("edge_b"), loads(core_a=6, edge_b=0)) == {}


@given(st.lists(st.tuples(st.sampled_from(["core", "edge"]), st.integers(0, 60)), min_size=1, max_size=12))
def test_all_deciding_at_once_comes_to_rest(start: list[tuple[str, int]]) -> None:
    state = {NodeId(f"{tier}{i}"): (tier, taken) for i, (tier, taken) in enumerate(start)}
    for _ in range(400):
        seen = [Load(node, tier, taken) for node, (tier, taken) in state.items()]
        planned = {node: moves(node, seen) for node in state}
        if not any(planned.values()):
            break
        before = max(load.burden for load in seen)
        for node, goes in planned.items():
            for target, count in goes.items():
                assert count <= MOVES_AT_ONCE_MAX
                state[node] = (state[node][0], state[node][1] - count)
                state[target] = (state[target][0], state[target][1] + count)
        assert all(taken >= 0 for _, taken in state.values())
        assert max(Load(node, tier, taken).burden for node, (tier, taken) in state.items()) <= before
    else:
        pytest.fail(f"it does not come to rest: {state}")


def test_seeds_stay_however_many_they_are() -> None:
    seeds = [f"seed:{port}" for port in range(1, PARENTS_KNOWN_MAX + 1)]
    candidates = Candidates(seeds)
    candidates.told(told("a"))
    assert len(candidates) == PARENTS_KNOWN_MAX
    assert candidates.known() == {}
