"""Builders and a small driver for tests of the replicated state."""

import uuid
from typing import Any

from consensus.state import apply as machine
from consensus.state import queries
from consensus.state.commands import (
    Answer,
    AnyCommand,
    Applied,
    AssignBranches,
    Assignment,
    BranchSpec,
    CancelSession,
    CompleteBranches,
    DrainMember,
    Offer,
    Outcome,
    Refused,
    RegisterMember,
    Requeue,
    RequeueBranches,
    SetMemberStatus,
    SubmitSession,
)
from consensus.state.encoding import encode_command
from consensus.state.events import AnyEvent, Numbered
from consensus.state.rows import (
    Branch,
    Failure,
    Knowledge,
    MemberStatus,
    PatternCount,
    QueueEntry,
    RitualOffer,
    Session,
)
from consensus.state.tables import (
    PATTERNS,
    QUEUE,
    TABLES,
    decode_pattern,
    decode_queue_entry,
    queue_prefix,
    recomputed_digest,
)
from storage.ids import InstanceId, NodeId, SessionId
from storage.keys import prefix_end
from storage.memory import MemoryStore
from storage.transactions import Transaction

NODES = [NodeId(f"n{number}") for number in range(1, 5)]
A, B, C, D = NODES
FAILED = Failure(code="crashed", message="It crashed.")


def session_id(number: int) -> SessionId:
    return SessionId(str(uuid.UUID(int=number)))


S1, S2, S3 = session_id(1), session_id(2), session_id(3)


def instance(node_id: NodeId, number: int = 1) -> InstanceId:
    return InstanceId(f"{node_id}-{number}")


def register(node_id: NodeId = A, number: int = 1, *, at_ms: int = 1, **changes: Any) -> RegisterMember:
    fields: dict[str, Any] = {
        "node_id": node_id,
        "instance_id": instance(node_id, number),
        "name": f"host-{node_id}",
        "tier": "core",
        "address": "127.0.0.1:7781",
        "http_address": "127.0.0.1:7780",
        "slots": 2,
        "async_slots": 100,
        "rituals": {name: RitualOffer(version="1", kind="async") for name in ("echo", "consolidate")},
        "software": "0.1.0",
        "at_ms": at_ms,
    }
    return RegisterMember(**fields | changes)


def set_status(node_id: NodeId, status: MemberStatus, number: int = 1, *, at_ms: int = 5) -> SetMemberStatus:
    return SetMemberStatus(node_id=node_id, instance_id=instance(node_id, number), status=status, at_ms=at_ms)


def drain(
    node_id: NodeId, number: int = 1, *, is_leaving: bool | None = False, hand_back_at_ms: int | None = None
) -> DrainMember:
    """`is_leaving` None: the end of it."""
    is_draining = is_leaving is not None
    return DrainMember(
        node_id=node_id,
        instance_id=instance(node_id, number),
        is_draining=is_draining,
        is_leaving=bool(is_leaving),
        hand_back_at_ms=hand_back_at_ms if is_draining else None,
        at_ms=5,
    )


def spec(ritual: str = "echo", **changes: Any) -> BranchSpec:
    fields: dict[str, Any] = {
        "ritual": ritual,
        "task": "look",
        "parameters": {"depth": 1},
        "seed": 7,
        "timeout_ms": 1_000,
        "attempts_max": 2,
    }
    return BranchSpec(**fields | changes)


def submit(
    identity: SessionId = S1,
    branches: int = 2,
    *,
    at_ms: int = 10,
    specs: list[BranchSpec] | None = None,
    **changes: Any,
) -> SubmitSession:
    fields: dict[str, Any] = {
        "session_id": identity,
        "thought": "why?",
        "branches": [spec() for _ in range(branches)] if specs is None else specs,
        "consolidation": spec("consolidate"),
        "submitted_by": A,
        "at_ms": at_ms,
    }
    return SubmitSession(**fields | changes)


