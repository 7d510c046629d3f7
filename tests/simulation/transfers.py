"""Snapshots on their way between bare replicas: asked for chunk by chunk, over the same unlucky network. What has
arrived is on the receiver's disk; what was made is lost with the process that made it."""

from typing import TYPE_CHECKING, NamedTuple

from consensus import snapshot
from consensus.snapshot import HoldLog, InstallSnapshot
from storage.dump import Header, encode_dump
from storage.ids import NodeId
from storage.memory import MemoryStore

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import ReplicaWorld

AGAIN_S = 0.5
"""After this an answer is not awaited any more."""


class Ask(NamedTuple):
    identity: bytes
    offset: int


class Chunk(NamedTuple):
    header: Header
    size: int
    offset: int
    data: bytes


class Made(NamedTuple):
    header: Header
    data: bytes


class Part(NamedTuple):
    identity: bytes
    data: bytearray


class Transfers:
    def __init__(self, world: "ReplicaWorld") -> None:
        self.world = world
        self.chunk_bytes = world.dice.choice([50, 400, 1 << 20])
        self.parts: dict[NodeId, Part] = {}
        self.installed = 0
        self.useless = 0

    def want(self, process: "Process", peer: NodeId) -> None:
        """Unless it has just asked."""
        now = self.world.clock.now
        if process.asked_at + AGAIN_S <= now:
            self._ask(process, peer)

    def received(self, process: "Process", peer: NodeId, message: Ask | Chunk) -> None:
        if isinstance(message, Ask):
            self._answer(process, peer, message)
        else:
            self._take(process, peer, message)

    def _ask(self, process: "Process", peer: NodeId) -> None:
        process.asked_at = self.world.clock.now
        part = self.parts.get(process.node_id, Part(b"", bytearray()))
        self.world.network.send(process.node_id, peer, Ask(part.identity, len(part.data)), "snapshot")

    def _answer(self, process: "Process", peer: NodeId, ask: Ask) -> None:
        made = process.made
        if made is None or made.header.index < process.replica.journal.first_index:
            made = process.made = make(process)
        if made is None:
            return
        process.give(HoldLog(made.header.index))
        offset = ask.offset if ask.identity == snapshot.identity(made.header) else 0
        chunk = Chunk(made.header, len(made.data), offset, made.data[offset : offset + self.chunk_bytes])
        self.world.network.send(process.node_id, peer, chunk, "snapshot")

    def _take(self, process: "Process", peer: NodeId, chunk: Chunk) -> None:
        """Row 16: chunks belong to a snapshot and have a place in it."""
        identity = snapshot.identity(chunk.header)
        part = self.parts.get(process.node_id)
        if part is None or (part.identity != identity and chunk.offset == 0):
            part = self.parts[process.node_id] = Part(identity, bytearray())
        if not self._continues(part, identity, chunk.offset):
            return
        part.data.extend(chunk.data)
        if len(part.data) < chunk.size:
            self._ask(process, peer)
            return
        del self.parts[process.node_id]
        filled = MemoryStore(process.world.tables)
        header = snapshot.fill(filled, [bytes(part.data)], process.machine)
        self.installed += 1
        process.give(InstallSnapshot(header, lambda: filled))

    def _continues(self, part: Part, identity: bytes, offset: int) -> bool:
        return part.identity == identity and len(part.data) == offset


def make(process: "Process") -> Made | None:
    with process.world.stores[process.node_id].read() as txn:
        header = snapshot.make_header(txn, process.machine)
        return None if header is None else Made(header, b"".join(encode_dump(txn, header)))
