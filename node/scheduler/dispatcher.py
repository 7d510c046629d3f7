"""Carries out the scheduler's decisions while this node leads.

One decision at a time: look at the replicated state, decide, wait until the commands are applied, look again. So no
decision rests on a state that lacks the one before it, and what arrives meanwhile makes the next batch larger.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import structlog

from consensus.errors import ConsensusError
from consensus.state import queries
from consensus.state.commands import Answer, AnyCommand, Refused
from node.scheduler.policy import LinkView, View, decide
from storage.ids import NodeId
from storage.transactions import Transaction

QUEUE_WINDOW = 1_024
"""Queue entries looked at in one decision: twice the largest batch, so that entries that fit nowhere (their ritual's
slots are full) rarely hide those that would; reading them takes about two milliseconds."""

REVIEW_S = 0.5
"""Leases and silence are reviewed this often even if nothing happens; small against `policy.CLOSED_MS`."""

PROPOSAL_DEADLINE_S = 5.0
"""A decision that is not committed by then is thrown away and made anew from the state."""

log = structlog.get_logger()


class Consensus(Protocol):
    """What the dispatcher needs of `consensus.group.Group`."""

    def read(self) -> AbstractContextManager[Transaction]: ...

    async def propose(self, command: AnyCommand, deadline_s: float = ...) -> Answer: ...


class Dispatcher:
    """`wake()` whenever something may have changed; `set_leading()` when leadership comes or goes."""

    def __init__(
        self,
        node_id: NodeId,
        consensus: Consensus,
        links: Callable[[], Mapping[NodeId, LinkView]],
        now_ms: Callable[[], int],
    ) -> None:
        self._node_id = node_id
        self._consensus = consensus
        self._links = links
        self._now_ms = now_ms
        self._leading_since_ms: int | None = None
        self._woken = asyncio.Event()

    def wake(self) -> None:
        self._woken.set()

    def set_leading(self, is_leading: bool) -> None:
        if is_leading and self._leading_since_ms is None:
            self._leading_since_ms = self._now_ms()
        elif not is_leading:
            self._leading_since_ms = None
        self.wake()

    async def run(self) -> None:
        """Runs until cancelled. While another node leads it sleeps."""
        while True:
            try:
                async with asyncio.timeout(None if self._leading_since_ms is None else REVIEW_S):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            if self._leading_since_ms is not None:
                await self._carry_out(self._decide(self._leading_since_ms))

    def _decide(self, leading_since_ms: int) -> list[AnyCommand]:
        now_ms = self._now_ms()
        with self._consensus.read() as txn:
            view = View(
                node_id=self._node_id,
                leader_for_ms=now_ms - leading_since_ms,
                members=queries.members(txn),
                links=self._links(),
                queue=queries.queue_head(txn, QUEUE_WINDOW),
                leases=queries.leases(txn),
            )
        return decide(view, now_ms)

    async def _carry_out(self, commands: list[AnyCommand]) -> None:
        for command in commands:
            try:
                answer = await self._consensus.propose(command, PROPOSAL_DEADLINE_S)
            except ConsensusError as error:
                # Leadership is gone or the majority is: the state will say what is left to do.
                log.warning("decision_not_committed", decision=type(command).__name__, code=error.code)
                return
            if isinstance(answer, Refused):
                log.error("decision_refused", decision=type(command).__name__, code=answer.code, reason=answer.message)
