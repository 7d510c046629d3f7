"""A model of founding: nodes with disks, links and messages in flight, one small event at a time; no clock."""

import random
from dataclasses import dataclass, field

from mesh.bootstrap import Bootstrap
from mesh.founding_steps import Effect, Input, Known, LinkDown, LinkUp, MeshFounded, Received, Save, Send, Tick
from mesh.limits import FOUNDING_SETTLE_S, PROMISE_UNREACHABLE_S
from mesh.proposals import FoundingRecord, Message, decode_message, encode_message
from storage.ids import NodeId


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
