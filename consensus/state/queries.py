"""Reading the replicated state: plain functions over a snapshot. They change nothing and decide nothing.

Lists come in pages: pass the last item's key as `after` to go on. A list filtered by status reads past what it leaves
out, so its cost is that of the rows it passes; callers bound it with short limits. Rows are as of the snapshot.
"""

from collections.abc import Iterable, Iterator

import msgspec

from consensus.state import attempts
from consensus.state.events import Numbered
from consensus.state.patterns import normal_form, pattern_key
from consensus.state.rows import (
    Attempt,
    Branch,
    BranchStatus,
    Insight,
    Knowledge,
    LastCanary,
    Lease,
    Member,
    QueueEntry,
    Session,
    SessionStatus,
)
from consensus.state.tables import (
    ATTEMPTS,
    BRANCH_IDS,
    BRANCHES,
    CANARY_KEY,
    COUNTERS_KEY,
    EVENTS,
    INSIGHTS,
    INSIGHTS_BY_NUMBER,
    LEASES,
    MEMBERS,
    PATTERNS,
    QUEUE,
    RESULTS,
    SESSIONS,
    SESSIONS_BY_INDEX,
    STATE_DIGEST,
    STATE_META,
    VERSION_KEY,
    decode_attempt,
    decode_branch,
    decode_canary,
    decode_counters,
    decode_events,
    decode_insight,
    decode_knowledge,
    decode_lease,
    decode_member,
    decode_pattern,
    decode_queue_entry,
    decode_session,
    queue_prefix,
    queue_priority,
    u32,
    uuid_key,
)
from storage.ids import BranchId, NodeId, SessionId
from storage.keys import from_u64, prefix_end, u64
from storage.transactions import Transaction


def get_session(txn: Transaction, session_id: SessionId | str) -> Session | None:
    key = uuid_key(session_id)
    stored = None if key is None else txn.get(SESSIONS, key)
    return None if stored is None else decode_session(stored)


def list_sessions(
    txn: Transaction, *, after: int | None = None, limit: int = 100, status: SessionStatus | None = None
) -> list[Session]:
    """Newest first; `after` is the `submit_index` of the last one seen."""
    found: list[Session] = []
    stop = None if after is None else u64(max(after, 0))
    for _, key in txn.scan(SESSIONS_BY_INDEX, b"", stop, reverse=True):
        if len(found) >= limit:
            break
        stored = txn.get(SESSIONS, key)
        assert stored is not None, "the index names sessions that exist"
        session = decode_session(stored)
        if status is None or session.status == status:
            found.append(session)
    return found


def open_sessions(txn: Transaction) -> int:
    stored = txn.get(STATE_META, COUNTERS_KEY)
    return 0 if stored is None else decode_counters(stored).open_sessions


def get_branch(txn: Transaction, session_id: SessionId | str, branch_index: int) -> Branch | None:
    """The consolidation too, at index `total_branches`."""
    key = _branch_key(session_id, branch_index)
    stored = None if key is None else txn.get(BRANCHES, key)
    return None if stored is None else decode_branch(stored)


def find_branch(txn: Transaction, branch_id: BranchId | str) -> Branch | None:
    id_key = uuid_key(branch_id)
    key = None if id_key is None else txn.get(BRANCH_IDS, id_key)
    stored = None if key is None else txn.get(BRANCHES, key)
    return None if stored is None else decode_branch(stored)


def list_branches(
    txn: Transaction,
    session_id: SessionId | str,
    *,
    after: int | None = None,
    limit: int = 100,
    status: BranchStatus | None = None,
) -> list[Branch]:
    """By index, without the consolidation; `after` is the index of the last one seen."""
    session_key = uuid_key(session_id)
    if session_key is None:
        return []
    start = session_key if after is None else session_key + u32(min(max(after + 1, 0), 2**32 - 1))
    found: list[Branch] = []
    for _, stored in txn.scan(BRANCHES, start, prefix_end(session_key)):
        if len(found) >= limit:
            break
        branch = decode_branch(stored)
        if branch.role == "branch" and (status is None or branch.status == status):
            found.append(branch)
    return found


def branches_by_index(txn: Transaction, session_id: SessionId | str) -> dict[int, Branch]:
    """All of a session, with the consolidation; none of one that is not known."""
    key = uuid_key(session_id)
    rows = [] if key is None else txn.scan(BRANCHES, key, prefix_end(key))
    return {branch.branch_index: branch for branch in (decode_branch(value) for _, value in rows)}


