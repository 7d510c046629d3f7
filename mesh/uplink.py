"""The links of a node that only dials: it listens on nothing, and keeps those links that it was told to keep.

The same trust, handshake, frames, heartbeats and renewal as `Mesh`; no founding, no gossip, no streams, no listener.
Handlers are called on the loop and must not block.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import PeerUnavailable
from mesh.handshake import PROTOCOL_MAX, PROTOCOL_MIN, Hello, Refuse
from mesh.identity import Identity
from mesh.keeper import TrustKeeper, TrustStatus
from mesh.limits import CONFLICT_PING_S
from mesh.links.link import Server
from mesh.links.manager import LinkManager
from mesh.parents import Sample
from mesh.refusals import Refusals
from mesh.secrets import Secrets
from mesh.settings import MeshSettings
from mesh.supervise import Logger, Supervisor
from mesh.tiers import LEAF
from mesh.trust import Trust
from storage.ids import InstanceId, NodeId


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of asking at some addresses: the node that is linked now and what it says of itself, or why not."""

    sample: Sample | None
    error: str = ""


class Uplinks:
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
        self.on_notice: Callable[[NodeId, str, bytes], None] = lambda peer, topic, payload: None
        self.on_link_down: Callable[[NodeId, str], None] = lambda peer, reason: None
        self._settings = settings
        self._node_id = identity.node_id
        self._instance_id = instance_id
        self._servers: dict[str, Server] = {}
        self._tasks = Supervisor(log)
        self._refusals = Refusals(log)
        self._keeper = TrustKeeper(identity, secrets, settings.mesh_name, settings.secret_file, clock, log)
        self._manager = LinkManager(
            identity.node_id,
            instance_id,
            self._hello,
            self._keeper.trust,
            _User(self),
            self._refusals,
            self._tasks,
            log,
            rng,
            clock,
            keeps_links=False,
        )
        self._keeper.on_change = self._on_trust

    def start(self) -> None:
        self._manager.start()
        self._tasks.spawn(self._keeper.run(), "mesh keep trust")

    async def stop(self) -> None:
        """Say goodbye and leave nothing behind."""
        await self._manager.stop()
        await self._tasks.close()

    @property
    def data_dir(self) -> Path:
        return self._settings.data_dir

    def trust_status(self) -> TrustStatus:
        return self._keeper.status()

    def look_at_secrets(self) -> None:
        """Take over a changed secret file at once."""
        self._keeper.look_now()

    def counters(self) -> dict[str, int]:
        """Refusals by reason."""
        return dict(self._refusals.counters)

    async def ask(self, addresses: tuple[str, ...]) -> Answered:
        """Dial one address after the other until a node answers. The link stays up until `drop`."""
        error = "no address is known"
        for address in addresses:
            dialled = await self._manager.dial(address)
            peer = dialled.node_id
            link = None if peer is None else self._manager.links.get(peer)
            if peer is None or link is None or link.hello is None:
                error = dialled.error or f"{address}: another connection to it is being made"
                continue
            began = time.monotonic()
            if not await link.prove_alive(CONFLICT_PING_S):
                error = f"{address}: does not answer"
                self.drop(peer, "silent")
                continue
            taken, most = link.hello.uplinks or (0, 0)
            return Answered(Sample(peer, link.hello.tier, time.monotonic() - began, taken, most))
        return Answered(None, error)

    def hello_of(self, peer: NodeId) -> Hello | None:
        link = self._manager.links.get(peer)
        return None if link is None else link.hello

    def address_of(self, peer: NodeId) -> str:
        """Where the link leads; empty if there is none."""
        link = self._manager.links.get(peer)
        return "" if link is None else link.remote

    def rtt_s(self, peer: NodeId) -> float | None:
        link = self._manager.links.get(peer)
        return None if link is None else link.rtt_s

    def link_counters(self, peer: NodeId) -> dict[str, int]:
        link = self._manager.links.get(peer)
        return {} if link is None else link.counters()

    def is_up(self, peer: NodeId) -> bool:
        return peer in self._manager.links

    def drop(self, peer: NodeId, code: str) -> None:
        """End a link that is not wanted (any more)."""
        link = self._manager.links.get(peer)
        if link is not None:
            link.close(code, Refuse(code, "this Leaf hangs on another node"))

    def serve(self, method: str, server: Server) -> None:
        self._servers[method] = server

    def notify(self, peer: NodeId, topic: str, payload: bytes) -> bool:
        link = self._manager.links.get(peer)
        return link is not None and link.notify(topic, payload)

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Errors as `Mesh.request`."""
        link = self._manager.links.get(peer)
        if link is None:
            raise PeerUnavailable("no_link", f"no link to {peer}")
        return await link.request(method, payload, timeout_s)

    def _hello(self, local_host: str) -> Hello:
        return Hello(
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            mesh_name=self._settings.mesh_name,
            node_id=self._node_id,
            instance_id=self._instance_id,
            node_name=self._settings.node_name,
            tier=LEAF,
            http_address=self._settings.http_address,
            software=self._settings.software,
            secrets=self._keeper.trust.accepted,
        )

    def _on_trust(self, trust: Trust) -> None:
        self._manager.use(trust)


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
