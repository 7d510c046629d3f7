"""One life of a node: a replica on a store that outlives it, stepped as its driver would."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from consensus.replica import Input, LinkDown, LinkUp, Output, PeerMessage, Propose, Replica, TransferLeadership
from storage.errors import DiskFull
from storage.ids import NodeId
from storage.transactions import Transaction
from tests.simulation.machine import RecordingMachine

if TYPE_CHECKING:
    from tests.simulation.world import World


class _ObservedMachine(RecordingMachine):
    """Notes what it applies; alone, a replica applies what is agreed only when the commit has succeeded."""

    def __init__(self) -> None:
        self.applied: list[tuple[int, bytes]] = []

    def apply(self, txn: Transaction, index: int, command: bytes) -> tuple[Any, Sequence[Any]]:
        self.applied.append((index, command))
        return super().apply(txn, index, command)


class Process:
    """When it dies, `world.stop` forgets it; what is still planned for it then does nothing."""

    def __init__(self, world: "World", node_id: NodeId) -> None:
        self.world = world
        self.node_id = node_id
        self.is_alive = True
        self._inbox: list[Input] = []
        self._wake_at = float("inf")
        self._busy_until = 0.0
        """Paused, or waiting for its disk."""
        self._machine = _ObservedMachine()
        self.replica = Replica(
            node_id,
            world.ids,
            world.stores[node_id],
            self._machine,
            world.settings,
            random.Random(world.dice.random()),
            world.clock.now,
        )
        world.checks.starts(node_id, self.replica.status.applied_index)
        self.wake()

    # -- what arrives --

    def link_up(self, peer: NodeId) -> None:
        self.give(LinkUp(peer))

    def link_down(self, peer: NodeId, *, closed_by_peer: bool) -> None:
        self.give(LinkDown(peer, closed_by_peer))

    def received(self, peer: NodeId, frame: bytes) -> None:
        self.give(PeerMessage(peer, frame))

    def propose(self, token: int, command: bytes) -> None:
        self.give(Propose(token, command))

    def transfer(self) -> None:
        self.give(TransferLeadership())

    def give(self, given: Input) -> None:
        self._inbox.append(given)
        self.wake()

    def pause(self, seconds: float) -> None:
        self._busy_until = max(self._busy_until, self.world.clock.now + seconds)

    def resume(self) -> None:
        self._busy_until = 0.0
        self.wake()

    # -- stepping --

    def wake(self, delay_s: float = 0.0) -> None:
        now = self.world.clock.now
        at = max(now + delay_s, self._busy_until)
        if at < self._wake_at:
            self._wake_at = at
            self.world.clock.at(at - now, self._woken, at)

    def _woken(self, at: float) -> None:
        if not self.is_alive or self._wake_at != at:
            return
        self._wake_at = float("inf")
        if self._busy_until > self.world.clock.now:
            self.wake()
        else:
            self._step()

    def _step(self) -> None:
        world, clock, dice = self.world, self.world.clock, self.world.dice
        inputs, self._inbox = self._inbox, []
        store = world.stores[self.node_id]
        world.steps += 1
        if self.node_id in world.full_disks or world.mix.happens("torn_commit", world.torn_commit_chance):
            store.fail_next_commit(DiskFull("planned"))
        try:
            output = self.replica.step(inputs, clock.now, self._send)
        except DiskFull:
            self.on_failed_step()
            world.stop(self.node_id, restart_s=dice.random() * 2)
            return
        store.fail_next_commit(None)  # type: ignore[arg-type]  # it wrote nothing
        world.checks.applies(self.node_id, self._machine.applied)
        self._machine.applied.clear()
        world.on_output(self.node_id, output)
        if world.mix.happens("lost_output", 0.001):
            world.stop(self.node_id, restart_s=dice.random() * 2)
        elif world.mix.happens("slow_disk", 0.05):
            delay_s = dice.random() * 0.3
            self.pause(delay_s)
            clock.at(delay_s, self._speak, output)
        else:
            self._speak(output)

    def on_failed_step(self) -> None:
        """It died in its commit: nothing that it would have said was said."""

    def _speak(self, output: Output) -> None:
        if not self.is_alive:
            return  # durable, and never told
        for resolved in output.resolved:
            if resolved.error is None:
                command = self.world.load.commands[resolved.token]
                self.world.checks.acknowledged(self.node_id, resolved.token, resolved.index, command, resolved.answer)
        self._send(output.messages)
        self.wake(max(output.next_deadline - self.world.clock.now, 0.0))

    def _send(self, frames: list[tuple[NodeId, bytes]]) -> None:
        for target, frame in frames:
            self.world.network.send(self.node_id, target, frame)
