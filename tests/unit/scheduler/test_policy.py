"""The scheduler's decisions: what is overdue, and who gets what."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from consensus.state.commands import AssignBranches, RequeueBranches, SetMemberStatus
from node.scheduler import policy
from node.scheduler.judgement import SILENCE_MS, LinkView, judge_members
from node.scheduler.placement import Floor
from storage.ids import InstanceId, NodeId
from tests.unit.scheduler.world import NOW_MS, decide, entry, lease, member, placed, up, view


def test_nothing_to_do() -> None:
    assert decide(view([member("a"), member("b")]), NOW_MS) == []


def test_queue_is_served_in_order_by_the_least_loaded() -> None:
    nodes = [member("a"), member("b"), member("c")]
    where = placed(view(nodes, [entry(i) for i in range(10)]))
    assert sorted(where) == [0, 1, 2, 3, 4, 5]
    assert sorted(where.values()) == ["a", "a", "b", "b", "c", "c"]
    assert where[0] != "a", "CPU work goes to others before the leader"


def test_busy_places_count() -> None:
    where = placed(view([member("a"), member("b")], [entry(9)], [lease(0, "a"), lease(1, "b"), lease(2, "b")]))
    assert where == {9: "a"}


def test_async_work_stays_with_the_leader_at_equal_load() -> None:
    assert placed(view([member("a"), member("b")], [entry(0, "async")])) == {0: "a"}


def test_entry_that_fits_nowhere_does_not_hold_up_the_next() -> None:
    queue = [entry(0, "unknown"), entry(1, "cpu"), entry(2, "async")]
    assert sorted(placed(view([member("a")], queue))) == [1, 2]


def test_retry_goes_elsewhere_unless_there_is_no_elsewhere() -> None:
    assert placed(view([member("a"), member("b")], [entry(0, avoid="b")])) == {0: "a"}
    assert placed(view([member("b")], [entry(0, avoid="b")])) == {0: "b"}


def test_attempt_and_deadline_of_an_assignment() -> None:
    (command,) = decide(view([member("b")], [entry(7, attempt=3)]), NOW_MS)
    assert isinstance(command, AssignBranches)
    (assignment,) = command.assignments
    assert assignment.attempt == 3
    assert assignment.instance_id == "b-1"
    assert assignment.deadline_ms == NOW_MS + 60_000 + policy.LEASE_GRACE_MS


def test_nothing_for_those_who_are_dead_or_not_linked() -> None:
    nodes = [member("b", status="dead"), member("c"), member("d")]
    links = {NodeId("c"): LinkView(is_up=False, since_ms=10), NodeId("d"): up("d")}
    assert set(placed(view(nodes, [entry(i) for i in range(9)], links=links)).values()) == {"d"}


def test_silent_member_is_dead_and_its_place_is_not_filled() -> None:
    nodes = [member("a"), member("b")]
    links = {NodeId("b"): LinkView(is_up=False, since_ms=SILENCE_MS)}
    commands = decide(view(nodes, [entry(0)], links=links), NOW_MS)
    assert commands[0] == SetMemberStatus(
        node_id=NodeId("b"), instance_id=InstanceId("b-1"), status="dead", at_ms=NOW_MS
    )
    assert isinstance(commands[1], AssignBranches)
    assert commands[1].assignments[0].node_id == "a"


def test_overdue_lease_is_requeued() -> None:
    over = lease(0, "a")
    commands = decide(view([member("a")], leases=[over, lease(1, "a")], overdue=[over]), NOW_MS)
    assert isinstance(commands[0], RequeueBranches)
    assert [r.branch_index for r in commands[0].requeues] == [0]
    assert commands[0].requeues[0].is_lost, "a node that works reports its own timeouts: this is not the ritual's fault"


def test_requeues_are_bounded_too() -> None:
    leases = [lease(i, "a") for i in range(policy.BATCH_MAX + 1)]
    assert len(policy.overdue_leases(leases)) == policy.BATCH_MAX


def test_a_link_to_another_instance_is_no_link_to_the_member() -> None:
    nodes = [member("a"), member("b")]
    links = {NodeId("b"): up("b", number=2)}
    assert set(placed(view(nodes, [entry(i) for i in range(9)], links=links)).values()) == {"a"}


def test_a_member_whose_replica_is_stuck_is_alive_and_gets_nothing() -> None:
    nodes = [member("a"), member("b")]
    stuck = dataclasses.replace(view(nodes, [entry(i) for i in range(9)]), stuck={NodeId("b")})
    assert set(placed(stuck).values()) == {"a"}
    assert judge_members(stuck.members, stuck.evidence, NOW_MS) == []


def test_nothing_for_those_who_are_suspect_drain_or_rest() -> None:
    nodes = [member("b", status="suspect"), replace(member("c"), is_draining=True), member("d"), member("e")]
    links = {m.node_id: up(m.node_id) for m in nodes}
    links[NodeId("d")] = dataclasses.replace(up("d"), rests_ms=1)
    assert set(placed(view(nodes, [entry(i) for i in range(9)], links=links)).values()) == {"e"}
    links[NodeId("e")] = dataclasses.replace(up("e"), is_suspect=True)
    assert placed(view(nodes, [entry(0)], links=links)) == {}


def test_a_member_that_takes_no_more_gets_nothing() -> None:
    nodes = [member("a"), member("b", slots=0, async_slots=0)]
    assert set(placed(view(nodes, [entry(0), entry(1, "async")])).values()) == {"a"}


def test_free_places() -> None:
    assert Floor(view([member("a"), member("b")], leases=[lease(0, "a"), lease(1, "b", "async")]), NOW_MS).free == 10


def test_batches_are_bounded() -> None:
    node = member("a", async_slots=10_000)
    where = placed(view([node], [entry(i, "async") for i in range(policy.BATCH_MAX + 1)]))
    assert len(where) == policy.BATCH_MAX


names = st.sampled_from(["a", "b", "c", "d"])


@given(
    st.dictionaries(names, st.tuples(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans())),
    st.lists(st.tuples(st.sampled_from(["cpu", "async", "unknown"]), names), max_size=30),
    st.lists(st.tuples(st.sampled_from(["cpu", "async"]), names), max_size=12),
)
def test_no_node_gets_more_than_it_has_and_no_branch_two_nodes(nodes, queued, leased) -> None:  # type: ignore[no-untyped-def]
    members = [member(n, s, a, "alive" if alive else "dead") for n, (s, a, alive, _) in nodes.items()]
    links = {
        NodeId(n): LinkView(is_up=is_up, since_ms=0, instance_id=InstanceId(f"{n}-1"))
        for n, (_, _, _, is_up) in nodes.items()
    }
    queue = [entry(i, ritual, avoid) for i, (ritual, avoid) in enumerate(queued)]
    leases = [lease(100 + i, node, ritual) for i, (ritual, node) in enumerate(leased)]
    where = placed(view(members, queue, leases, links=links))
    kinds = {e.branch_index: e.ritual for e in queue}
    for m in members:
        for kind, slots in (("cpu", m.slots), ("async", m.async_slots)):
            given_now = sum(node == m.node_id and kinds[index] == kind for index, node in where.items())
            had = sum(lease.node_id == m.node_id and lease.ritual == kind for lease in leases)
            assert given_now == 0 or given_now + had <= slots
            assert given_now == 0 or m.status == "alive"
    # Nothing that fits is left lying: whoever was not placed finds no room.
    for left in {e.branch_index for e in queue if e.ritual != "unknown"} - set(where):
        kind = kinds[left]
        for m in members:
            if m.status != "alive" or not (m.node_id == "a" or links[m.node_id].is_up):
                continue
            taken = sum(node == m.node_id and kinds[index] == kind for index, node in where.items())
            taken += sum(lease.node_id == m.node_id and lease.ritual == kind for lease in leases)
            assert taken >= (m.slots if kind == "cpu" else m.async_slots)
