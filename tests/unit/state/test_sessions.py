"""Submission, consolidation, the end of a session, cancellation."""

from typing import Any

import pytest
from msgspec.structs import replace

from consensus.state import queries, sessions
from consensus.state.events import (
    BranchCancelled,
    BranchFailed,
    SessionCancelled,
    SessionCompleted,
    SessionFailed,
    SessionSubmitted,
)
from consensus.state.rows import Insight
from storage.ids import SessionId
from tests.unit.state.model import (
    FAILED,
    S1,
    S2,
    S3,
    A,
    B,
    Replica,
    assign,
    assignment,
    cancel,
    complete,
    knowledge,
    outcome,
    register,
    spec,
    submit,
)


def consolidating(*, failed: int = 0, branches: int = 2) -> Replica:
    """All branches have ended, the first `failed` of them without a result."""
    replica = Replica(register(A), submit(branches=branches))
    for index in range(branches):
        replica.accept(assign(assignment(S1, index)), changed=1)
        if index < failed:
            replica.accept(complete(outcome(S1, index, failure=FAILED)), changed=1)
            replica.accept(assign(assignment(S1, index, 2)), changed=1)
            replica.accept(complete(outcome(S1, index, 2, failure=FAILED)), changed=1)
        else:
            replica.accept(complete(outcome(S1, index)), changed=1)
    return replica


def test_a_submission_queues_every_branch_but_the_consolidation() -> None:
    replica = Replica(register(A))
    replica.accept(submit(), changed=1)
    assert replica.events == [SessionSubmitted(at_ms=10, session_id=S1, total_branches=2)]
    assert replica.queued() == [(S1, 0), (S1, 1)]
    assert replica.session().status == "pending"
    assert replica.branch(2).role == "consolidation"


def test_the_same_submission_again_is_answered_and_another_body_refused() -> None:
    replica = Replica(submit())
    before = replica.digest
    replica.accept(submit(at_ms=99, submitted_by=B), changed=0)
    assert replica.digest == before
    for other in (submit(branches=3), submit(thought="who?"), submit(branches=2, consolidation=spec("other"))):
        assert replica.refuse(other) == "session_exists"


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("malformed", {"session_id": "no uuid"}),
        ("malformed", {"session_id": "00000000-0000-0000-0000-00000000000A"}),
        ("malformed", {"main_session_id": "no uuid"}),
        ("malformed", {"branches": []}),
        ("malformed", {"branches": [spec("no such name!")]}),
        ("malformed", {"branches": [spec(timeout_ms=0)]}),
        ("malformed", {"branches": [spec(attempts_max=0)]}),
        ("malformed", {"branches": [spec(seed=-1)]}),
        ("malformed", {"branches": [spec(parameters={"x": float("nan")})]}),
        ("malformed", {"branches": [spec(parameters={"x": b"binary"})]}),
        ("malformed", {"consolidation": spec("")}),
        ("malformed", {"submitted_by": ""}),
        ("malformed", {"at_ms": -1}),
        ("malformed", {"at_ms": 2**53}),
        ("too_large", {"thought": "x" * 70_000}),
        ("too_large", {"branches": [spec(task="x" * 17_000)]}),
        ("too_large", {"branches": [spec(parameters={"x": "y" * 70_000})]}),
        ("too_large", {"branches": [spec(parameters={}, task="")] * 10_001}),
    ],
)
def test_submissions_that_are_refused(code: str, changes: dict[str, Any]) -> None:
    assert Replica().refuse(replace(submit(), **changes)) == code


def test_so_many_sessions_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "OPEN_SESSIONS_MAX", 2)
    replica = Replica(submit(S1), submit(S2))
    assert replica.refuse(submit(S3)) == "too_many_sessions"
    replica.accept(submit(S1), changed=0)
    replica.accept(cancel(S1))
    replica.accept(submit(S3), changed=1)


def test_the_first_assignment_starts_the_session() -> None:
    replica = Replica(register(A), submit())
    replica.accept(assign(assignment(S1, 1), at_ms=33))
    assert (replica.session().status, replica.session().started_at_ms) == ("processing", 33)
    replica.accept(assign(assignment(S1, 0), at_ms=44))
    assert replica.session().started_at_ms == 33


@pytest.mark.parametrize("failed", [0, 1])
def test_the_consolidation_is_queued_when_all_have_ended_and_some_completed(failed: int) -> None:
    replica = consolidating(failed=failed)
    assert replica.queued() == [(S1, 2)]
    assert replica.session().status == "processing"


def test_the_consolidation_cannot_be_assigned_before_its_turn() -> None:
    replica = Replica(register(A), submit())
    replica.accept(assign(assignment(S1, 2)), changed=0, skipped=1)


