"""What the scheduler goes by beside the replicated state: which members the leader reaches, and which keep up.

Only the leader's own sight counts, so every node asks it. Without an answer what this node sees itself has to do, and
`is_leader` says so.
"""

from collections.abc import Awaitable, Callable, Collection

import msgspec

from consensus.state import queries
from node.scheduler.judgement import LinkView, Outlook
from node.scheduler.placement import View
from storage import codec
from storage.errors import CodecError
from storage.ids import NodeId
from storage.transactions import Transaction

METHOD = "sight"

ASK_S = 2.0
"""Then the own sight is told: a person waits."""

SIGHT_BYTES_MAX = 256 * 1024
"""1,000 links of 200 bytes each, with room."""


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    node_id: NodeId
    """Whose."""
    is_leader: bool = False
    links: dict[NodeId, LinkView] = {}
    stuck: list[NodeId] = []

    def view(self, txn: Transaction) -> View:
        return View(
            node_id=self.node_id,
            leader_for_ms=0,
            members=queries.members(txn),
            links=self.links,
            leases=queries.leases(txn),
            stuck=self.stuck,
        )


class Sights:
    """`ask(leader)` answers with what the leader's `on_request` does; None: no answer."""

    def __init__(
        self,
        node_id: NodeId,
        leader: Callable[[], NodeId | None],
        outlook: Callable[[], Outlook],
        stuck: Callable[[], Collection[NodeId]],
        ask: Callable[[NodeId], Awaitable[bytes | None]],
    ) -> None:
        self._node_id = node_id
        self._leader = leader
        self._outlook = outlook
        self._stuck = stuck
        self._ask = ask

    def own(self) -> Sight:
        return Sight(
            node_id=self._node_id,
            is_leader=self._leader() == self._node_id,
            links=dict(self._outlook().links),
            stuck=sorted(self._stuck()),
        )

    async def look(self) -> Sight:
        """That of the leader, if it answers."""
        leader = self._leader()
        answer = None if leader in (None, self._node_id) else await self._ask(leader)
        if answer is not None:
            try:
                sight = codec.decode(answer, Sight, SIGHT_BYTES_MAX)
            except CodecError:
                return self.own()
            if sight.is_leader and sight.node_id == leader:
                return sight
        return self.own()

    async def on_request(self, peer: NodeId, payload: bytes) -> bytes:
        return codec.encode(self.own())
