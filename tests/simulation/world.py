"""A mesh of real replicas on a virtual clock, with an unlucky network, machines that stop, and disks that lose what was
not committed.

Links are ordered and do not duplicate (TCP), but they delay, break, heal, and may lose one direction silently (a full
queue sheds frames). Each seed draws its own mix of faults (swarm testing, Groce et al. 2012) and its own sizes of
batches, windows and caches. After the faults comes a quiet time in which everything must converge.

Checked all the time: the same command at an index everywhere; applied indexes never go back and skip nothing; at most
one leader a term; no exception but a planned one. Checked at the end: acknowledged commands are in every table, all
tables are equal, and a new command goes through.
"""

import heapq
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from consensus.engine import Role
from consensus.journal import TABLES
from consensus.limits import RaftSettings
from consensus.replica import Input, LinkDown, LinkUp, Output, PeerMessage, Propose, Replica, TransferLeadership
from storage.errors import DiskFull
from storage.ids import NodeId
from storage.memory import MemoryStore
from storage.transactions import Transaction
from tests.simulation.machine import APPLIED_TABLE, RecordingMachine, table_digest

FAULTS = ("crash", "torn_commit", "lost_output", "break", "partition", "one_way", "pause", "slow", "transfer")


class Violation(Exception):
    """What must never happen, or did not happen in time."""


class _CheckedMachine(RecordingMachine):
    def __init__(self, world: "World", node: NodeId) -> None:
        self.world = world
        self.node = node

    def apply(self, txn: Transaction, index: int, command: bytes) -> tuple[Any, Sequence[Any]]:
        self.world.check_applied(self.node, index, command)
        return super().apply(txn, index, command)