def test_the_insight_completes_the_session() -> None:
    replica = consolidating(failed=1, branches=3)
    replica.accept(assign(assignment(S1, 3)), changed=1)
    result = {
        "synthesis": "tides follow the moon",
        "emergent_patterns": ["Tides"],
        "next_steps": ["measure"],
        "ranking": [{"branch_index": 1, "task": "look", "score": 0.5}],
        "confidence": 0.9,
    }
    replica.accept(complete(outcome(S1, 3, knowledge=knowledge(result=result)), at_ms=140), changed=1)
    assert isinstance(replica.events[-1], SessionCompleted)
    session = replica.session()
    assert (session.status, session.completed_at_ms) == ("completed", 140)
    assert session.parallel_efficiency == 60 / (140 - 20)
    insight: Insight = replica.read(queries.get_insight, S1)
    assert insight.synthesis == "tides follow the moon"
    assert insight.emergent_patterns == ["Tides"]
    assert insight.next_steps == ["measure"]
    assert insight.ranking == [{"branch_index": 1, "task": "look", "score": 0.5}]
    assert insight.details == {"confidence": 0.9}
    assert (insight.total_patterns, insight.total_connections, insight.average_novelty) == (4, 2, 0.5)
    assert (insight.branches_used, insight.branches_failed, insight.number) == (2, 1, 1)
    assert replica.read(queries.list_insights) == [insight]


@pytest.mark.parametrize(
    ("result", "details"),
    [
        (None, None),
        ("text", "text"),
        ({"synthesis": 5, "next_steps": "no list"}, {"synthesis": 5, "next_steps": "no list"}),
        ({"ranking": [1]}, {"ranking": [1]}),
    ],
)
def test_an_insight_with_gaps_is_filled_from_the_knowledge(result: object, details: object) -> None:
    replica = consolidating()
    replica.accept(assign(assignment(S1, 2)))
    replica.accept(complete(outcome(S1, 2, knowledge=knowledge(result=result))), changed=1)
    insight: Insight = replica.read(queries.get_insight, S1)
    assert (insight.synthesis, insight.emergent_patterns) == ("the moon", ["Tides", "moon  phase"])
    assert (insight.next_steps, insight.ranking, insight.details) == ([], [], details)


def test_a_session_whose_branches_all_failed_fails_without_consolidation() -> None:
    replica = consolidating(failed=2)
    assert [type(event) for event in replica.events] == [BranchFailed, SessionFailed]
    failure = replica.session().failure
    assert failure is not None
    assert failure.code == "all_branches_failed"
    assert replica.queued() == []
    assert replica.branch(2).status == "cancelled"


def test_a_consolidation_that_fails_fails_the_session() -> None:
    replica = consolidating()
    for attempt in (1, 2):
        replica.accept(assign(assignment(S1, 2, attempt)), changed=1)
        replica.accept(complete(outcome(S1, 2, attempt, failure=FAILED)), changed=1)
    assert [type(event) for event in replica.events] == [BranchFailed, SessionFailed]
    failure = replica.session().failure
    assert failure is not None
    assert failure.code == "consolidation_failed"
    assert "It crashed." in failure.message


def test_cancelling_ends_what_is_not_terminal() -> None:
    replica = Replica(register(A), submit(branches=3), assign(assignment(S1, 0), assignment(S1, 1)))
    replica.accept(complete(outcome(S1, 0)))
    replica.accept(cancel(), changed=1)
    assert replica.events == [
        BranchCancelled(at_ms=70, session_id=S1, branch_index=1, attempt=1, node_id=A),
        SessionCancelled(at_ms=70, session_id=S1, reason="enough"),
    ]
    assert [replica.branch(index).status for index in range(4)] == ["completed", "cancelled", "cancelled", "cancelled"]
    assert (replica.session().completed, replica.session().cancelled) == (1, 2)
    assert replica.read(queries.list_attempts, S1, 1)[0].status == "cancelled"
    before = replica.digest
    replica.accept(cancel(), changed=0)
    replica.accept(cancel(reason="other"), changed=0)
    assert replica.digest == before


def test_cancelling_an_unknown_session_is_refused() -> None:
    assert Replica().refuse(cancel()) == "unknown_session"
    assert Replica().refuse(cancel(SessionId(S1[:-1]))) == "unknown_session"


def test_a_large_session_is_cancelled_with_few_events() -> None:
    replica = Replica(register(A), submit(branches=2_000), assign(assignment(S1, 0)))
    replica.accept(cancel(), changed=1)
    assert len(replica.events) == 2
    assert replica.session().cancelled == 2_000
