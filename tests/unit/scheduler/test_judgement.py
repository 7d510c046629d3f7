"""Who is alive, suspect or dead, out of what the leader and the others say of their links."""

from itertools import product
from typing import Any, get_args

import pytest
from msgspec.structs import replace

from consensus.state.rows import Member, MemberStatus
from node.scheduler.damping import PENALTY_MAX, Damping
from node.scheduler.judgement import (
    CLOSED_MS,
    ORPHAN_MS,
    SILENCE_MS,
    SUSPECT_MS,
    Evidence,
    LinkView,
    judge,
    judge_members,
)
from node.scheduler.testimony import TESTIMONY_BYTES_MAX, Testimony, decode_testimony, encode_testimony
from storage.ids import InstanceId, NodeId
from tests.unit.scheduler.world import NOW_MS, member, up

A, B, C, D = (NodeId(name) for name in "abcd")
M = NodeId("m")
INSTANCE = InstanceId("m-1")
HEARD, LOST, NOTHING = Testimony(heard={M: INSTANCE}), Testimony(lost={M: INSTANCE}), Testimony()
DOUBTFUL = Testimony(is_doubting=True, lost={M: INSTANCE})

LINKS: dict[str, LinkView | None] = {
    "heard": up("m"),
    "suspect": LinkView(is_up=True, since_ms=60_000, instance_id=INSTANCE, is_suspect=True),
    "other instance": up("m", 2),
    "just closed": LinkView(is_up=False, since_ms=SUSPECT_MS - 1, is_closed_by_peer=True, instance_id=INSTANCE),
    "closed a moment ago": LinkView(is_up=False, since_ms=CLOSED_MS - 1, is_closed_by_peer=True, instance_id=INSTANCE),
    "closed": LinkView(is_up=False, since_ms=CLOSED_MS, is_closed_by_peer=True, instance_id=INSTANCE),
    "ended for silence": LinkView(is_up=False, since_ms=0, instance_id=INSTANCE, is_silent=True),
    "broken": LinkView(is_up=False, since_ms=SILENCE_MS - 1, instance_id=INSTANCE),
    "broken for long": LinkView(is_up=False, since_ms=SILENCE_MS, instance_id=INSTANCE),
    "never": None,
}
GONE = ("other instance", "closed", "ended for silence", "broken for long", "never")


def evidence(link: str, witnesses: dict[NodeId, Testimony] | None = None, **more: Any) -> Evidence:
    witnesses = witnesses or {}
    links = {witness: up(witness) for witness in witnesses}
    if (view := LINKS[link]) is not None:
        links[M] = view
    return Evidence(
        node_id=A,
        leader_for_ms=more.pop("leader_for_ms", 60_000),
        links=links | more.pop("links", {}),
        testimonies=witnesses,
        **more,
    )


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("status", get_args(MemberStatus))
def test_all_combinations_with_two_witnesses(link: str, status: MemberStatus) -> None:
    row = member("m", status=status)
    says = {"heard": HEARD, "lost": LOST, "nothing": NOTHING, "doubtful": DOUBTFUL}
    for (one, first), (two, second), doubts in product(says.items(), says.items(), (False, True)):
        verdict = judge(row, evidence(link, {B: first, C: second}, is_doubting=doubts))
        hearers, accusers = (one, two).count("heard"), 1 + (one, two).count("lost")
        if link == "heard":
            assert verdict == "alive", "whatever others say"
        elif status in ("dead", "left") or doubts:
            assert verdict == status, "it comes back when it is heard; who doubts judges nobody"
        elif link in GONE and accusers > hearers:
            assert verdict == "dead"
        elif link == "just closed":
            assert verdict == status
        else:
            assert verdict == "suspect"


def test_the_leaders_broken_link_alone_is_not_a_death() -> None:
    assert judge(member("m"), evidence("ended for silence", {B: HEARD})) == "suspect"
    assert judge(member("m"), evidence("ended for silence", {B: HEARD, C: LOST})) == "dead", "two against one"
    assert judge(member("m"), evidence("ended for silence", {B: HEARD, C: HEARD, D: LOST})) == "suspect"


def test_what_a_witness_said_of_another_instance_or_cannot_repeat_does_not_count() -> None:
    other = Testimony(heard={M: InstanceId("m-2")})
    assert judge(member("m"), evidence("closed", {B: other, C: other})) == "dead"
    unheard = LinkView(is_up=True, since_ms=0, instance_id=InstanceId("b-1"), is_suspect=True)
    for link in (unheard, LinkView(is_up=False, since_ms=0)):
        assert judge(member("m"), evidence("closed", {B: HEARD}, links={B: link})) == "dead"
    assert judge(member("m"), evidence("closed", {M: HEARD})) == "dead", "nobody is a witness of himself"


