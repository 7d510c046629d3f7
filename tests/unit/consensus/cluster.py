"""Replicas that hear each other at once, on a clock that moves only when told."""

import random
from collections.abc import Callable

from consensus.engine import Role
from consensus.journal import TABLES
from consensus.limits import RaftSettings
from consensus.messages import AnyMessage, decode_frame, encode_frame
from consensus.replica import Replica
from consensus.steps import Input, LinkDown, LinkUp, Output, PeerMessage, Propose, Resolved
from storage.ids import NodeId
from storage.memory import MemoryStore
from tests.simulation.machine import APPLIED_TABLE, RecordingMachine, table_digest

IDS = [NodeId(name) for name in "abc"]


class Cluster:
    """A clock, and inboxes. `run` steps everyone until nothing more is said."""

    def __init__(self, ids: list[NodeId] = IDS, settings: RaftSettings | None = None) -> None:
        self.ids = ids
        self.settings = settings or RaftSettings(commit_notice_s=0.0)  # its clock stands still while messages go
        self.now = 0.0
        self.stores = {i: MemoryStore((*TABLES, APPLIED_TABLE)) for i in ids}
        self.replicas: dict[NodeId, Replica] = {}
        self.inboxes: dict[NodeId, list[Input]] = {}
        self.resolved: dict[int, Resolved] = {}
        self.outputs: dict[NodeId, Output] = {}
        self.muted: set[NodeId] = set()
        self.frames = 0
        for i in ids:
            self.start(i)
        for i in ids:
            self.link(i)

    def start(self, i: NodeId) -> None:
        self.replicas[i] = Replica(
            i, self.ids, self.stores[i], RecordingMachine(), self.settings, random.Random(i), self.now
        )
        self.inboxes[i] = []

    def link(self, i: NodeId) -> None:
        self.inboxes[i] += [LinkUp(j) for j in self.replicas if j != i]

    def kill(self, i: NodeId) -> None:
        del self.replicas[i]
        for j in self.replicas:
            self.inboxes[j].append(LinkDown(i, closed_by_peer=True))

    def restart(self, i: NodeId) -> None:
        self.start(i)
        self.link(i)
        for j in self.replicas:
            if j != i:
                self.inboxes[j].append(LinkUp(i))

    def step(self, i: NodeId) -> Output:
        inputs, self.inboxes[i] = self.inboxes[i], []
        output = self.outputs[i] = self.replicas[i].step(inputs, self.now)
        for peer, frame in output.messages:
            self.frames += 1
            if peer in self.replicas and not self.muted & {i, peer}:
                self.inboxes[peer].append(PeerMessage(i, frame))
        self.resolved.update({resolved.token: resolved for resolved in output.resolved})
        return output

    def run(self) -> None:
        while True:
            outputs = [self.step(i) for i in self.replicas]
            if not any(self.inboxes[i] for i in self.replicas) and all(o.next_deadline > self.now for o in outputs):
                return

    def run_until(self, condition: Callable[[], bool], limit_s: float = 20.0) -> None:
        stop = self.now + limit_s
        self.run()
        while not condition():
            assert self.now < stop, "not in time"
            self.now += 0.01
            self.run()

    @property
    def leader(self) -> NodeId | None:
        leaders = [i for i, replica in self.replicas.items() if replica.status.role is Role.LEADER]
        return max(leaders, key=lambda i: self.replicas[i].status.term, default=None)

    def elect(self) -> NodeId:
        self.run_until(lambda: self.leader is not None)
        assert self.leader is not None
        return self.leader

    def propose(self, i: NodeId, token: int, command: bytes) -> None:
        self.inboxes[i].append(Propose(token, command))

    def digests(self) -> set[bytes]:
        found = set()
        for store in self.stores.values():
            with store.read() as txn:
                found.add(table_digest(txn))
        return found

    def say(self, source: NodeId, target: NodeId, *messages: AnyMessage) -> list[AnyMessage]:
        """Hand messages to one replica as if `source` had said them; what it says to `source` in that step."""
        self.inboxes[target].append(PeerMessage(source, encode_frame(messages)))
        said: list[AnyMessage] = []
        for peer, frame in self.step(target).messages:
            if peer == source:
                said += decode_frame(frame) or []
        return said
