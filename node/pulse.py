"""The pulse of a leader: proves that commands still go all the way, and lets replicas compare what they hold.

A mesh in which nothing happens looks the same as one that is stuck. So the leader commits a canary whenever nothing has
been applied for a while; readiness on every node is "something was applied lately", which is progress, not state. Every
replica applies the canary at the same index, so that is where the table digests are compared.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Protocol

import structlog

from consensus.errors import ConsensusError
from consensus.state.commands import Answer, AnyCommand, Canary
from storage.ids import NodeId

CANARY_PERIOD_S = 5.0
"""Without other commands: 17,000 entries of 100 bytes a day, a sync each; readiness allows for missing two."""

PROPOSAL_DEADLINE_S = 5.0

log = structlog.get_logger()


class Consensus(Protocol):
    async def propose(self, command: AnyCommand, deadline_s: float = ...) -> Answer: ...


class Pulse:
    """Runs on every node and beats while the node leads."""

    def __init__(
        self, node_id: NodeId, consensus: Consensus, is_leading: Callable[[], bool], now_ms: Callable[[], int]
    ) -> None:
        self._node_id = node_id
        self._consensus = consensus
        self._is_leading = is_leading
        self._now_ms = now_ms

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await asyncio.sleep(CANARY_PERIOD_S)
            if self._is_leading():
                await self.beat()

    async def beat(self) -> None:
        """Commits a canary; logged if it does not go through, for then nothing does."""
        canary = Canary(node_id=self._node_id, payload=os.urandom(8), at_ms=self._now_ms())
        try:
            await self._consensus.propose(canary, PROPOSAL_DEADLINE_S)
        except ConsensusError as error:
            log.warning("canary_not_committed", code=error.code)
