"""What waits for a place, and how long others have waited: for the status page. Bounded, whatever is queued."""

import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Final

from consensus.errors import ConsensusError
from consensus.state import queries
from consensus.state.events import BranchAssigned, Numbered
from node.service.ports import GroupPort
from storage.errors import StorageError
from storage.transactions import Transaction

SESSIONS_MAX: Final = 20
"""Sessions that are listed, the next to be served first."""

ENTRIES_MAX: Final = 500
"""Queue entries that are counted by ritual: about a millisecond."""

WAITS_MAX: Final = 512
"""Waits of branches that have started, the latest: 16 KiB."""

SAMPLES_MAX: Final = 4
"""Of one batch of events: each reads a session."""

SAMPLE_S: Final = 0.1
"""Between samples: reading takes a tenth of a millisecond."""


class Waits:
    """How long branches waited for their first attempt, from submission on; a sample on every node."""

    def __init__(self, group: GroupPort) -> None:
        self._group = group
        self._sampled_at = float("-inf")
        self._waited_ms: deque[int] = deque(maxlen=WAITS_MAX)

    def on_events(self, events: Iterable[Numbered]) -> None:
        begun = [
            numbered.event
            for numbered in events
            if isinstance(numbered.event, BranchAssigned) and numbered.event.attempt == 1
        ][-SAMPLES_MAX:]
        now = time.monotonic()  # not the time of the event: a clock that is ahead would end the sampling
        if not begun or now - self._sampled_at < SAMPLE_S:
            return
        self._sampled_at = now
        try:
            with self._group.read() as txn:
                for event in begun:
                    session = queries.get_session(txn, event.session_id)
                    if session is not None and event.branch_index < session.total_branches:
                        self._waited_ms.append(max(0, event.at_ms - session.created_at_ms))
        except (ConsensusError, StorageError):
            return  # a sample: the next batch has more

    def document(self) -> dict[str, Any]:
        ordered = sorted(self._waited_ms)
        told: dict[str, Any] = {"samples": len(ordered)}
        for percent in (50, 90, 99):
            told[f"p{percent}_s"] = ordered[(len(ordered) - 1) * percent // 100] / 1000 if ordered else None
        return told


def document(txn: Transaction, waits: Waits | None, now_ms: int) -> dict[str, Any]:
    sessions: list[dict[str, Any]] = []
    rituals: Counter[str] = Counter()
    oldest_ms: int | None = None
    left = ENTRIES_MAX
    for priority in queries.queued_priorities(txn):
        for place, prefix in enumerate(queries.queued_sessions(txn, priority)):
            if place and len(sessions) >= SESSIONS_MAX and left <= 0:
                break
            rows = queries.queued_of(txn, prefix, prefix, max(left, 1))
            session = queries.get_session(txn, rows[0][1].session_id)
            assert session is not None, "what is queued exists"
            waited_ms = max(0, now_ms - session.created_at_ms)
            if place == 0:  # the oldest of its priority
                oldest_ms = waited_ms if oldest_ms is None else max(oldest_ms, waited_ms)
            if len(sessions) < SESSIONS_MAX:
                waits_s = waited_ms / 1000
                sessions.append(
                    {"id": session.id, "priority": priority, "pending": session.pending, "waits_s": waits_s}
                )
            rituals.update(entry.ritual for _, entry in rows[: max(left, 0)])
            left -= len(rows)
    return {
        "queued": queries.queue_length(txn),
        "oldest_wait_s": None if oldest_ms is None else oldest_ms / 1000,
        "sessions": sessions,
        "rituals": dict(sorted(rituals.items())),
        "rituals_counted": sum(rituals.values()),
        "started": None if waits is None else waits.document(),
    }