def assignment(
    identity: SessionId, index: int, attempt: int = 1, node_id: NodeId = A, number: int = 1, deadline_ms: int = 900
) -> Assignment:
    return Assignment(
        session_id=identity,
        branch_index=index,
        attempt=attempt,
        node_id=node_id,
        instance_id=instance(node_id, number),
        deadline_ms=deadline_ms,
    )


def assign(*assignments: Assignment, at_ms: int = 20) -> AssignBranches:
    return AssignBranches(assignments=list(assignments), at_ms=at_ms)


def speculate(*assignments: Assignment, at_ms: int = 30) -> AssignBranches:
    return AssignBranches(assignments=[], at_ms=at_ms, speculative=list(assignments))


def knowledge(**changes: Any) -> Knowledge:
    fields: dict[str, Any] = {
        "patterns": ["Tides", "moon  phase"],
        "connections": [("tides", "moon")],
        "novelty": 0.5,
        "summary": "the moon",
        "result": {"a": 1},
    }
    return Knowledge(**fields | changes)


def outcome(identity: SessionId, index: int, attempt: int = 1, node_id: NodeId = A, **changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "session_id": identity,
        "branch_index": index,
        "attempt": attempt,
        "node_id": node_id,
        "duration_ms": 30,
        "ritual_version": "1",
    }
    if "failure" not in changes and "knowledge" not in changes:
        changes["knowledge"] = knowledge()
    return Outcome(**fields | changes)


def offer(node_id: NodeId = A, number: int = 1, grace_ms: int = 100) -> Offer:
    return Offer(node_id=node_id, instance_id=instance(node_id, number), lease_grace_ms=grace_ms)


def complete(*outcomes: Outcome, at_ms: int = 50, offered: Offer | None = None) -> CompleteBranches:
    return CompleteBranches(outcomes=list(outcomes), at_ms=at_ms, offer=offered)


def requeue(
    identity: SessionId, index: int, attempt: int = 1, *, is_lost: bool = False, at_ms: int = 60
) -> RequeueBranches:
    item = Requeue(
        session_id=identity,
        branch_index=index,
        attempt=attempt,
        failure=Failure(code="lease_expired", message="Too late."),
        is_lost=is_lost,
    )
    return RequeueBranches(requeues=[item], at_ms=at_ms)


def cancel(identity: SessionId = S1, reason: str = "enough", *, at_ms: int = 70) -> CancelSession:
    return CancelSession(session_id=identity, reason=reason, at_ms=at_ms)


class Replica:
    """Applies commands at rising indexes and checks after each what must always hold."""

    def __init__(self, *commands: AnyCommand) -> None:
        self.store = MemoryStore(TABLES)
        self.index = 0
        self.log: list[bytes] = []
        self.events: list[AnyEvent] = []
        """Of the last command."""
        for command in commands:
            self.accept(command)

    def apply(self, command: AnyCommand) -> Answer:
        return self.apply_bytes(encode_command(command))

    def apply_bytes(self, data: bytes) -> Answer:
        self.index += 1
        self.log.append(data)
        with self.store.write() as txn:
            before = machine.digest(txn)
            answer, numbered = machine.apply(txn, self.index, data)
            assert machine.digest(txn) == recomputed_digest(txn)
            if isinstance(answer, Refused):
                assert machine.digest(txn) == before
                assert not numbered
            check_invariants(txn)
        assert answer.index == self.index
        assert numbered == [Numbered(index=self.index, position=n, event=e.event) for n, e in enumerate(numbered)]
        self.events = [item.event for item in numbered]
        return answer

    def accept(self, command: AnyCommand, *, changed: int | None = None, skipped: int = 0) -> Applied:
        answer = self.apply(command)
        assert isinstance(answer, Applied), answer
        if changed is not None:
            assert (answer.changed, answer.skipped) == (changed, skipped), answer
        return answer

    def refuse(self, command: AnyCommand) -> str:
        answer = self.apply(command)
        assert isinstance(answer, Refused), answer
        return answer.code

    @property
    def digest(self) -> bytes:
        with self.store.read() as txn:
            return machine.digest(txn)

    def read(self, query: Any, *arguments: Any, **options: Any) -> Any:
        with self.store.read() as txn:
            return query(txn, *arguments, **options)

    def session(self, identity: SessionId = S1) -> Session:
        found: Session | None = self.read(queries.get_session, identity)
        assert found is not None
        return found

    def branch(self, index: int, identity: SessionId = S1) -> Branch:
        found: Branch | None = self.read(queries.get_branch, identity, index)
        assert found is not None
        return found

    def queued(self) -> list[tuple[SessionId, int]]:
        return [(entry.session_id, entry.branch_index) for entry in self.read(queue_head)]

    def leased(self) -> list[tuple[SessionId, int]]:
        return [(lease.session_id, lease.branch_index) for lease in self.read(queries.leases)]