class World:
    """One run of one seed. `run` raises Violation."""

    replica_type = Replica
    torn_commit_chance = 0.002

    def __init__(self, seed: int, nodes: int, *, fault_s: float = 8.0, heal_s: float = 90.0) -> None:
        self.seed = seed
        self.dice = random.Random(f"{seed}/{nodes}")
        self.fault_s, self.heal_s = fault_s, heal_s
        self.ids = [NodeId(f"n{i}") for i in range(nodes)]
        self.faults = {fault for fault in FAULTS if self.dice.random() < 0.5}
        self.settings = RaftSettings(
            batch_bytes=self.dice.choice([12, 20, 40, 400, 1 << 20]),
            batch_entries=self.dice.choice([2, 8, 4096]),
            window_bytes=self.dice.choice([60, 400, 8000, 1 << 20]),
            tail_entries_max=self.dice.choice([4, 32, 4096]),
            tail_bytes_max=self.dice.choice([400, 1 << 20]),
            slice_entries_max=self.dice.choice([2, 16, 2048]),
            slice_bytes_max=self.dice.choice([16, 1 << 20]),
        )
        self.burst = self.dice.choice([1, 3, 12])
        self.propose_every_s = self.dice.choice([0.02, 0.05, 0.2])
        self.fault_every_s = self.dice.choice([0.1, 0.3, 1.0])
        self.latency_s = self.dice.choice([0.001, 0.01, 0.05])
        notice_s = self.dice.choice([0.0, 0.001, 0.1])
        self.settings = msgspec.structs.replace(self.settings, commit_notice_s=notice_s)
        self.now = 100.0
        self.is_healed = False
        self.stores = {i: MemoryStore((*TABLES, APPLIED_TABLE)) for i in self.ids}
        self.replicas: dict[NodeId, Replica] = {}
        self.inboxes: dict[NodeId, list[Input]] = {i: [] for i in self.ids}
        self.wakes: dict[NodeId, float] = {}
        self.paused_until: dict[NodeId, float] = {}
        self.links: dict[frozenset[NodeId], int] = {}
        self.link_epochs = 0
        self.cut: set[frozenset[NodeId]] = set()
        self.deaf: set[tuple[NodeId, NodeId]] = set()
        self.channels: dict[tuple[NodeId, NodeId], deque[tuple[float, int, bytes]]] = {}
        self.heap: list[tuple[float, int, str, Any]] = []
        self.order = 0
        self.steps = self.frames = 0
        self.commands: dict[int, bytes] = {}
        self.agreed: dict[int, bytes] = {}
        self.acked: dict[int, bytes] = {}
        self.leaders: dict[int, NodeId] = {}
        self.applied = dict.fromkeys(self.ids, 0)
        self.last_leader: NodeId | None = None

    # -- running --

    def run(self) -> None:
        for i in self.ids:
            self.start(i)
        self.at(0.0, "connect", None)
        self.at(0.1, "propose", None)
        self.at(0.5, "fault", None)
        self.run_for(self.fault_s)
        self.heal()
        stop = self.now + self.heal_s
        while self.now < stop:
            self.run_for(0.5)
            if self.is_converged():
                break
        else:
            raise Violation(f"not converged after {self.heal_s} s without faults: {self.describe()}")
        self.check_end()

    def run_for(self, seconds: float) -> None:
        stop = self.now + seconds
        while self.heap and self.heap[0][0] <= stop:
            self.now, _, kind, what = heapq.heappop(self.heap)
            getattr(self, f"do_{kind}")(what)
        self.now = stop

    def at(self, delay_s: float, kind: str, what: Any) -> None:
        self.order += 1
        heapq.heappush(self.heap, (self.now + delay_s, self.order, kind, what))

    def heal(self) -> None:
        self.is_healed = True
        self.cut.clear()
        self.deaf.clear()
        self.paused_until.clear()
        for i in self.ids:
            if i not in self.replicas:
                self.start(i)
            self.wake(i, 0.0)

    def is_converged(self) -> bool:
        """One command more, proposed in the quiet, is applied everywhere."""
        if self.last_leader is None or self.last_leader not in self.replicas:
            return False
        status = {i: self.replicas[i].status for i in self.ids}
        if len({s.applied_index for s in status.values()}) == 1 and any(s.role is Role.LEADER for s in status.values()):
            if self.commands and b"last" in self.acked.values():
                return True
            self.propose(self.last_leader, b"last")
        return False

    # -- machines --

    def start(self, i: NodeId) -> None:
        rng = random.Random(self.dice.random())
        self.replicas[i] = self.replica_type(
            i, self.ids, self.stores[i], _CheckedMachine(self, i), self.settings, rng, self.now
        )
        self.inboxes[i] = []
        applied = self.replicas[i].status.applied_index
        if applied < self.applied[i]:
            raise Violation(f"{i}: applied {self.applied[i]} before its restart and {applied} after")
        self.wake(i, 0.0)

    def stop(self, i: NodeId, *, restart_s: float | None = None) -> None:
        del self.replicas[i]
        self.wakes.pop(i, None)
        self.paused_until.pop(i, None)
        for link in [link for link in self.links if i in link]:
            self.break_link(link, closed_by=i)
        if restart_s is not None:
            self.at(restart_s, "restart", i)

    def do_restart(self, i: NodeId) -> None:
        if i not in self.replicas:
            self.start(i)

    def wake(self, i: NodeId, delay_s: float) -> None:
        at = max(self.now + delay_s, self.paused_until.get(i, 0.0))
        if i in self.replicas and at < self.wakes.get(i, float("inf")):
            self.wakes[i] = at
            self.at(at - self.now, "wake", (i, at))

    def do_wake(self, what: tuple[NodeId, float]) -> None:
        i, at = what
        if self.wakes.get(i) != at or i not in self.replicas:
            return
        del self.wakes[i]
        if self.paused_until.get(i, 0.0) > self.now:
            self.wake(i, 0.0)
            return
        self.step(i)

    def step(self, i: NodeId) -> None:
        inputs, self.inboxes[i] = self.inboxes[i], []
        replica = self.replicas[i]
        self.steps += 1
        fails = not self.is_healed and "torn_commit" in self.faults and self.dice.random() < self.torn_commit_chance
        if fails:
            self.stores[i].fail_next_commit(DiskFull("planned"))
        try:
            output = replica.step(inputs, self.now, lambda frames: self.transmit_all(i, frames))
        except DiskFull:
            self.on_failed_step(i, replica)
            self.stop(i, restart_s=self.dice.random() * 2)
            return
        self.stores[i].fail_next_commit(None)  # type: ignore[arg-type]  # it wrote nothing
        self.check_output(i, output)
        if not self.is_healed and "lost_output" in self.faults and self.dice.random() < 0.001:
            self.stop(i, restart_s=self.dice.random() * 2)
            return
        for resolved in output.resolved:
            if resolved.error is None:
                self.acked[resolved.token] = self.commands[resolved.token]
                if resolved.answer != (resolved.index, self.commands[resolved.token]):
                    raise Violation(f"{i}: proposal {resolved.token} was answered with another's answer")
        self.transmit_all(i, output.messages)
        self.wake(i, max(output.next_deadline - self.now, 0.0))

    def on_failed_step(self, i: NodeId, replica: Replica) -> None:
        """The process died in its commit: nothing it would have said was said."""

    # -- network --

    def transmit_all(self, source: NodeId, frames: list[tuple[NodeId, bytes]]) -> None:
        for target, frame in frames:
            self.transmit(source, target, frame)

    def transmit(self, source: NodeId, target: NodeId, frame: bytes) -> None:
        self.frames += 1
        link = frozenset((source, target))
        epoch = self.links.get(link)
        if epoch is None or (source, target) in self.deaf:
            return
        slow = "slow" in self.faults and not self.is_healed and self.dice.random() < 0.03
        channel = self.channels.setdefault((source, target), deque())
        arrival = self.now + self.dice.random() * (1.0 if slow else self.latency_s)
        if channel:
            arrival = max(arrival, channel[-1][0])
        channel.append((arrival, epoch, frame))
        self.at(arrival - self.now, "arrive", (source, target))

    def do_arrive(self, what: tuple[NodeId, NodeId]) -> None:
        source, target = what
        channel = self.channels[what]
        while channel and channel[0][0] <= self.now:
            _, epoch, frame = channel.popleft()
            if self.links.get(frozenset(what)) == epoch and target in self.replicas:
                self.inboxes[target].append(PeerMessage(source, frame))
                self.wake(target, 0.0)

    def do_connect(self, _: None) -> None:
        """Whoever can reach somebody connects, after a while."""
        for a in self.ids:
            for b in self.ids:
                link = frozenset((a, b))
                if a < b and link not in self.links and link not in self.cut and link <= self.replicas.keys():
                    self.link_epochs += 1
                    self.links[link] = self.link_epochs
                    for i, peer in ((a, b), (b, a)):
                        self.inboxes[i].append(LinkUp(peer))
                        self.wake(i, 0.0)
        self.at(0.02 + self.dice.random() * 0.2, "connect", None)

    def break_link(self, link: frozenset[NodeId], closed_by: NodeId | None = None) -> None:
        if self.links.pop(link, None) is None:
            return
        for i in sorted(link):
            (peer,) = link - {i}
            if i in self.replicas:
                self.inboxes[i].append(LinkDown(peer, closed_by == peer))
                self.wake(i, 0.0)

    # -- load and faults --

    def do_propose(self, _: None) -> None:
        if self.is_healed:
            return
        for _i in range(self.dice.randrange(self.burst) + 1):
            is_informed = self.last_leader in self.replicas and self.dice.random() < 0.8
            if self.replicas:
                target = self.last_leader if is_informed else self.dice.choice(sorted(self.replicas))
                assert target is not None
                kind = b"check" if self.dice.random() < 0.02 else b"c"
                self.propose(target, b"%s%d" % (kind, len(self.commands)))
        self.at(self.dice.random() * 2 * self.propose_every_s, "propose", None)

    def propose(self, target: NodeId, command: bytes) -> None:
        token = len(self.commands)
        self.commands[token] = command
        self.inboxes[target].append(Propose(token, command))
        self.wake(target, 0.0)

    def do_fault(self, _: None) -> None:
        if self.is_healed:
            return
        self.at(self.dice.random() * 2 * self.fault_every_s, "fault", None)
        if not self.faults:
            return
        match self.dice.choice(sorted(self.faults)):
            case "crash" if len(self.replicas) > 1 or self.dice.random() < 0.3:
                if self.replicas:
                    self.stop(self.dice.choice(sorted(self.replicas)), restart_s=self.dice.random() * 3)
            case "break" if self.links:
                self.break_link(self.dice.choice(sorted(self.links, key=sorted)))
            case "partition":
                self.cut.clear()
                if self.dice.random() < 0.7:
                    side = set(self.dice.sample(self.ids, self.dice.randrange(1, len(self.ids))))
                    self.cut = {frozenset((a, b)) for a in side for b in set(self.ids) - side}
                    for link in sorted(self.cut & self.links.keys(), key=sorted):
                        self.break_link(link)
            case "one_way":
                self.deaf.clear()
                if self.dice.random() < 0.7:
                    a, b = self.dice.sample(self.ids, 2)
                    self.deaf.add((a, b))
            case "pause":
                i = self.dice.choice(self.ids)
                self.paused_until[i] = self.now + self.dice.random() * 3
            case "transfer" if self.last_leader in self.replicas:
                assert self.last_leader is not None
                self.inboxes[self.last_leader].append(TransferLeadership())
                self.wake(self.last_leader, 0.0)

    # -- checking --

    def check_applied(self, node: NodeId, index: int, command: bytes) -> None:
        known = self.agreed.setdefault(index, command)
        if known != command:
            raise Violation(f"index {index}: {node} applies {command!r}, another replica {known!r}")

    def check_output(self, i: NodeId, output: Output) -> None:
        status = output.status
        if status.role is Role.LEADER:
            first = self.leaders.setdefault(status.term, i)
            if first != i:
                raise Violation(f"term {status.term} has two leaders, {first} and {i}")
            self.last_leader = i
        if status.applied_index < self.applied[i]:
            raise Violation(f"{i}: applied index went back from {self.applied[i]} to {status.applied_index}")
        if status.is_quarantined:
            raise Violation(f"{i}: its tables differ from those of a majority")
        for reason in ("second_leader", "conflict_below_commit", "impossible_index", "malformed_frame"):
            if status.dropped.get(reason):
                raise Violation(f"{i}: an honest peer's message was dropped: {reason}")
        self.applied[i] = status.applied_index

    def check_end(self) -> None:
        digests = {}
        for i, store in self.stores.items():
            with store.read() as txn:
                digests[i] = table_digest(txn)
                held = {value for _, value in txn.scan(APPLIED_TABLE)}
            lost = set(self.acked.values()) - held
            if lost:
                raise Violation(f"{i}: {len(lost)} acknowledged commands are lost, such as {min(lost)!r}")
        if len(set(digests.values())) != 1:
            raise Violation(f"tables differ: {digests}")

    def describe(self) -> str:
        parts = []
        for i in self.ids:
            s = self.replicas[i].status
            parts.append(f"{i} {s.role.name} term {s.term} applied {s.applied_index} last {s.last_index} {s.dropped}")
        return "; ".join(parts)
