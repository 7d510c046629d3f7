"""Decides, on the leader, what should happen next to members, leases and the queue.

Pure: a view of the replicated state and of the links goes in, commands come out. Everything is derived from replicated
state, so a new leader carries on without a hand-over; a decision that has been overtaken is skipped when it is applied.

Rules:
- who is alive is decided in `judgement`, whose turn it is in `fairness`, and where it goes in `placement`.
- a lease that has run out (`lease_clock`) is requeued as lost: no branch waits for ever, whatever a node does. It is
  not booked as the ritual's failure, because a node that works enforces the timeout itself and says so first.
- an entry that fits nowhere now does not hold up those behind it; a node gets no more than its free slots, and a little
  stock of what is short: `ahead`.
- slots that stay free may go to second attempts of what is slow: `speculation`.
"""

from collections.abc import Sequence

from consensus.state.commands import (
    AnyCommand,
    AssignBranches,
    Assignment,
    Requeue,
    RequeueBranches,
)
from consensus.state.rows import Failure, Lease, QueueEntry
from node.scheduler.draining import departures, hand_back
from node.scheduler.fairness import Queue, Served, Turns, serve
from node.scheduler.judgement import judge_members
from node.scheduler.placement import Floor, View, assignment
from node.scheduler.speculation import Ledger, speculate

LEASE_GRACE_MS = 7_000
"""Added to the timeout that the executing node enforces itself, from when it starts (`executor.limits.WAITING_S_MAX`
later at most): its own, better explained verdict comes first."""

BATCH_MAX = 512
"""Branches in one command; at most 80 KiB, far below the command cap."""

LOOK_MIN = 64
"""Queue entries of one priority looked at beyond the number of free places: some fit nowhere."""


def decide(
    view: View, queue: Queue, turns: Turns, now_ms: int, ledger: Ledger | None = None
) -> tuple[list[AnyCommand], Served]:
    """The commands to propose now, in order; none when there is nothing to do. With a `ledger` also what is slow."""
    verdicts = judge_members(view.members, view.evidence, now_ms)
    commands: list[AnyCommand] = [*verdicts, *departures(view.members, view.leases, view.node_id, now_ms)]
    requeues = overdue_leases(view.overdue) or hand_back(view.members, view.leases, now_ms)[:BATCH_MAX]
    if requeues:
        commands.append(RequeueBranches(requeues=requeues, at_ms=now_ms))
    gone = {verdict.node_id for verdict in verdicts if verdict.status != "alive"}
    floor = Floor(view, now_ms, gone)
    assignments, served = place(floor, queue, turns, now_ms)
    speculative: list[Assignment] = []
    if ledger is not None and floor.free > 0 and not served.has_more:
        overdue = set(view.overdue)
        held = [lease for lease in view.leases if lease not in overdue and lease.node_id not in gone]
        speculative = speculate(held, floor, ledger, turns, view.age_ms, now_ms, LEASE_GRACE_MS)
    if assignments or speculative:
        commands.append(AssignBranches(assignments=assignments, at_ms=now_ms, speculative=speculative))
    return commands, served


def overdue_leases(overdue: Sequence[Lease]) -> list[Requeue]:
    """Of leases that have run out: the node has neither answered nor been given up."""
    failure = Failure(
        code="lease_expired",
        message="the node said nothing of this attempt until its lease ran out; it goes on elsewhere",
    )
    return [
        Requeue(
            session_id=lease.session_id,
            branch_index=lease.branch_index,
            attempt=lease.attempt,
            failure=failure,
            is_lost=True,
        )
        for lease in overdue[:BATCH_MAX]
    ]


def place(floor: Floor, queue: Queue, turns: Turns, now_ms: int) -> tuple[list[Assignment], Served]:
    """Fills the free places."""
    assignments: list[Assignment] = []

    def offer(entry: QueueEntry) -> bool | None:
        if floor.free <= 0 or len(assignments) == BATCH_MAX:
            return None
        member = floor.choose(entry)
        if member is None:
            return False
        floor.take(entry, member)
        assignments.append(assignment(entry, member, now_ms + entry.timeout_ms + LEASE_GRACE_MS))
        return True

    if floor.free <= 0:
        return [], Served(0, has_more=False)
    served = serve(queue, turns, floor.running.copy(), offer, min(floor.free, BATCH_MAX) + LOOK_MIN)
    return assignments, served