def test_a_new_leader_waits_the_full_time() -> None:
    for link in ("broken for long", "other instance", "never"):
        assert judge(member("m"), evidence(link, leader_for_ms=SILENCE_MS - 1)) == "suspect"
        assert judge(member("m"), evidence(link, leader_for_ms=SILENCE_MS)) == "dead"
    assert judge(member("m"), evidence("never", leader_for_ms=0)) == "alive"


def test_the_leader_is_alive_and_brings_itself_back() -> None:
    assert judge(member("a", status="dead"), evidence("never", is_doubting=True)) == "alive"


def test_only_changes_are_answered_and_none_that_somebody_would_not_know() -> None:
    rows: list[Member] = [member("a"), member("m"), replace(member("d"), status="left")]
    assert judge_members(rows, evidence("heard"), NOW_MS) == []
    (verdict,) = judge_members(rows, evidence("suspect"), NOW_MS)
    assert (verdict.node_id, verdict.instance_id, verdict.status, verdict.at_ms) == (M, INSTANCE, "suspect", NOW_MS)
    assert judge_members(rows, evidence("suspect", knows_suspects=False), NOW_MS) == []
    (verdict,) = judge_members(rows, evidence("closed", knows_suspects=False), NOW_MS)
    assert verdict.status == "dead"


def test_a_testimony_is_read_back_and_anything_else_is_none() -> None:
    said = Testimony(is_doubting=True, heard={A: InstanceId("1")}, lost={B: InstanceId("2")})
    assert decode_testimony(encode_testimony(said)) == said
    for garbage in (b"", b"\x93", b"\x93\x01\x02\x03", b"x" * (TESTIMONY_BYTES_MAX + 1)):
        assert decode_testimony(garbage) is None


def test_one_loss_costs_nothing_and_the_rest_grows_with_every_further_one() -> None:
    damping, rests = Damping(), []
    for second in range(8):
        damping.lost(M, float(second))
        rests.append(damping.rests_s(M, float(second)))
    assert rests[:2] == [0.0, 0.0]
    assert rests[2] > 0
    assert rests[2:] == sorted(set(rests[2:]))
    until = 7 + rests[-1]
    assert damping.rests_s(M, until - 0.1) > 0
    assert damping.rests_s(M, until + 0.1) == 0
    assert damping.rests_s(A, 0.0) == 0


def test_rest_has_a_longest_and_is_forgotten() -> None:
    damping = Damping()
    for _ in range(100):
        damping.lost(M, 0.0)
    assert damping._records[M].penalty == PENALTY_MAX
    assert 59 < damping.rests_s(M, 0.0) <= 60
    damping.lost(A, 1000.0)
    assert M not in damping._records


def test_losses_that_lie_far_apart_never_make_it_rest() -> None:
    damping = Damping()
    for hour in range(50):
        damping.lost(M, hour * 60.0)
        assert damping.rests_s(M, hour * 60.0) == 0


LEAF = replace(member("leaf"), tier="leaf", parent=M, parent_instance=INSTANCE)


@pytest.mark.parametrize("link", sorted(LINKS.keys() - {"other instance", "never"}))
def test_a_leaf_is_judged_by_its_parent_as_long_as_that_one_is_there(link: str) -> None:
    for status in get_args(MemberStatus):
        leaf = replace(LEAF, status=status)
        verdicts = judge_members([member("m"), leaf], evidence(link), NOW_MS)
        assert LEAF.node_id not in {verdict.node_id for verdict in verdicts}


@pytest.mark.parametrize("parent_is", ["dead", "restarted", "unknown"])
def test_an_orphan_has_some_time_to_find_another_parent(parent_is: str) -> None:
    parents = {
        "dead": [replace(member("m"), status="dead")],
        "restarted": [replace(member("m"), instance_id=InstanceId("m-2"))],
        "unknown": [],
    }[parent_is]
    for gone_ms, is_dead in ((SILENCE_MS + ORPHAN_MS - 1, False), (SILENCE_MS + ORPHAN_MS, True)):
        links = {M: LinkView(is_up=parent_is == "restarted", since_ms=gone_ms, instance_id=InstanceId("m-2"))}
        found = judge_members([*parents, LEAF], evidence("never", links=links), NOW_MS)
        verdicts = [verdict for verdict in found if verdict.node_id == LEAF.node_id]
        assert [(one.status, one.registered_at_ms) for one in verdicts] == ([("dead", 0)] if is_dead else [])
        assert not judge_members([*parents, LEAF], evidence("never", links=links, is_doubting=True), NOW_MS)
