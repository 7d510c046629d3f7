"""Who founds, and when: not before nobody new has come for a while, so that groups about to meet found one mesh."""

import pytest

from mesh.bootstrap import Bootstrap
from mesh.founding_steps import Known, LinkDown, LinkUp, Received, Tick
from mesh.limits import FOUNDING_CROWD_S, FOUNDING_SETTLE_S, PROMISE_UNREACHABLE_S
from mesh.proposals import Announce, FoundingRecord
from storage.ids import MeshId, NodeId
from tests.unit.mesh.founding_model import Model


def lowest_of(count: int) -> Bootstrap:
    """n0 of nodes that expect three, linked to the others, which are fresh; at time 0."""
    machine = Bootstrap(NodeId("n0"), "core", 3, None, 0.0)
    for index in range(1, count):
        peer = NodeId(f"n{index}")
        machine.step(LinkUp(peer), 0.0, 0)
        machine.step(Received(peer, Announce("core", 3, None)), 0.0, 0)
    return machine


def proposed_after_s(machine: Bootstrap) -> float:
    """When it proposes, if nothing happens but the ticks it asks for."""
    now = 0.0
    while machine.record is None:
        assert machine.wake_at is not None
        assert now < machine.wake_at <= now + FOUNDING_SETTLE_S
        now = machine.wake_at
        machine.step(Tick(), now, 0)
    return now


def test_alone_with_expect_one_founds_at_once() -> None:
    model = Model(1, 1)
    model.work_all()
    (node,) = model.nodes.values()
    assert node.founded[0].voters == ("n0",)


def test_more_than_expected_found_with_the_lowest_ids_and_tell_the_others() -> None:
    model = Model(5, 3)
    model.settle()
    assert {record.voters for record in model.records} == {("n0", "n1", "n2")}
    outsider = model.nodes[NodeId("n4")].bootstrap
    assert outsider is not None
    assert "joined after its founding" in outsider.status()


def founded_meshes(model: Model) -> set[MeshId]:
    return {record.mesh_id for record in model.records if record.state == "founded"}


@pytest.mark.parametrize("count", range(4, 11))
def test_many_linked_at_once_found_one_mesh(count: int) -> None:
    model = Model(count, 3)
    model.settle()
    assert len(founded_meshes(model)) == 1


def test_two_groups_that_link_first_found_one_mesh_when_the_links_between_them_come_within_seconds() -> None:
    model = Model(7, 3)
    names = list(model.nodes)
    for group in (names[:3], names[3:]):
        for a in group:
            for b in group:
                model.link(a, b)
    # Of the other group each node has heard, but the first dials are lost.
    for node in model.nodes.values():
        node.known = frozenset(names) - {node.node_id}
    model.pass_time(2.5, 0.1)
    assert not model.records
    model.settle()
    assert {record.voters for record in model.records} == {("n0", "n1", "n2")}


def test_exactly_the_expected_found_almost_at_once() -> None:
    assert proposed_after_s(lowest_of(3)) == pytest.approx(FOUNDING_SETTLE_S)


def test_more_than_expected_wait_until_it_is_quiet_and_say_so() -> None:
    machine = lowest_of(5)
    assert "5 Core nodes here, more than bootstrap_expect = 3" in machine.status()
    assert proposed_after_s(machine) == pytest.approx(FOUNDING_CROWD_S)


def test_known_nodes_that_cannot_be_reached_delay_founding_but_do_not_prevent_it() -> None:
    machine = lowest_of(3)
    machine.step(Known(2), 0.0, 0)
    assert "others that are being dialled" in machine.status()
    assert proposed_after_s(machine) == pytest.approx(FOUNDING_CROWD_S)
    machine = lowest_of(3)
    machine.step(Known(2), 0.0, 0)
    machine.step(Tick(), 1.0, 0)
    assert machine.record is None
    machine.step(Known(0), 1.0, 0)
    assert machine.record is not None, "they are linked, or were of no consequence"


def test_a_newcomer_starts_the_wait_again_and_one_that_flaps_does_not() -> None:
    machine = lowest_of(4)
    machine.step(LinkUp(NodeId("n5")), 2.0, 0)
    machine.step(Received(NodeId("n5"), Announce("core", 3, None)), 2.0, 0)
    for now in (2.5, 3.0, 3.5, 4.0, 4.5):
        machine.step(LinkDown(NodeId("n5")), now, 0)
        machine.step(LinkUp(NodeId("n5")), now, 0)
        machine.step(Received(NodeId("n5"), Announce("core", 3, None)), now, 0)
    assert machine.record is None
    machine.step(Tick(), 2.0 + FOUNDING_CROWD_S, 0)
    assert machine.record is not None


def test_a_promise_seen_elsewhere_is_given_time_but_blocks_nobody_for_ever() -> None:
    machine = lowest_of(3)
    voters = (NodeId("m0"), NodeId("m1"), NodeId("m2"))
    theirs = FoundingRecord("promised", MeshId("x"), voters, NodeId("m0"), 0, number=1, floor=1)
    machine.step(LinkUp(NodeId("m1")), 0.0, 0)
    machine.step(Received(NodeId("m1"), Announce("core", 3, theirs)), 0.0, 0)
    assert machine.status() == "waiting: m1 may be founding a mesh already"
    assert proposed_after_s(machine) == pytest.approx(2 * PROMISE_UNREACHABLE_S)
