"""The links of a node that only dials: it listens on nothing, and keeps those links that it was told to keep.

The same trust, handshake, frames, heartbeats and renewal as `Mesh`; no founding, no gossip, no streams, no listener.
Handlers are called on the loop and must not block.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mesh.handshake import PROTOCOL_MAX, PROTOCOL_MIN, Hello
from mesh.identity import Identity
from mesh.linked import Linked
from mesh.links.link import Server
from mesh.parents import Sample
from mesh.secrets import Secrets
from mesh.settings import MeshSettings
from mesh.supervise import Logger
from mesh.tiers import LEAF
from mesh.trust import Admission
from storage.ids import InstanceId, NodeId


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of asking at some addresses: the node that is linked now and what it says of itself, or why not."""

    sample: Sample | None
    error: str = ""


class Uplinks(Linked):
    """Made inside a running loop, started once, stopped once."""

    def __init__(
        self,
        settings: MeshSettings,
        identity: Identity,
        instance_id: InstanceId,
        secrets: Secrets | None,
        log: Logger,
        rng: random.Random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(settings, identity, instance_id, secrets, _User(self), log, rng, clock, keeps_links=False)
        self.on_link_down: Callable[[NodeId, str], None] = lambda peer, reason: None

    def start(self) -> None:
        self._manager.start()
        self._tasks.spawn(self._keeper.run(), "mesh keep trust")

    async def stop(self) -> None:
        """Say goodbye and leave nothing behind."""
        await self._manager.stop()
        await self._tasks.close()

    @property
    def data_dir(self) -> Path:
        return self.settings.data_dir

    async def ask(self, addresses: tuple[str, ...], ping_s: float) -> Answered:
        """Dial one address after the other until a node answers, and a ping in time. The link stays up until `drop`."""
        error = "no address is known"
        for address in addresses:
            dialled = await self._manager.dial(address)
            peer = dialled.node_id
            link = None if peer is None else self._manager.links.get(peer)
            if peer is None or link is None or link.hello is None:
                error = dialled.error or f"{address}: another connection to it is being made"
                continue
            began = time.monotonic()
            if not await link.prove_alive(ping_s):
                error = f"{address}: does not answer within {ping_s:g} s"
                self.drop(peer, "silent")
                continue
            taken, most = link.hello.uplinks or (0, 0)
            return Answered(Sample(peer, link.hello.tier, time.monotonic() - began, taken, most))
        return Answered(None, error)

    def address_of(self, peer: NodeId) -> str:
        """Where the link leads; empty if there is none."""
        link = self._manager.links.get(peer)
        return "" if link is None else link.remote

    def rtt_s(self, peer: NodeId) -> float | None:
        link = self._manager.links.get(peer)
        return None if link is None else link.rtt_s

    def admission_of(self, peer: NodeId) -> Admission | None:
        """What the certificate says that the peer presented when the link was made."""
        link = self._manager.links.get(peer)
        return None if link is None else link.admission

    def link_counters(self, peer: NodeId) -> dict[str, int]:
        link = self._manager.links.get(peer)
        return {} if link is None else link.counters()

    def drop(self, peer: NodeId, code: str) -> None:
        """End a link that is not wanted (any more)."""
        self.close_link(peer, code, "this Leaf hangs on another node")

    def _hello(self, local_host: str) -> Hello:
        return Hello(
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            mesh_name=self.settings.mesh_name,
            node_id=self.node_id,
            instance_id=self.instance_id,
            node_name=self.settings.node_name,
            tier=LEAF,
            http_address=self.settings.http_address,
            software=self.settings.software,
            secrets=self._keeper.trust.accepted,
        )


class _User:
    """What the link manager may call."""

    def __init__(self, uplinks: Uplinks) -> None:
        self._uplinks = uplinks

    def on_raft(self, peer: NodeId, payload: bytes) -> None:
        """No replica is here."""

    def on_founding_frame(self, peer: NodeId, body: bytes) -> None:
        """Nor does a Leaf found anything."""

    def on_notice(self, peer: NodeId, topic: str, payload: bytes) -> None:
        self._uplinks.on_notice(peer, topic, payload)

    def server(self, method: str) -> Server | None:
        return self._uplinks._servers.get(method)

    def suspicion(self, peer: NodeId, *, is_suspect: bool) -> None:
        """A Leaf accuses nobody; a parent that falls silent is left."""

    def doubt(self) -> None:
        """So nobody has to be told either."""

    def is_stalled(self) -> bool:
        return False

    def link_up(self, hello: Hello) -> None:
        """Whoever dialled knows."""

    def link_down(self, peer: NodeId, reason: str, *, closed_by_peer: bool) -> None:
        self._uplinks.on_link_down(peer, reason)
