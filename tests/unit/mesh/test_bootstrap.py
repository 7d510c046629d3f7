"""Founding: whatever is lost, crashed or cut, two foundings never share a voter; once the faults end, one comes."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.bootstrap import Bootstrap
from mesh.founding_steps import Effect, LinkUp, Received, Save, Send, Tick
from mesh.proposals import Announce, FoundingRecord, Never, Promise, Propose, Withdraw, decode_message, encode_message
from storage.ids import MeshId, NodeId
from tests.unit.mesh.founding_model import Model, run


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.sampled_from([(3, 3), (4, 3), (5, 3), (6, 3), (5, 5), (7, 5)]),
    steps=st.integers(0, 400),
)
def test_no_two_foundings_share_a_voter_and_faults_that_end_lead_to_one(
    seed: int, shape: tuple[int, int], steps: int
) -> None:
    count, expect = shape
    model = run(seed, count=count, expect=expect, steps=steps)
    model.settle()
    model.check()
    founded = {record.mesh_id: record for record in model.records}
    assert founded, f"seed {seed}: {[node.bootstrap and node.bootstrap.status() for node in model.nodes.values()]}"
    for record in founded.values():
        for voter in record.voters:
            assert model.nodes[voter].founded, f"seed {seed}: {voter} does not know"


def proposer_founds_and_vanishes() -> Model:
    """n0 founds with n1 and n2, dies before it tells them, and n3 comes: the window in which promises are tempting."""
    model = Model(4, 3)
    a, b, c, d = model.nodes
    for pair in ((a, b), (a, c), (b, c)):
        model.link(*pair)
    model.see_each_other()
    model.give(model.nodes[a], Tick())
    while not model.records:
        for source, target in list(model.flights):
            model.deliver(source, target)
        model.work(model.nodes[b])
        model.work(model.nodes[c])
        while model.nodes[a].pending and not model.records:
            model.work(model.nodes[a], 1)
    model.crash(a)
    for _ in range(40):
        model.link(b, d)
        model.link(c, d)
        model.now += 1
        for node in (b, c, d):
            model.give(model.nodes[node], Tick())
        model.work_all()
        while model.deliver_all():
            model.work_all()
    return model


def test_members_of_a_vanished_founding_end_up_in_it() -> None:
    model = proposer_founds_and_vanishes()
    model.check()
    assert len({record.mesh_id for record in model.records}) == 1
    assert {node.node_id for node in model.nodes.values() if node.founded} == {"n1", "n2", "n3"}


def test_the_check_catches_a_promise_broken_by_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: a node whose proposer is away too long forgets its promise."""
    honest = Bootstrap._tick

    def forgetful(self: Bootstrap, now: float, effects: list[Effect]) -> None:
        record = self.record
        if record is not None and record.state == "promised" and self._sight.gone_s(record.proposer, now) >= 5:
            self._release(record, 0, now, effects)
        honest(self, now, effects)

    monkeypatch.setattr(Bootstrap, "_tick", forgetful)
    with pytest.raises(AssertionError, match="share a voter"):
        proposer_founds_and_vanishes().check()


@pytest.mark.parametrize("count", [3, 5])
def test_without_faults_all_founded_the_same_mesh(count: int) -> None:
    model = Model(count, count)
    model.settle()
    assert len({record.mesh_id for record in model.records}) == 1
    assert all(len(node.founded) == 1 for node in model.nodes.values())


def test_members_complete_what_a_lost_proposer_began() -> None:
    model = Model(3, 3)
    a, b, c = model.nodes
    for pair in ((a, b), (a, c), (b, c)):
        model.link(*pair)
    model.see_each_other()
    model.give(model.nodes[a], Tick())
    model.work_all()
    while model.deliver_all():
        model.work(model.nodes[b])
        model.work(model.nodes[c])
        model.work(model.nodes[a], 10)
        if model.nodes[b].disk is not None or model.nodes[c].disk is not None:
            break
    model.crash(a)
    for _ in range(15):
        model.now += 1
        for node in (b, c):
            model.give(model.nodes[node], Tick())
        model.work_all()
        while model.deliver_all():
            model.work_all()
    model.check()
    assert model.nodes[b].founded == model.nodes[c].founded != []
    model.settle()
    assert [record.mesh_id for record in model.nodes[a].founded] == [model.nodes[b].founded[0].mesh_id]


def test_a_withdrawn_proposer_that_comes_back_does_not_stop_those_who_took_over() -> None:
    """Out of reach of each other the proposer withdrew and the members took over; nobody collected after they met."""
    model = Model(3, 3)
    held = FoundingRecord("promised", MeshId("x"), tuple(model.nodes), NodeId("n0"), 0, number=1, floor=1)
    for node in model.nodes.values():
        is_proposer = node.node_id == held.proposer
        node.disk = msgspec.structs.replace(held, is_withdrawn=is_proposer, is_taken_over=not is_proposer)
        model.start(node)
    model.settle()
    assert all(node.founded and node.founded[0].mesh_id == "x" for node in model.nodes.values())
    model = run(391652450, count=4, expect=3, steps=227)
    model.settle()
    assert model.records


def test_a_member_that_left_before_promising_is_replaced() -> None:
    model = Model(4, 3)
    a, b, c, d = model.nodes
    for pair in ((a, b), (a, c), (b, c)):
        model.link(*pair)
    # All three have announced themselves to the proposer; its proposal then reaches b, but c is gone.
    bootstrap = model.nodes[a].bootstrap
    assert bootstrap is not None
    model.see_each_other()
    model.give(model.nodes[a], Tick())
    model.work_all()
    assert model.nodes[a].disk is not None
    model.crash(c)
    for _ in range(30):
        model.link(a, d)
        model.link(b, d)
        model.now += 1
        for node in (a, b, d):
            model.give(model.nodes[node], Tick())
        model.work_all()
        while model.deliver_all():
            model.work_all()
    model.check()
    assert {record.voters for record in model.records} == {(a, b, d)}


def test_messages_that_make_no_sense_are_ignored() -> None:
    voters = tuple(NodeId(f"n{index}") for index in range(9))
    record = FoundingRecord("promised", MeshId("x"), voters, NodeId("n0"), 0, number=1)
    assert decode_message(encode_message(Propose(record))) is None
    assert decode_message(b"\xc1") is None
    assert decode_message(encode_message(Promise(MeshId("x")))) == Promise(MeshId("x"))
    machine = Bootstrap(NodeId("n1"), "core", 3, None, 0.0)
    machine.step(LinkUp(NodeId("n0")), 0.0, 0)
    others = (NodeId("n0"), NodeId("n7"), NodeId("n8"))
    stranger = FoundingRecord("promised", MeshId("x"), others, NodeId("n0"), 0, number=3)
    for message in (Propose(stranger), Withdraw(stranger)):
        assert machine.step(Received(NodeId("n0"), message), 0.0, 0) == [], "not asked, so it does not answer"
    own = FoundingRecord("promised", MeshId("x"), (NodeId("n0"), NodeId("n1")), NodeId("n0"), 0, number=3)
    effects = machine.step(Received(NodeId("n0"), Propose(own)), 0.0, 0)
    assert [type(effect) for effect in effects] == [Save, Send]
    assert effects[1] == Send(NodeId("n0"), Never(MeshId("x"), 3))
    assert machine.step(Received(NodeId("n9"), Announce("core", 3, None)), 0.0, 0) == []
