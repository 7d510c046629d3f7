"""Numbers far ahead are not believed: nobody can use up the numbers of the others."""

import pytest

from mesh.bootstrap import Bootstrap
from mesh.founding_steps import LinkUp, Received, Tick
from mesh.proposals import Announce, FoundingRecord, Never, Propose, Withdraw, decode_message, encode_message
from storage.ids import MeshId, NodeId
from tests.unit.mesh.founding_model import Model


def test_one_bad_floor_does_not_spoil_the_honest_nodes() -> None:
    model = Model(3, 3)
    liar = FoundingRecord("fresh", MeshId(""), (), NodeId("a"), 0, floor=2**32 - 1)
    for node in model.nodes.values():
        model.give(node, LinkUp(NodeId("a")))
        model.give(node, Received(NodeId("a"), Announce("core", 3, liar)))
    model.settle()
    assert {(record.voters, record.number) for record in model.records} == {(("n0", "n1", "n2"), 1)}


def test_floors_far_ahead_are_not_taken_over() -> None:
    far = 2**20
    machine = Bootstrap(NodeId("n0"), "core", 3, None, 0.0)
    for peer in (NodeId("n1"), NodeId("n2")):
        machine.step(LinkUp(peer), 0.0, 0)
    voters = (NodeId("n0"), NodeId("n1"), NodeId("n2"))
    for number in (far, 2**32 - 1):
        theirs = FoundingRecord("promised", MeshId("x"), voters, NodeId("n1"), 0, number=number, floor=number)
        for message in (Propose(theirs), Withdraw(theirs), Announce("core", 3, theirs)):
            assert machine.step(Received(NodeId("n1"), message), 0.0, 0) == []
    for peer in (NodeId("n1"), NodeId("n2")):
        machine.step(Received(peer, Announce("core", 3, None)), 0.0, 0)
    machine.step(Tick(), 60.0, 0)
    held = machine.record
    assert held is not None
    assert (held.state, held.number) == ("promised", 1)
    machine.step(Received(NodeId("n1"), Never(held.mesh_id, 2**32 - 1)), 60.0, 0)
    assert machine.floor == 1
    assert decode_message(encode_message(Never(MeshId("x"), 2**32))) is None
    assert decode_message(encode_message(Never(MeshId("x"), -1))) is None


@pytest.mark.parametrize("claimed", [1, 2**16 - 1, 2**16, 2**16 + 1])
def test_a_number_proposed_is_never_one_that_equals_would_refuse(claimed: int) -> None:
    model = Model(3, 3)
    odd = model.nodes[NodeId("n2")]
    odd.disk = FoundingRecord("fresh", MeshId(""), (), NodeId("n2"), 0, floor=claimed)
    model.start(odd)
    model.settle()
    if claimed < 2**16:
        assert {record.number for record in model.records} == {claimed + 1}
    else:
        assert not model.records
        for node in model.nodes.values():
            assert node.bootstrap is not None
            assert "founding number of n2 is out of all proportion" in node.bootstrap.status()


def test_a_node_that_has_no_number_left_proposes_nothing_and_says_so() -> None:
    model = Model(3, 3)
    for node in model.nodes.values():
        node.disk = FoundingRecord("fresh", MeshId(""), (), node.node_id, 0, floor=2**32 - 1)
        model.start(node)
    model.settle()
    one = model.nodes[NodeId("n0")].bootstrap
    assert one is not None
    assert not model.records
    assert "remove its data directory" in one.status()
