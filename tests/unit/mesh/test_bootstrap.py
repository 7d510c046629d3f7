"""Founding: whatever is lost, crashed or cut, two foundings never share a voter; once the faults end, one comes."""

import random
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.bootstrap import (
    Announce,
    Bootstrap,
    Effect,
    FoundingRecord,
    Input,
    Known,
    LinkDown,
    LinkUp,
    MeshFounded,
    Message,
    Never,
    Promise,
    Propose,
    Received,
    Save,
    Send,
    Tick,
    Withdraw,
    decode_message,
    encode_message,
)
from mesh.limits import FOUNDING_CROWD_S, FOUNDING_SETTLE_S, PROMISE_UNREACHABLE_S
from storage.ids import MeshId, NodeId


@dataclass
class Machine:
    """One node of the model: what is on its disk survives, the rest does not."""

    node_id: NodeId
    expect: int
    disk: FoundingRecord | None = None
    bootstrap: Bootstrap | None = None
    pending: list[Effect] = field(default_factory=list)
    known: frozenset[NodeId] = frozenset()
    founded: list[FoundingRecord] = field(default_factory=list)


class Model:
    """Nodes, links and messages in flight. One call is one small thing that may happen."""

    def __init__(self, count: int, expect: int) -> None:
        self.now = 0.0
        self.nodes = {NodeId(f"n{index}"): Machine(NodeId(f"n{index}"), expect) for index in range(count)}
        self.links: set[frozenset[NodeId]] = set()
        self.flights: dict[tuple[NodeId, NodeId], list[Message]] = {}
        self.records: list[FoundingRecord] = []
        for node in self.nodes.values():
            self.start(node)

    def start(self, node: Machine) -> None:
        node.bootstrap = Bootstrap(node.node_id, "core", node.expect, node.disk, self.now)
        node.pending = []
        self.give(node, Tick())

    def give(self, node: Machine, given: Input) -> None:
        """Effects wait in order until `work` carries them out: a crash in between loses the rest."""
        if node.bootstrap is not None:
            self.work(node)  # the shell takes an input only when the last one's effects are done
            node.pending += node.bootstrap.step(given, self.now, int(self.now * 1000))

    def work(self, node: Machine, count: int = 1_000_000) -> None:
        for effect in node.pending[:count]:
            match effect:
                case Save(record):
                    node.disk = record
                    if record.state == "founded":
                        self.records.append(record)
                case Send(peer, message):
                    if frozenset((node.node_id, peer)) in self.links:
                        copy = decode_message(encode_message(message))
                        assert copy == message
                        self.flights.setdefault((node.node_id, peer), []).append(copy)
                case MeshFounded(record):
                    assert node.disk == record
                    node.founded.append(record)
        del node.pending[:count]

    def work_all(self) -> None:
        for node in self.nodes.values():
            self.work(node)

    def link(self, a: NodeId, b: NodeId) -> None:
        pair = frozenset((a, b))
        if a != b and pair not in self.links and self.nodes[a].bootstrap and self.nodes[b].bootstrap:
            self.links.add(pair)
            self.give(self.nodes[a], LinkUp(b))
            self.give(self.nodes[b], LinkUp(a))

    def cut(self, a: NodeId, b: NodeId) -> None:
        if (pair := frozenset((a, b))) in self.links:
            self.links.discard(pair)
            self.flights.pop((a, b), None)
            self.flights.pop((b, a), None)
            self.give(self.nodes[a], LinkDown(b))
            self.give(self.nodes[b], LinkDown(a))

    def crash(self, a: NodeId) -> None:
        self.nodes[a].bootstrap = None
        self.nodes[a].pending = []
        for b in self.nodes:
            self.cut(a, b)

    def restart(self, a: NodeId) -> None:
        if self.nodes[a].bootstrap is None:
            self.start(self.nodes[a])

    def deliver(self, source: NodeId, target: NodeId) -> bool:
        flight = self.flights.get((source, target))
        if not flight:
            return False
        self.give(self.nodes[target], Received(source, flight.pop(0)))
        return True

    def deliver_all(self) -> bool:
        """One message of every flight; False if there was none."""
        delivered = [self.deliver(*way) for way in list(self.flights)]
        return any(delivered)

    def see_each_other(self) -> None:
        """Announcements are delivered and have settled; what comes of that waits for the next tick."""
        self.work_all()
        while self.deliver_all():
            self.work_all()
        self.now += FOUNDING_SETTLE_S

    def pass_time(self, seconds: float, step_s: float) -> None:
        """Everything is delivered, and every node ticks each `step_s`."""
        for _ in range(round(seconds / step_s)):
            self.work_all()
            while self.deliver_all():
                self.work_all()
            self.now += step_s
            for node in self.nodes.values():
                linked = {peer for pair in self.links if node.node_id in pair for peer in pair}
                self.give(node, Known(len(node.known - linked)))
                self.give(node, Tick())
        self.work_all()

    def settle(self) -> None:
        """No more faults: everybody up, everybody linked, everything delivered, half a minute of ticks."""
        for a in self.nodes:
            self.restart(a)
        for a in self.nodes:
            for b in self.nodes:
                self.link(a, b)
        self.pass_time(40, 1.0)

    def check(self) -> None:
        meshes = {record.mesh_id: record for record in self.records}
        for one in meshes.values():
            for other in meshes.values():
                if one.mesh_id != other.mesh_id:
                    assert not set(one.voters) & set(other.voters), f"two foundings share a voter: {one} {other}"
        for record in self.records:
            assert record.voters == meshes[record.mesh_id].voters


def run(seed: int, *, count: int, expect: int, steps: int) -> Model:
    rng = random.Random(seed)
    model = Model(count, expect)
    names = list(model.nodes)
    for _ in range(steps):
        a, b = rng.choice(names), rng.choice(names)
        match rng.choices(range(7), weights=(6, 2, 1, 2, 20, 4, 8))[0]:
            case 0:
                model.link(a, b)
            case 1:
                model.cut(a, b)
            case 2:
                model.crash(a)
            case 3:
                model.restart(a)
            case 4:
                model.deliver(a, b)
            case 5:
                model.now += rng.choice((0.1, 1.0, PROMISE_UNREACHABLE_S))
                model.give(model.nodes[a], Tick())
            case _:
                model.work(model.nodes[a], rng.randint(1, 4))
        model.check()
    return model


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
    assert {node.node_id for node in model.nodes.values() if node.founded} == {"n1", "n2"}


def test_the_check_catches_a_promise_broken_by_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: a node whose proposer is away too long forgets its promise."""
    honest = Bootstrap._tick

    def forgetful(self: Bootstrap, now: float, effects: list[Effect]) -> None:
        record = self.record
        if record is not None and record.state == "promised" and self._gone_s(record.proposer, now) >= 5:
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
    assert "joining an existing mesh as a new voter comes with membership changes" in outsider.status()


def test_status_says_alone_and_how_many_are_missing() -> None:
    model = Model(2, 3)
    one = model.nodes[NodeId("n0")].bootstrap
    assert one is not None
    assert one.status() == "alone, waiting for 2 more"
    model.settle()
    assert one.status() == "2 Core nodes here, waiting for 1 more"


def test_different_expectations_are_named() -> None:
    model = Model(3, 3)
    odd = model.nodes[NodeId("n2")]
    odd.expect = 5
    model.start(odd)
    model.settle()
    one = model.nodes[NodeId("n0")].bootstrap
    assert one is not None
    assert "bootstrap_expect = 3, others have 5" in one.status()
    assert not model.records


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
