"""What every node has of its links, whoever dials: trust, frames to and from its peers, and what was refused.

Delivery is not guaranteed; the errors of `request` say whether the peer may have acted.
"""

import random
from collections.abc import Callable

from mesh.errors import PeerUnavailable
from mesh.handshake import Hello, Refuse
from mesh.identity import Identity
from mesh.keeper import TrustKeeper, TrustStatus
from mesh.links.link import Server
from mesh.links.manager import LinkManager, LinkUser
from mesh.refusals import Refusals
from mesh.secrets import Secrets
from mesh.settings import MeshSettings
from mesh.supervise import Logger, Supervisor
from mesh.trust import Trust
from storage.ids import InstanceId, NodeId


class Linked:
    """A subclass says hello, and has a `LinkUser` for what the links bring."""

    def __init__(
        self,
        settings: MeshSettings,
        identity: Identity,
        instance_id: InstanceId,
        secrets: Secrets | None,
        user: LinkUser,
        log: Logger,
        rng: random.Random,
        clock: Callable[[], float],
        *,
        keeps_links: bool = True,
    ) -> None:
        self.settings = settings
        self.node_id: NodeId = identity.node_id
        self.instance_id = instance_id
        self.on_notice: Callable[[NodeId, str, bytes], None] = lambda peer, topic, payload: None
        self._servers: dict[str, Server] = {}
        self._tasks = Supervisor(log)
        self._refusals = Refusals(log)
        self._keeper = TrustKeeper(identity, secrets, settings.mesh_name, settings.secret_file, clock, log)
        self._manager = LinkManager(
            identity,
            instance_id,
            self._hello,
            self._keeper.trust,
            user,
            self._refusals,
            self._tasks,
            log,
            rng,
            clock,
            keeps_links=keeps_links,
        )
        self._keeper.on_change = self._on_trust
        self._servers.update(self._manager.copies.servers)

    def _hello(self, local_host: str) -> Hello:
        raise NotImplementedError

    def _on_trust(self, trust: Trust) -> None:
        self._manager.use(trust)

    def trust_status(self) -> TrustStatus:
        """Secrets by fingerprint, the certificate's dates, and what is wrong with them."""
        return self._keeper.status()

    def look_at_secrets(self) -> None:
        """Take over a changed secret file at once; it is looked at every other second anyway."""
        self._keeper.look_now()

    def counters(self) -> dict[str, int]:
        """Refusals by reason."""
        return dict(self._refusals.counters)

    def is_up(self, peer: NodeId) -> bool:
        """Whether there is a link now."""
        return peer in self._manager.links

    def hello_of(self, peer: NodeId) -> Hello | None:
        """What a linked peer said of itself."""
        link = self._manager.links.get(peer)
        return None if link is None else link.hello

    def close_link(self, peer: NodeId, code: str, message: str) -> None:
        """End a link, and say why."""
        if (link := self._manager.links.get(peer)) is not None:
            link.close(code, Refuse(code, message))

    def notify(self, peer: NodeId, topic: str, payload: bytes) -> bool:
        """A notice, below everything else. False: not linked, or shed."""
        link = self._manager.links.get(peer)
        return link is not None and link.notify(topic, payload)

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Ask a peer. Errors: PeerUnavailable, RequestTimedOut, RemoteFailed; each says whether it may have acted."""
        link = self._manager.links.get(peer)
        if link is None:
            raise PeerUnavailable("no_link", f"no link to {peer}")
        return await link.request(method, payload, timeout_s)

    def serve(self, method: str, server: Server) -> None:
        """Answer requests for `method`. An exception with a `code` reaches the caller as RemoteFailed(code)."""
        self._servers[method] = server
