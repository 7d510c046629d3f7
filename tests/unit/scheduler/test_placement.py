"""Where a branch may go and where it rather should, and that what is told is what is done."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from consensus.state.rows import Condition, Member, Placement, QueueEntry, RitualOffer
from node.scheduler.matching import holds, is_range, version_fits
from node.scheduler.placement import Floor
from tests.unit.scheduler.world import NOW_MS, RITUALS, entry, lease, member, placed, session, view


def require(*conditions: Condition, **more: Any) -> Placement:
    return Placement(require=list(conditions), **more)


def has(label: str, *values: str) -> Condition:
    return Condition(label=label, operator="in", values=list(values))


GPU = member("g", labels={"gpu": "a4000", "rack": "1"})
PLAIN = member("a", labels={"rack": "1"})
FAR = member("b", labels={"rack": "2", "gpu": "k80"})
ALL = [PLAIN, FAR, GPU]


def where(placement: Placement | None, members: list[Member] = ALL, **more: Any) -> str | None:
    return placed(view(members, [entry(0, placement=placement, **more)])).get(0)


def why(one: QueueEntry, members: list[Member] = ALL, **more: Any) -> dict[str, str | None]:
    floor = Floor(view(members, **more), NOW_MS)
    return {row.name: None if obstacle is None else obstacle.code for row, obstacle in floor.survey(one)}


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        (has("gpu", "a4000"), "g"),
        (has("gpu", "k80", "a4000"), "bg"),
        (Condition(label="gpu", operator="not_in", values=["k80"]), "ag"),
        (Condition(label="gpu", operator="exists"), "bg"),
        (Condition(label="gpu", operator="missing"), "a"),
        (has("tier", "core"), "abg"),
        (has("name", "b"), "b"),
        (has("nowhere", "x"), ""),
    ],
)
def test_conditions(condition: Condition, fits: str) -> None:
    one = entry(0, placement=require(condition))
    assert {name for name, code in why(one).items() if code is None} == set(fits)
    assert (where(one.placement) or "") in fits
    assert (where(one.placement) is None) == (fits == "")


def test_all_that_is_required_must_hold() -> None:
    assert where(require(has("gpu", "a4000"), has("rack", "2"))) is None
    assert where(require(has("gpu", "a4000"), has("rack", "1"))) == "g"


def test_a_pin_is_by_name_or_id() -> None:
    renamed = replace(FAR, name="far away")
    assert where(Placement(node="b"), [PLAIN, renamed]) == "b"
    assert where(Placement(node="far away"), [PLAIN, renamed]) == "b"
    assert why(entry(0, placement=Placement(node="z")))["g"] == "another_node"


def test_preferences_rank_and_do_not_rule_out() -> None:
    assert where(Placement(prefer=[has("gpu", "a4000")])) == "g"
    assert where(Placement(prefer=[has("nowhere", "x")])) is not None
    both = Placement(prefer=[has("rack", "2"), has("gpu", "k80"), has("gpu", "a4000")])
    assert where(both) == "b"
    busy = [lease(9, "g"), lease(8, "g")]
    assert placed(view(ALL, [entry(0, placement=Placement(prefer=[has("gpu", "a4000")]))], busy))[0] != "g"


def test_spreading_over_a_label() -> None:
    wide = [replace(row, slots=8) for row in ALL]
    spread = placed(view(wide, [entry(i, placement=Placement(spread="rack")) for i in range(6)]))
    assert sorted(node == "b" for node in spread.values()) == [False] * 3 + [True] * 3
    held = [lease(100 + i, "b") for i in range(2)]
    more = placed(view(wide, [entry(i, placement=Placement(spread="rack")) for i in range(2)], held))
    assert "b" not in more.values()


def test_versions() -> None:
    old = member("b", rituals={"cpu": RitualOffer(version="1.9", kind="cpu")})
    new = member("g", rituals={"cpu": RitualOffer(version="1.10.2", kind="cpu")})
    for wanted, fits in ((">=1.10", "g"), ("<1.10", "b"), ("1.9.0", "b"), (">=1,<2,!=1.9", "g"), ("3", None)):
        assert where(Placement(version=wanted), [old, new]) == fits, wanted
    assert why(entry(0, placement=Placement(version="3")), [old])["b"] == "ritual_version"


@pytest.mark.parametrize("text", ["1", "1.2.3", ">=1.2", ">=1.2, <2", "== 1.0", "!=2", "beta-1"])
def test_ranges_that_can_be_understood(text: str) -> None:
    assert is_range(text)


@pytest.mark.parametrize("text", ["", ",", ">=", ">=beta", "~=1.2", "1 2", ">= 1.2 <2", "^1"])
def test_ranges_that_cannot(text: str) -> None:
    assert not is_range(text)


def test_versions_that_are_no_numbers_are_equal_to_themselves_only() -> None:
    assert version_fits("beta-1", "beta-1")
    assert not version_fits("beta-1", ">=0")
    assert version_fits("beta-1", "!=1")
    assert version_fits("1.0", "1")


def test_rests_and_limits_hold_a_branch_back_wherever_it_would_go() -> None:
    limited = [replace(row, ritual_limits={"cpu": 3}) for row in ALL]
    floor = Floor(view(limited, leases=[lease(1, "a", session_id=session(9))]), NOW_MS)
    assert floor.waits(entry(0)) is None
    resting = floor.waits(entry(0, not_before_ms=NOW_MS + 1_500))
    assert resting is not None
    assert (resting.code, "1.5 s" in resting.detail) == ("resting", True)
    assert floor.waits(entry(0, not_before_ms=NOW_MS)) is None
    assert floor.waits(entry(0, not_before_ms=NOW_MS + 3_600_000)) is None, "the clock that said so is ahead"
    full = floor.waits(entry(0, session_id=session(9), concurrency=1))
    assert full is not None
    assert full.code == "session_limit"
    assert len(placed(view(limited, [entry(i) for i in range(9)], [lease(9, "a")]))) == 2


def test_the_lowest_limit_of_a_ritual_counts() -> None:
    limited = [replace(PLAIN, ritual_limits={"cpu": 5}), replace(FAR, ritual_limits={"cpu": 1})]
    assert len(placed(view(limited, [entry(i) for i in range(9)]))) == 1


def test_what_rules_members_out() -> None:
    members = [
        member("dead", status="dead"),
        replace(member("drains"), is_draining=True),
        member("cut off"),
        member("full"),
        member("gives none", slots=0),
        member("other", rituals={}),
    ]
    leases = [lease(1, "full"), lease(2, "full")]
    links = {m.node_id: view([m]).links[m.node_id] for m in members if m.name != "cut off"}
    assert why(entry(0), members, leases=leases, links=links) == {
        "dead": "not_alive",
        "drains": "draining",
        "cut off": "no_link",
        "full": "no_room",
        "gives none": "no_slots",
        "other": "ritual_not_offered",
    }


labels = st.dictionaries(st.sampled_from(["gpu", "rack"]), st.sampled_from(["1", "2"]))
conditions = st.builds(
    Condition,
    label=st.sampled_from(["gpu", "rack", "name", "tier"]),
    operator=st.sampled_from(["in", "not_in", "exists", "missing"]),
    values=st.lists(st.sampled_from(["1", "2", "a", "core"]), max_size=2),
)
placements = st.none() | st.builds(
    Placement,
    require=st.lists(conditions, max_size=2),
    prefer=st.lists(conditions, max_size=2),
    node=st.none() | st.sampled_from(["a", "b"]),
    version=st.none() | st.sampled_from(["1", ">1"]),
    spread=st.none() | st.sampled_from(["rack", "name"]),
)


@given(
    st.lists(st.tuples(labels, st.booleans(), st.integers(0, 2)), min_size=1, max_size=4),
    st.lists(st.tuples(placements, st.sampled_from(["cpu", "async", "unknown"]), st.booleans()), max_size=8),
)
def test_no_placement_breaks_a_rule_and_the_explanation_agrees(nodes: list[Any], queued: list[Any]) -> None:
    members = [
        replace(member("abcd"[i], slots=slots, labels=own), is_draining=drains)
        for i, (own, drains, slots) in enumerate(nodes)
    ]
    queue = [
        entry(i, ritual, placement=place, not_before_ms=NOW_MS + 1 if rests else 0)
        for i, (place, ritual, rests) in enumerate(queued)
    ]
    floor = Floor(view(members), NOW_MS)
    for one in queue:
        open_to = [row for row, obstacle in floor.survey(one) if obstacle is None]
        waits = floor.waits(one)
        chosen = floor.choose(one)
        assert (chosen is None) == (waits is not None or not open_to), "told and done are the same"
        if chosen is None:
            continue
        assert chosen in open_to
        assert not chosen.is_draining
        assert one.not_before_ms <= NOW_MS
        if (rule := one.placement) is not None:
            own = {**chosen.labels, "name": chosen.name, "tier": chosen.tier}
            assert all(holds(condition, own) for condition in rule.require)
            assert rule.node in (None, chosen.name)
            assert rule.version is None or version_fits(RITUALS[one.ritual].version, rule.version)
        floor.take(one, chosen)