def get_result(txn: Transaction, session_id: SessionId | str, branch_index: int) -> Knowledge | None:
    """Of a completed branch. That of a consolidation is the insight."""
    key = _branch_key(session_id, branch_index)
    stored = None if key is None else txn.get(RESULTS, key)
    return None if stored is None else decode_knowledge(stored)


def branches_with_results(
    txn: Transaction, session_id: SessionId | str, result_bytes_max: int
) -> Iterator[tuple[Branch, Knowledge | None, bool]]:
    """All branches by index, without the consolidation, each with its knowledge if it has completed: what a
    consolidation is made of. Once `result_bytes_max` encoded bytes are given, knowledge comes without its `result`,
    and the last value is True."""
    session_key = uuid_key(session_id)
    if session_key is None:
        return
    bytes_left = result_bytes_max
    for key, stored in txn.scan(BRANCHES, session_key, prefix_end(session_key)):
        branch = decode_branch(stored)
        if branch.role == "branch":
            result = txn.get(RESULTS, key) if branch.status == "completed" else None
            bytes_left -= 0 if result is None else len(result)
            is_trimmed = bytes_left < 0
            decode = _decode_without_result if is_trimmed else decode_knowledge
            yield branch, None if result is None else decode(result), is_trimmed


def list_attempts(txn: Transaction, session_id: SessionId | str, branch_index: int) -> list[Attempt]:
    """All attempts of a branch, first to last; those under way, and the one that has completed, are read from its
    branch."""
    key = _branch_key(session_id, branch_index)
    stored = None if key is None else txn.get(BRANCHES, key)
    if key is None or stored is None:
        return []
    found = [decode_attempt(value) for _, value in txn.scan(ATTEMPTS, key, prefix_end(key))]
    branch = decode_branch(stored)
    if branch.status == "processing" or branch.status == "completed":
        assert branch.node_id is not None, "an attempt is somewhere"
        assert branch.instance_id is not None, "an attempt is somewhere"
        found.append(
            Attempt(
                session_id=branch.session_id,
                branch_index=branch.branch_index,
                attempt=branch.attempt,
                node_id=branch.node_id,
                instance_id=branch.instance_id,
                status=branch.status,
                started_at_ms=branch.started_at_ms or 0,
                ended_at_ms=branch.completed_at_ms,
                duration_ms=branch.duration_ms,
            )
        )
    if branch.speculative is not None:
        found.append(
            Attempt(
                session_id=branch.session_id,
                branch_index=branch.branch_index,
                attempt=branch.speculative.attempt,
                node_id=branch.speculative.node_id,
                instance_id=branch.speculative.instance_id,
                started_at_ms=branch.speculative.started_at_ms,
            )
        )
    return sorted(found, key=lambda attempt: attempt.attempt)


def takes_second_attempt(txn: Transaction, branch: Branch) -> bool:
    """Whether the state machine would begin one beside the one under way, as far as the branch is concerned."""
    key = _branch_key(branch.session_id, branch.branch_index)
    return key is not None and attempts.takes_second(txn, key, branch)


def get_insight(txn: Transaction, session_id: SessionId | str) -> Insight | None:
    key = uuid_key(session_id)
    stored = None if key is None else txn.get(INSIGHTS, key)
    return None if stored is None else decode_insight(stored)


def list_insights(txn: Transaction, *, after: int | None = None, limit: int = 100) -> list[Insight]:
    """Newest first; `after` is the `number` of the last one seen."""
    found: list[Insight] = []
    stop = None if after is None else u64(max(after, 0))
    for _, key in txn.scan(INSIGHTS_BY_NUMBER, b"", stop, reverse=True, limit=limit):
        stored = txn.get(INSIGHTS, key)
        assert stored is not None, "the index names insights that exist"
        found.append(decode_insight(stored))
    return found


def version_used(txn: Transaction) -> int:
    """The newest command version that the rows are the work of."""
    return (txn.get(STATE_DIGEST, VERSION_KEY) or b"\x01")[0]


def members(txn: Transaction) -> list[Member]:
    """By node id; also those that are dead or have left."""
    return [decode_member(value) for _, value in txn.scan(MEMBERS)]


