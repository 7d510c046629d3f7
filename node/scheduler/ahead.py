"""How many branches a node is given beyond its slots, so that no slot idles until a result is recorded and the next
branch is assigned. Pure.

Rules:
- only branches that are known to be short, by what their session has completed: they wait about as long as one takes.
- never behind a branch that is not known to be short, and never one that was tried before.
- never while another branch waits for a slot: whoever gets what is free is decided before anything is given ahead.
- what has waited for `executor.limits.WAITING_S_MAX` nevertheless is handed back, so nobody hoards.
"""

from consensus.state.rows import QueueEntry, Session

SHORT_MS = 1_000
"""A session whose branches take no longer, on average."""

LEARNED_MIN = 8
"""Branches of a session that must have completed before its average is believed."""

STOCK_MS = 1_000
"""Work that a slot is given ahead: the turnaround of a mesh of a hundred nodes under full load."""

BRANCHES_MAX = 16
"""Given ahead to a node with fewer slots than that, as many for each slot; to others one for each."""


def average_ms(session: Session | None) -> float | None:
    """Of the branches of a session, if they are known to be short."""
    if session is None or session.completed < LEARNED_MIN:
        return None
    average = session.duration_sum_ms / session.completed
    return average if average <= SHORT_MS else None


def is_apt(entry: QueueEntry) -> bool:
    return entry.role == "branch" and entry.attempt == 1


def allowance(slots: int, average: float) -> int:
    """Branches of this duration (ms) beyond so many slots. The same for each slot: at the end of a queue a node whose
    slots have two each would work as long again as one whose slots have one."""
    for_each = min(int(STOCK_MS / max(average, 1.0)), BRANCHES_MAX // max(slots, 1))
    return slots * max(1, for_each)
