"""One life of a node that is nothing but a replica."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from consensus.engine import Role
from consensus.errors import SnapshotInstalled
from consensus.messages import decode_frame
from consensus.replica import Replica
from consensus.steps import LinkDown, LinkUp, Output, PeerMessage, Propose, TransferLeadership
from storage.ids import NodeId
from storage.transactions import Transaction
from tests.simulation.machine import RecordingMachine
from tests.simulation.stepping import Broken, Frames, Life, Stepper
from tests.simulation.transfers import Ask, Chunk, Made

if TYPE_CHECKING:
    from tests.simulation.world import ReplicaWorld


class ObservedMachine(RecordingMachine):
    """Notes what it applies; alone, a replica applies what is agreed only when the commit has succeeded."""

    def __init__(self) -> None:
        self.applied: list[tuple[int, bytes]] = []
        self.latest = b""

    def apply(self, txn: Transaction, index: int, command: bytes) -> tuple[Any, Sequence[Any]]:
        self.applied.append((index, command))
        self.latest = command
        return super().apply(txn, index, command)


class Process(Life):
    world: "ReplicaWorld"

    def __init__(self, world: "ReplicaWorld", node_id: NodeId) -> None:
        super().__init__(world, node_id)
        self.machine = ObservedMachine()
        self.made: Made | None = None
        self.asked_at = float("-inf")
        self._is_behind = False
        store, now = world.stores[node_id], world.clock.now
        self.replica = Replica(node_id, self.founders(), store, self.machine, world.settings, self.dice, now)
        world.checks.starts(node_id, self.replica.status.applied_index)
        self._stepper = Stepper(self, self.replica, self._send, self._speak, self._on_broken)
        self.give = self._stepper.give

    def founders(self) -> Sequence[NodeId]:
        """The voters that it is told at its first start."""
        return self.world.ids

    def link_up(self, peer: NodeId) -> None:
        self.give(LinkUp(peer))

    def link_down(self, peer: NodeId, *, closed_by_peer: bool) -> None:
        self.give(LinkDown(peer, closed_by_peer))

    def received(self, peer: NodeId, frame: bytes | Ask | Chunk) -> None:
        if isinstance(frame, bytes):
            self.give(PeerMessage(peer, frame))
        else:
            self.world.transfers.received(self, peer, frame)

    def propose(self, token: int, command: bytes) -> None:
        self.give(Propose(token, command))

    def transfer(self) -> None:
        self.give(TransferLeadership())

    def resume(self) -> None:
        super().resume()
        self._stepper.wake()

    def _on_broken(self, replica: Replica, error: Broken) -> None:
        """It died in its commit: nothing that it would have said was said. Or it begins anew with a snapshot."""
        if isinstance(error, SnapshotInstalled):
            self.world.stop(self.node_id, restart_s=0.0)
        else:
            self.die()

    def _speak(self, output: Output) -> None:
        reads = self.world.reads
        for resolved in output.resolved:
            if resolved.token < 0:
                reads.resolved(self.node_id, resolved)
            elif resolved.error is None:
                command = self.world.load.commands[resolved.token]
                self.world.checks.acknowledged(self.node_id, resolved.token, resolved.index, command, resolved.answer)
                reads.acknowledged(resolved.index)
        if output.status.role is Role.LEADER:
            reads.leads(self.node_id, output.status.term)
        self._is_behind = output.status.needs_snapshot
        self._send(output.messages)
        if output.status.needs_snapshot and output.status.leader is not None:
            self.world.transfers.want(self, output.status.leader)

    def _send(self, frames: Frames) -> None:
        for target, frame in frames:
            # What overtakes is sent back again and again, and so is everything until a snapshot has come.
            if "retired" not in self.world.mix.hazards and not self._is_behind:
                self.world.checks.said(self.node_id, target, decode_frame(frame) or ())
            self.world.network.send(self.node_id, target, frame)