def queue_head(txn: Transaction) -> list[QueueEntry]:
    """By priority, then by submission, then by index."""
    firsts = [queue_prefix(priority, 0)[:1] for priority in queries.queued_priorities(txn)]
    return [decode_queue_entry(value) for first in firsts for _, value in txn.scan(QUEUE, first, prefix_end(first))]


def known_patterns(txn: Transaction) -> list[PatternCount]:
    """The most frequent ones, then by text."""
    rows = [decode_pattern(value) for _, value in txn.scan(PATTERNS)]
    return sorted(rows, key=lambda row: (-row.count, row.pattern))


def check_invariants(txn: Transaction) -> None:
    """What must hold after every command, whatever it was."""
    queued = {(entry.session_id, entry.branch_index): entry for entry in queue_head(txn)}
    leased = {(lease.session_id, lease.branch_index, lease.attempt): lease for lease in queries.leases(txn)}
    expected_queue, expected_leases, open_sessions = set(), set(), 0
    for session in queries.list_sessions(txn, limit=1_000_000):
        is_open = session.status in ("pending", "processing")
        open_sessions += is_open
        branches = queries.list_branches(txn, session.id, limit=1_000_000)
        assert [branch.branch_index for branch in branches] == list(range(session.total_branches))
        for status in ("pending", "processing", "completed", "failed", "cancelled"):
            assert getattr(session, status) == sum(branch.status == status for branch in branches)
        consolidation = queries.get_branch(txn, session.id, session.total_branches)
        assert consolidation is not None
        assert consolidation.role == "consolidation"
        is_ready = session.pending + session.processing == 0 and session.completed > 0
        for branch in [*branches, consolidation]:
            place = (session.id, branch.branch_index)
            if not is_open:
                assert branch.status not in ("pending", "processing")
            elif branch.status == "processing":
                expected_leases.add((*place, branch.attempt))
                lease = leased[*place, branch.attempt]
                assert (lease.node_id, lease.deadline_ms) == (branch.node_id, branch.deadline_ms)
                if branch.speculative is not None:
                    beside = branch.speculative
                    assert beside.node_id != branch.node_id
                    assert beside.attempt > branch.attempt
                    expected_leases.add((*place, beside.attempt))
                    lease = leased[*place, beside.attempt]
                    assert (lease.node_id, lease.deadline_ms) == (beside.node_id, beside.deadline_ms)
            elif branch.status == "pending" and (branch.role == "branch" or is_ready):
                expected_queue.add(place)
                assert queued[place].attempt == branch.attempt + 1
            if branch.status != "processing":
                assert branch.speculative is None
            result = queries.get_result(txn, session.id, branch.branch_index)
            assert (result is not None) == (branch.status == "completed" and branch.role == "branch")
            attempts = queries.list_attempts(txn, session.id, branch.branch_index)
            assert [attempt.attempt for attempt in attempts] == list(range(1, len(attempts) + 1))
            assert branch.attempt <= len(attempts) <= branch.attempt + 1
            under_way = [attempt.attempt for attempt in attempts if attempt.status == "processing"]
            assert len(under_way) == (0 if branch.status != "processing" else 1 + (branch.speculative is not None))
            assert [attempt.status for attempt in attempts].count("completed") == (branch.status == "completed")
        assert (queries.get_insight(txn, session.id) is not None) == (session.status == "completed")
    assert set(queued) == expected_queue
    assert set(leased) == expected_leases
    assert queries.open_sessions(txn) == open_sessions
