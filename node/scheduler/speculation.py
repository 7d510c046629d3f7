"""Decides, on the leader, which attempts are so slow that a second one begins beside them on another node. Pure.

Rules:
- only in places that nothing else wants, and only when most of a session is done: then it is known how long its
  branches take. What is far beyond that is more likely a slow node than a long branch.
- beside each attempt there is one at most (the state machine sees to that); it goes where any branch of its kind may.
- a session may be submitted without: what its rituals do elsewhere (a payment, a message) is then not done by two.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

from consensus.state.commands import Assignment
from consensus.state.rows import Branch, Lease, Session
from consensus.state.sessions import queue_entry
from node.scheduler.placement import Floor, assignment
from storage.ids import SessionId

DONE_SHARE = 0.75
"""Of a session's branches, before any is called slow (Spark calls it the quantile, and takes the same)."""

SLOW_FACTOR = 2.0
SLOW_MS = 1_000
"""Slow is what has run for so many times the mean of those that are done, and for so much longer. Less than a second is
not worth the second attempt."""

SPECULATIVE_MAX = 64
"""In one decision."""


class Ledger(Protocol):
    """What is known of sessions and branches."""

    def session(self, session_id: SessionId) -> Session | None: ...

    def branch(self, session_id: SessionId, branch_index: int) -> Branch | None: ...


def speculate(leases: Sequence[Lease], floor: Floor, ledger: Ledger, now_ms: int, grace_ms: int) -> list[Assignment]:
    """Takes the places on the floor."""
    assignments: list[Assignment] = []
    for session, branch in _slow(leases, ledger, now_ms):
        if floor.free <= 0 or len(assignments) == SPECULATIVE_MAX:
            break
        entry = queue_entry(branch, session)
        member = floor.choose(entry)
        if member is None or member.node_id == branch.node_id:
            continue
        floor.take(entry, member)
        assignments.append(assignment(entry, member, now_ms + entry.timeout_ms + grace_ms))
    return assignments


def _slow(leases: Sequence[Lease], ledger: Ledger, now_ms: int) -> Iterator[tuple[Session, Branch]]:
    under_way = Counter((lease.session_id, lease.branch_index) for lease in leases)
    sessions: dict[SessionId, tuple[Session, int] | None] = {}
    for lease in leases:
        if lease.session_id not in sessions:
            sessions[lease.session_id] = _known(ledger.session(lease.session_id))
        known = sessions[lease.session_id]
        if known is None or under_way[lease.session_id, lease.branch_index] > 1:
            continue
        session, slow_ms = known
        branch = ledger.branch(lease.session_id, lease.branch_index)
        if branch is None or branch.role != "branch" or branch.started_at_ms is None:
            continue
        if branch.attempt == lease.attempt and now_ms - branch.started_at_ms > slow_ms:
            yield session, branch


def _known(session: Session | None) -> tuple[Session, int] | None:
    """With the time after which a branch of it is slow."""
    if session is None or not session.speculation or not session.completed:
        return None
    if session.completed < DONE_SHARE * session.total_branches:
        return None
    mean_ms = session.duration_sum_ms / session.completed
    return session, int(max(SLOW_FACTOR * mean_ms, mean_ms + SLOW_MS))