def get_member(txn: Transaction, node_id: NodeId | str) -> Member | None:
    stored = txn.get(MEMBERS, node_id.encode()) if node_id else None
    return None if stored is None else decode_member(stored)


def queued_priorities(txn: Transaction) -> list[int]:
    """Those of which something is queued, highest first. One seek each."""
    found: list[int] = []
    start: bytes | None = b""
    while start is not None and (row := next(txn.scan(QUEUE, start, limit=1), None)) is not None:
        found.append(queue_priority(row[0]))
        start = prefix_end(row[0][:1])
    return sorted(found, reverse=True)


def queued_sessions(txn: Transaction, priority: int, start: bytes = b"") -> Iterator[bytes]:
    """The queue prefixes of sessions of this priority that have something queued, in order of submission, from that
    prefix on. One seek each."""
    first = queue_prefix(priority, 0)[:1]
    stop = prefix_end(first)
    at: bytes | None = max(start, first)
    while at is not None and (row := next(txn.scan(QUEUE, at, stop, limit=1), None)) is not None:
        prefix = row[0][:8]
        yield prefix
        at = prefix_end(prefix)


def queued_of(txn: Transaction, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, QueueEntry]]:
    """What the session with this prefix has queued, with keys, from that key on; requeued ones keep their place."""
    rows = txn.scan(QUEUE, max(start, prefix), prefix_end(prefix), limit=limit)
    return [(key, decode_queue_entry(value)) for key, value in rows]


def queue_entry(txn: Transaction, session: Session, branch_index: int) -> QueueEntry | None:
    stored = txn.get(QUEUE, queue_prefix(session.priority, session.submit_index) + u32(branch_index))
    return None if stored is None else decode_queue_entry(stored)


def queue_length(txn: Transaction) -> int:
    return txn.count(QUEUE)


def leases(txn: Transaction) -> list[Lease]:
    """By session, index and attempt; as many as the mesh has slots at most."""
    return list(_leases(txn))


def events_since(txn: Transaction, index: int, position: int, limit: int) -> list[Numbered]:
    """Those after the event numbered `index.position`, oldest first; (0, -1) is before all. If `index` is lower than
    `oldest_event_index`, events may be missing and the watcher must read the state anew."""
    found: list[Numbered] = []
    for key, value in txn.scan(EVENTS, u64(max(index, 0))):
        at = from_u64(key)
        for place, event in enumerate(decode_events(value)):
            if len(found) >= limit:
                return found
            if (at, place) > (index, position):
                found.append(Numbered(index=at, position=place, event=event))
    return found


def oldest_event_index(txn: Transaction) -> int | None:
    """None when there are no events."""
    oldest = txn.first(EVENTS)
    return None if oldest is None else from_u64(oldest[0])


def last_canary(txn: Transaction) -> LastCanary | None:
    stored = txn.get(STATE_DIGEST, CANARY_KEY)
    return None if stored is None else decode_canary(stored)


def pattern_counts(txn: Transaction, patterns: Iterable[str]) -> dict[str, int]:
    """How many results and insights had each of these patterns, by the text as given; 0 for one never seen (or not
    remembered any more, see `limits.PATTERNS_MAX`)."""
    counts: dict[str, int] = {}
    for pattern in patterns:
        stored = txn.get(PATTERNS, pattern_key(normal_form(pattern)))
        counts[pattern] = 0 if stored is None else decode_pattern(stored).count
    return counts


class _Head(Knowledge, frozen=True, kw_only=True):
    """Knowledge whose result stays encoded."""

    result: msgspec.Raw = msgspec.Raw(b"\xc0")


_decode_head = msgspec.msgpack.Decoder(_Head).decode


def _decode_without_result(stored: bytes) -> Knowledge:
    head = _decode_head(stored)
    return Knowledge(
        patterns=head.patterns,
        connections=head.connections,
        novelty=head.novelty,
        score=head.score,
        summary=head.summary,
    )


def _branch_key(session_id: SessionId | str, branch_index: int) -> bytes | None:
    session_key = uuid_key(session_id)
    return session_key + u32(branch_index) if session_key is not None and 0 <= branch_index < 2**32 else None


def _leases(txn: Transaction) -> Iterator[Lease]:
    for _, value in txn.scan(LEASES):
        yield decode_lease(value)
