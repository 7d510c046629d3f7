"""An in-process twin of the mesh's links: same surface as `Mesh`, no sockets, for tests of whatever stands on links.

Frames arrive in later turns of the loop, in order per direction; nothing is lost while a link is up. `cut` and `heal`
make partitions; a cut fails requests under way, as a lost link does.
"""

import asyncio
from collections.abc import Callable

from mesh.errors import MeshError, PeerUnavailable, RemoteFailed, RequestTimedOut
from mesh.handshake import PROTOCOL_MAX, PROTOCOL_MIN, Hello
from mesh.links.link import Server
from storage.ids import InstanceId, NodeId


class InProcessNetwork:
    """The wire. Everyone is linked to everyone who has started, except across cuts."""

    def __init__(self) -> None:
        self.nodes: dict[NodeId, InProcessMesh] = {}
        self._cuts: set[frozenset[NodeId]] = set()

    def join(self, node_id: NodeId, tier: str = "core") -> "InProcessMesh":
        """A node that is not started yet: set its handlers first."""
        return InProcessMesh(self, node_id, tier)

    def is_up(self, a: NodeId, b: NodeId) -> bool:
        return a != b and a in self.nodes and b in self.nodes and frozenset((a, b)) not in self._cuts

    def cut(self, a: NodeId, b: NodeId, *, closed_by_peer: bool = False) -> None:
        """Part two nodes. Silence by default; `closed_by_peer` looks like a crash, as EOF does."""
        if self.is_up(a, b):
            self._cuts.add(frozenset((a, b)))
            self.nodes[a].lost(b, "cut", closed_by_peer=closed_by_peer)
            self.nodes[b].lost(a, "cut", closed_by_peer=closed_by_peer)

    def heal(self, a: NodeId, b: NodeId) -> None:
        """Join them again."""
        if frozenset((a, b)) in self._cuts:
            self._cuts.discard(frozenset((a, b)))
            if self.is_up(a, b):
                self.nodes[a].on_link_up(self.nodes[b].hello)
                self.nodes[b].on_link_up(self.nodes[a].hello)


class InProcessMesh:
    """One node's end. The methods and handlers are those of `mesh.mesh.Mesh`."""

    def __init__(self, network: InProcessNetwork, node_id: NodeId, tier: str) -> None:
        self.node_id = node_id
        self.hello = Hello(
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            mesh_name="in process",
            node_id=node_id,
            instance_id=InstanceId("0000000000000000"),
            node_name=str(node_id),
            tier=tier,
        )
        self.on_raft: Callable[[NodeId, bytes], None] = lambda peer, payload: None
        self.on_notice: Callable[[NodeId, str, bytes], None] = lambda peer, topic, payload: None
        self.on_link_up: Callable[[Hello], None] = lambda hello: None
        self.on_link_down: Callable[[NodeId, str, bool], None] = lambda peer, reason, closed_by_peer: None
        self._network = network
        self._servers: dict[str, Server] = {}
        self._waiting: dict[NodeId, set[asyncio.Future[bytes]]] = {}
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._network.nodes[self.node_id] = self
        for peer, other in tuple(self._network.nodes.items()):
            if self._network.is_up(self.node_id, peer):
                self.on_link_up(other.hello)
                other.on_link_up(self.hello)

    async def stop(self) -> None:
        """Leave; the others see the link close. Requests being served here are cancelled and awaited."""
        for peer, other in tuple(self._network.nodes.items()):
            if self._network.is_up(self.node_id, peer):
                self.lost(peer, "stopping", closed_by_peer=False)
                other.lost(self.node_id, "stopping", closed_by_peer=True)
        self._network.nodes.pop(self.node_id, None)
        while self._serving:
            for task in tuple(self._serving):
                task.cancel()
            await asyncio.wait(tuple(self._serving))

    def is_up(self, peer: NodeId) -> bool:
        return self._network.is_up(self.node_id, peer)

    def send(self, peer: NodeId, payload: bytes) -> bool:
        return self._later(peer, lambda other: other.on_raft(self.node_id, payload))

    def notify(self, peer: NodeId, topic: str, payload: bytes) -> bool:
        return self._later(peer, lambda other: other.on_notice(self.node_id, topic, payload))

    def serve(self, method: str, server: Server) -> None:
        self._servers[method] = server

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if not self._later(peer, lambda other: other._begin(self, method, payload, answer)):
            raise PeerUnavailable("no_link", f"no link to {peer}")
        waiting = self._waiting.setdefault(peer, set())
        waiting.add(answer)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise RequestTimedOut("timed_out", f"{peer} did not answer {method} in {timeout_s:g} s") from None
        finally:
            waiting.discard(answer)

    def lost(self, peer: NodeId, reason: str, *, closed_by_peer: bool) -> None:
        """The network says that the link to `peer` is gone."""
        for answer in self._waiting.pop(peer, set()):
            if not answer.done():
                answer.set_exception(PeerUnavailable("link_lost", f"the link to {peer} closed: {reason}"))
        self.on_link_down(peer, reason, closed_by_peer)

    def _later(self, peer: NodeId, deliver: Callable[["InProcessMesh"], None]) -> bool:
        if not self.is_up(peer):
            return False

        def arrive() -> None:
            if self._network.is_up(self.node_id, peer):
                deliver(self._network.nodes[peer])

        asyncio.get_running_loop().call_soon(arrive)
        return True

    def _begin(self, caller: "InProcessMesh", method: str, payload: bytes, answer: asyncio.Future[bytes]) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(caller, method, payload, answer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        answer.add_done_callback(lambda _: task.cancel())  # timed out, cancelled or lost: nobody waits any more

    async def _serve(self, caller: "InProcessMesh", method: str, payload: bytes, answer: asyncio.Future[bytes]) -> None:
        server = self._servers.get(method)
        result: bytes | MeshError
        if server is None:
            result = RemoteFailed("unknown_method", f"this node does not serve {method!r}")
        else:
            try:
                result = await server(caller.node_id, payload)
            except Exception as error:
                code = getattr(error, "code", "internal")
                result = RemoteFailed(str(code), str(error))

        def finish(_: InProcessMesh) -> None:
            if answer.done():
                return
            if isinstance(result, bytes):
                answer.set_result(result)
            else:
                answer.set_exception(result)

        self._later(caller.node_id, finish)
