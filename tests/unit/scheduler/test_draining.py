"""What becomes of the work of members that drain, and when they have left."""

from msgspec.structs import replace

from consensus.state.commands import AssignBranches, RequeueBranches, SetMemberStatus
from node.scheduler.draining import departures, hand_back
from storage.ids import NodeId
from tests.unit.scheduler.world import NOW_MS, decide, entry, lease, member, view

A = NodeId("a")
DRAINING = replace(member("b"), is_draining=True, hand_back_at_ms=NOW_MS)


def test_work_is_handed_back_when_the_time_is_over_and_goes_elsewhere() -> None:
    leases = [lease(0, "b", deadline_ms=NOW_MS + 9), lease(1, "a", deadline_ms=NOW_MS + 9)]
    assert hand_back([DRAINING], leases, NOW_MS - 1) == []
    assert hand_back([replace(DRAINING, hand_back_at_ms=None)], leases, NOW_MS) == []
    (requeue,) = hand_back([DRAINING], leases, NOW_MS)
    assert (requeue.branch_index, requeue.is_lost, requeue.failure.code) == (0, True, "node_draining")
    commands = decide(view([member("a"), DRAINING], [entry(5)], leases), NOW_MS)
    assert isinstance(commands[0], RequeueBranches)
    assert isinstance(commands[1], AssignBranches)
    assert {item.node_id for item in commands[1].assignments} == {"a"}


def test_who_leaves_has_left_when_it_has_nothing_to_do_and_the_leader_hands_over_first() -> None:
    leaving = replace(DRAINING, is_leaving=True)
    assert departures([leaving], [lease(0, "b")], A, NOW_MS) == []
    (verdict,) = departures([leaving], [lease(0, "a")], A, NOW_MS)
    assert (verdict.node_id, verdict.instance_id, verdict.status) == ("b", "b-1", "left")
    assert departures([leaving], [], NodeId("b"), NOW_MS) == []
    assert departures([replace(leaving, status="left"), DRAINING], [], A, NOW_MS) == []
    leaf = replace(member("l"), parent=NodeId("b"), parent_instance=leaving.instance_id)
    assert departures([leaving, leaf], [], A, NOW_MS - 1) == [], "its Leaf may still find another parent"
    assert len(departures([leaving, leaf], [], A, NOW_MS)) == 1
    assert len(departures([leaving, replace(leaf, parent=A)], [], A, NOW_MS - 1)) == 1
    dead = replace(leaving, status="dead")
    assert [type(command) for command in decide(view([member("a"), dead], links={}), NOW_MS)] == [SetMemberStatus], (
        "also who is dead may leave"
    )
