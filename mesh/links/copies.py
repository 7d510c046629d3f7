"""Two daemons on one identity: a data directory was copied, or a machine that holds one.

A node that is linked to one of them refuses the other. But when both start together, each may be linked first at some
nodes, and both would vote for one. So gossip says which instance a node is linked to, and who hears of a greater one
than its own asks for proof: a signature over a fresh question, passed on by the node that is linked to it, which nobody
else can make. If its own is alive as well there are two, and it gives up its own: in the end every node is linked to
the one with the greatest instance id, and the others are told why they are not wanted.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable, Mapping

from mesh.errors import MeshError, PeerUnavailable
from mesh.handshake import Hello, Refuse, cloned_instance
from mesh.identity import Identity, is_proven
from mesh.limits import CONFLICT_PING_S, COPY_PROOF_S, COPY_REFUSED_S
from mesh.links.book import KnownPeer
from mesh.links.link import Link, Server
from mesh.supervise import Supervisor
from storage import codec
from storage.errors import CodecError
from storage.ids import InstanceId, NodeId

_QUESTION = "mesh.instance"
_PASSED_ON = "mesh.instance_of"
_NONCE_BYTES = 16


class Copies:
    """`refuse_link` ends a link for a reason, `tell` says to one peer which instance of another is linked here."""

    def __init__(
        self,
        identity: Identity,
        instance_id: InstanceId,
        links: Mapping[NodeId, Link],
        tasks: Supervisor,
        refuse_link: Callable[[NodeId, Refuse], None],
        tell: Callable[[NodeId, NodeId], None],
    ) -> None:
        self._identity = identity
        self._instance_id = instance_id
        self._links = links
        self._tasks = tasks
        self._refuse_link = refuse_link
        self._tell = tell
        self._looked_at: set[NodeId] = set()
        self._refused: dict[NodeId, tuple[InstanceId, float, Refuse]] = {}
        self.servers: dict[str, Server] = {_QUESTION: self._on_question, _PASSED_ON: self._on_passed_on}

    def told(self, by: NodeId, peers: Iterable[KnownPeer]) -> None:
        """Gossip of `by`. Of two that disagree the one with the smaller instance has to look."""
        for peer in peers:
            mine = self._instance_of(peer.node_id)
            if not mine or not peer.instance_id or peer.instance_id == mine:
                continue
            if peer.instance_id < mine:
                self._tell(by, peer.node_id)
            elif peer.node_id not in self._looked_at:
                self._looked_at.add(peer.node_id)
                self._tasks.spawn(self._look(by, peer.node_id), f"mesh copy of {peer.node_id}")

    def refuses(self, theirs: Hello) -> Refuse | None:
        """For a while, so that the other one is linked first."""
        instance, until, refuse = self._refused.get(theirs.node_id, (None, 0.0, None))
        return refuse if instance == theirs.instance_id and asyncio.get_running_loop().time() < until else None

    async def _look(self, by: NodeId, node: NodeId) -> None:
        try:
            with contextlib.suppress(MeshError, CodecError):
                await self._compare(by, node)
        finally:
            self._looked_at.discard(node)

    async def _compare(self, by: NodeId, node: NodeId) -> None:
        witness, own = self._links.get(by), self._links.get(node)
        if witness is None or own is None or own.hello is None:
            return
        nonce = secrets.token_bytes(_NONCE_BYTES)
        answer = await witness.request(_PASSED_ON, codec.encode((node, nonce)), COPY_PROOF_S)
        instance, proof = codec.decode(answer, tuple[InstanceId, bytes])
        if instance <= own.hello.instance_id or not is_proven(node, proof, _content(nonce, instance)):
            return
        is_alive = await own.prove_alive(CONFLICT_PING_S)
        if self._links.get(node) is not own:
            return
        if not is_alive:
            own.close("replaced")
            return
        refuse = cloned_instance(own.hello, own.hello.node_name, instance)
        now = asyncio.get_running_loop().time()
        self._refused = {one: kept for one, kept in self._refused.items() if kept[1] > now}
        self._refused[node] = (own.hello.instance_id, now + COPY_REFUSED_S, refuse)
        self._refuse_link(node, refuse)

    async def _on_question(self, peer: NodeId, nonce: bytes) -> bytes:
        return codec.encode((self._instance_id, self._identity.sign(_content(nonce, self._instance_id))))

    async def _on_passed_on(self, peer: NodeId, payload: bytes) -> bytes:
        node, nonce = codec.decode(payload, tuple[NodeId, bytes])
        link = self._links.get(node)
        if link is None:
            raise PeerUnavailable("no_link", f"no link to {node}")
        return await link.request(_QUESTION, nonce[:_NONCE_BYTES], COPY_PROOF_S)

    def _instance_of(self, node: NodeId) -> InstanceId | None:
        link = self._links.get(node)
        return None if link is None or link.hello is None else link.hello.instance_id


def _content(nonce: bytes, instance_id: InstanceId) -> bytes:
    return b"meshnode instance\0" + nonce.ljust(_NONCE_BYTES, b"\0") + instance_id.encode()
