"""Carries out the scheduler's decisions while this node leads.

One decision at a time: look at the replicated state, decide, wait until the commands are applied, look again. So no
decision rests on a state that lacks the one before it, and what arrives meanwhile makes the next batch larger.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import structlog

from consensus.errors import ConsensusError
from consensus.state import queries, versions
from consensus.state.commands import Answer, AnyCommand, AssignBranches, Refused
from consensus.state.rows import Branch, Lease, QueueEntry, Session
from consensus.state.versions import SPECULATION_VERSION, SUSPECT_VERSION
from consensus.steps import ReplicaStatus
from node.scheduler import ahead
from node.scheduler.fairness import Turns
from node.scheduler.judgement import Outlook
from node.scheduler.lease_clock import LeaseClock
from node.scheduler.placement import View
from node.scheduler.policy import LEASE_GRACE_MS, decide
from storage.errors import StorageError
from storage.ids import NodeId, SessionId
from storage.transactions import Transaction

REVIEW_S = 0.5
"""Leases and silence are reviewed this often even if nothing happens; small against `judgement.CLOSED_MS`."""

STUCK_S = 2.0
"""A follower that acknowledges nothing for so long, while there is something, gets no work. Shorter than the canary
period, so one review after a canary finds it; long against any pause of a healthy replica."""

PAUSE_SHARE = 4.0
"""Pause between decisions that find no place for anything, by the time that one takes: looking through a long queue of
what fits nowhere takes a fifth of the loop, which has links and HTTP to serve."""

REST_S_MAX = 0.01
"""Of the pause of the same share after any decision: in a busy mesh each decides more, in a quiet one it is a
millisecond."""

PROPOSAL_DEADLINE_S = 5.0
"""A decision that is not committed by then is thrown away and made anew from the state."""

log = structlog.get_logger()


class Consensus(Protocol):
    """What the dispatcher needs of `consensus.group.Group`."""

    def read(self) -> AbstractContextManager[Transaction]: ...

    def status(self) -> ReplicaStatus: ...

    async def propose(self, command: AnyCommand, deadline_s: float = ...) -> Answer: ...


class StoredQueue:
    """The queue as of a snapshot; see `fairness.Queue`."""

    def __init__(self, txn: Transaction) -> None:
        self._txn = txn

    def priorities(self) -> list[int]:
        return queries.queued_priorities(self._txn)

    def sessions(self, priority: int, start: bytes) -> Iterator[bytes]:
        return queries.queued_sessions(self._txn, priority, start)

    def entries(self, session: bytes, start: bytes, limit: int) -> list[tuple[bytes, QueueEntry]]:
        return queries.queued_of(self._txn, session, start, limit)


class StoredLedger:
    """Sessions and branches as of a snapshot; see `speculation.Ledger`."""

    def __init__(self, txn: Transaction) -> None:
        self._txn = txn

    def session(self, session_id: SessionId) -> Session | None:
        return queries.get_session(self._txn, session_id)

    def branch(self, session_id: SessionId, branch_index: int) -> Branch | None:
        return queries.get_branch(self._txn, session_id, branch_index)

    def takes_second(self, branch: Branch) -> bool:
        return queries.takes_second_attempt(self._txn, branch)


class Dispatcher:
    """`wake()` whenever something may have changed; `set_leading()` when leadership comes or goes."""

    def __init__(
        self,
        node_id: NodeId,
        consensus: Consensus,
        outlook: Callable[[], Outlook],
        now_ms: Callable[[], int],
    ) -> None:
        self._node_id = node_id
        self._consensus = consensus
        self._outlook = outlook
        self._now_ms = now_ms
        self._leading_since: float | None = None  # monotonic: a step of the wall clock must not age anybody
        self._progress: dict[NodeId, tuple[int, float]] = {}
        """Of each follower: what it has acknowledged, and since when no more."""
        self._turns = Turns()
        self._looked = 0
        """Queue entries that fitted nowhere, since something was assigned."""
        self._pause_s = REVIEW_S
        """Until the next decision, if nothing happens."""
        self._lease_clock = LeaseClock()
        self._clocked_at = float("-inf")
        """When it last looked for leases that have run out (monotonic)."""
        self._slow_at = float("-inf")
        """When it last looked for what is slow (monotonic)."""
        self._woken = asyncio.Event()

    def wake(self) -> None:
        self._woken.set()

    def set_leading(self, is_leading: bool) -> None:
        if is_leading and self._leading_since is None:
            self._leading_since = time.monotonic()
            self._progress.clear()
            self._turns = Turns()
            self._lease_clock = LeaseClock()
            self._looked = 0
        elif not is_leading:
            self._leading_since = None
        self.wake()

    async def run(self) -> None:
        """Runs until cancelled. While another node leads it sleeps."""
        while True:
            try:
                async with asyncio.timeout(None if self._leading_since is None else self._pause_s):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            if self._leading_since is None:
                continue
            began, self._pause_s = time.monotonic(), REVIEW_S
            try:
                commands, is_done = self._decide(began - self._leading_since)
                if not is_done:
                    self._pause_s = min(REVIEW_S, PAUSE_SHARE * (time.monotonic() - began))
                rest_s = min(REST_S_MAX, PAUSE_SHARE * (time.monotonic() - began))
                await self._carry_out(commands)
                await asyncio.sleep(rest_s)
            except (ConsensusError, StorageError) as error:
                # This replica is not to be asked, or the store is busy: the next review sees whether that has changed.
                log.warning("decision_postponed", code=error.code, reason=str(error))

    def _decide(self, leading_s: float) -> tuple[list[AnyCommand], bool]:
        """And whether there is nothing more to be found until something happens."""
        now_ms, now = self._now_ms(), time.monotonic()
        outlook = self._outlook()
        with self._consensus.read() as txn:
            members = queries.members(txn)
            known = versions.common(members)
            leases = queries.leases(txn)
            view = View(
                node_id=self._node_id,
                leader_for_ms=int(leading_s * 1000),
                members=members,
                links=outlook.links,
                testimonies=outlook.testimonies,
                is_doubting=outlook.is_doubting,
                knows_suspects=known >= SUSPECT_VERSION,
                leases=leases,
                overdue=self._overdue(txn, leases, now),
                stuck=self._stuck(now),
                average_ms=lambda session_id: ahead.average_ms(queries.get_session(txn, session_id)),
                age_ms=lambda lease: self._lease_clock.age_ms(lease, now),
            )
            # with a review, not with every decision: it reads sessions and branches
            is_due = now - self._slow_at >= REVIEW_S
            ledger = StoredLedger(txn) if is_due and known >= SPECULATION_VERSION else None
            commands, served = decide(view, StoredQueue(txn), self._turns, now_ms, ledger)
            queue_length = queries.queue_length(txn)
        if ledger is not None and not served.has_more:
            self._slow_at = now
        self._looked += served.looked
        has_placed = any(isinstance(command, AssignBranches) for command in commands)
        if served.has_more and not has_placed and self._looked < queue_length:
            return commands, False  # nothing here fits; others may, further back
        self._looked = 0  # all of it was seen, or places were filled and the next look begins anew
        return commands, True

    def stuck(self) -> set[NodeId]:
        """Members whose replica does not keep up; known on the leader only."""
        return self._stuck(time.monotonic()) if self._leading_since is not None else set()

    def _overdue(self, txn: Transaction, leases: Sequence[Lease], now: float) -> list[Lease]:
        """With a review, not with every decision."""
        if now - self._clocked_at < REVIEW_S:
            return []
        self._clocked_at = now

        def lasts_ms(lease: Lease) -> int:
            branch = queries.get_branch(txn, lease.session_id, lease.branch_index)
            assert branch is not None, "what is leased exists"
            return branch.timeout_ms + LEASE_GRACE_MS

        return self._lease_clock.run_out(leases, now, lasts_ms)

    def _stuck(self, now: float) -> set[NodeId]:
        """Also those that say that their tables are not to be trusted."""
        status = self._consensus.status()
        stuck = set(status.withdrawn)
        for peer, match_index in status.match_index.items():
            held, since = self._progress.get(peer, (-1, now))
            if match_index != held or match_index >= status.commit_index:
                self._progress[peer] = (match_index, now)
            elif now - since >= STUCK_S:
                stuck.add(peer)
        return stuck

    async def _carry_out(self, commands: list[AnyCommand]) -> None:
        for command in commands:
            answer = await self._consensus.propose(command, PROPOSAL_DEADLINE_S)
            if isinstance(answer, Refused):
                log.error("decision_refused", decision=type(command).__name__, code=answer.code, reason=answer.message)
