"""Decides, on the leader, which attempts are so slow that a second one begins beside them on another node. Pure.

Rules:
- only in places that nothing else wants, a tenth of all at most, and only when most of a session is done: then it is
  known how long its branches take. What is far beyond that is more likely a slow node than a long branch.
- beside each attempt there is one at most (the state machine sees to that); it goes where any branch of its kind may.
- a session may be submitted without: what its rituals do elsewhere (a payment, a message) is then not done by two.
- how long an attempt has run is how long this leader has seen its lease (`lease_clock`): no other clock counts, and a
  new leader waits, as results may be on their way since the one before it was lost.
- the cost of a look is bounded; the next one goes on behind it.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from consensus.state.commands import Assignment
from consensus.state.rows import Branch, Lease, Session
from consensus.state.sessions import queue_entry
from node.scheduler.fairness import Turns
from node.scheduler.placement import Floor, assignment
from storage.ids import SessionId

DONE_SHARE = 0.75
"""Of a session's branches, before any is called slow (Spark calls it the quantile, and takes the same)."""

SLOW_FACTOR = 2.0
SLOW_MS = 1_000
"""Slow is what has run for so many times the mean of those that are done, and for so much longer. Less than a second is
not worth the second attempt."""

SLOTS_SHARE = 0.1
"""Of the slots of the mesh, at least one, may execute second attempts: what comes next must find places."""

TRIED_MAX = 64
"""Slow attempts for which a place is looked for in one decision."""

READS_MAX = 1_000
"""Sessions and branches read in one decision: 12 ms, if their parameters are small."""


class Ledger(Protocol):
    """What is known of sessions and branches."""

    def session(self, session_id: SessionId) -> Session | None: ...

    def branch(self, session_id: SessionId, branch_index: int) -> Branch | None: ...

    def takes_second(self, branch: Branch) -> bool:
        """Whether the state machine would begin one beside the one under way."""
        ...


def speculate(
    leases: Sequence[Lease],
    floor: Floor,
    ledger: Ledger,
    turns: Turns,
    age_ms: Callable[[Lease], int],
    now_ms: int,
    grace_ms: int,
) -> list[Assignment]:
    """Takes the places on the floor."""
    assignments: list[Assignment] = []
    under_way = len(leases) - len({_place(lease) for lease in leases})
    room = max(1, int(SLOTS_SHARE * floor.slots)) - under_way
    if room <= 0:
        return []
    for tried, (session, branch) in enumerate(_slow(leases, ledger, turns, age_ms), 1):
        entry = queue_entry(branch, session)
        member = floor.choose(entry)
        if member is not None and member.node_id != branch.node_id:
            floor.take(entry, member)
            assignments.append(assignment(entry, member, now_ms + entry.timeout_ms + grace_ms))
        if floor.free <= 0 or tried == TRIED_MAX or len(assignments) == room:
            break
    return assignments


def _slow(
    leases: Sequence[Lease], ledger: Ledger, turns: Turns, age_ms: Callable[[Lease], int]
) -> Iterator[tuple[Session, Branch]]:
    """Goes on behind the last one that was looked at."""
    start = bisect_right(leases, turns.slow, key=_place)
    sessions: dict[SessionId, tuple[Session, int] | None] = {}
    reads = 0
    for lease in (*leases[start:], *leases[:start]):
        if reads >= READS_MAX:
            return
        turns.slow = _place(lease)
        if lease.session_id not in sessions:
            sessions[lease.session_id] = _known(ledger.session(lease.session_id))
            reads += 1
        known = sessions[lease.session_id]
        if known is None or age_ms(lease) <= known[1]:
            continue
        branch = ledger.branch(lease.session_id, lease.branch_index)
        reads += 1
        is_first = branch is not None and branch.role == "branch" and branch.attempt == lease.attempt
        if branch is not None and is_first and ledger.takes_second(branch):
            yield known[0], branch


def _place(lease: Lease) -> tuple[SessionId, int]:
    return lease.session_id, lease.branch_index


def _known(session: Session | None) -> tuple[Session, int] | None:
    """And when a branch of it is slow. What waits comes before what is slow, also within its limits."""
    if session is None or not session.speculation or not session.completed:
        return None
    if session.completed < DONE_SHARE * session.total_branches:
        return None
    if session.pending and (session.concurrency is not None or session.ritual_concurrency):
        return None
    mean_ms = session.duration_sum_ms / session.completed
    return session, int(max(SLOW_FACTOR * mean_ms, mean_ms + SLOW_MS))
