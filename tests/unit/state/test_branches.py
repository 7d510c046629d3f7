"""Assignment, outcomes, retries and losses, and late results."""

from typing import Any

import msgspec
import pytest

from consensus.state import attempts as attempts_module
from consensus.state import queries
from consensus.state.commands import Applied
from consensus.state.events import BranchAssigned, BranchCompleted, BranchFailed, BranchRequeued
from consensus.state.rows import Attempt, Failure
from consensus.state.tables import encode
from storage.codec import digest
from tests.unit.state.model import (
    FAILED,
    S1,
    S2,
    A,
    B,
    C,
    Replica,
    assign,
    assignment,
    complete,
    knowledge,
    outcome,
    queue_head,
    register,
    requeue,
    set_status,
    spec,
    submit,
)


def assigned(**changes: Any) -> Replica:
    """A session of two branches, the first of them on node A."""
    return Replica(register(A), register(B), submit(**changes), assign(assignment(S1, 0)))


def attempts(replica: Replica, index: int = 0) -> list[Attempt]:
    found: list[Attempt] = replica.read(queries.list_attempts, S1, index)
    return found


def test_an_assignment_takes_the_branch_from_the_queue_and_leases_it() -> None:
    replica = assigned()
    assert [type(event) for event in replica.events] == [BranchAssigned]
    branch = replica.branch(0)
    assert (branch.status, branch.attempt, branch.node_id, branch.deadline_ms) == ("processing", 1, A, 900)
    assert (branch.started_at_ms, branch.rev) == (20, 4)
    assert (replica.queued(), replica.leased()) == ([(S1, 1)], [(S1, 0)])
    assert [attempt.status for attempt in attempts(replica)] == ["processing"]


@pytest.mark.parametrize(
    "item",
    [
        assignment(S1, 0),  # repeated
        assignment(S1, 0, 2),  # not pending
        assignment(S1, 1, 2),  # wrong attempt
        assignment(S1, 1, 0),
        assignment(S1, 1, node_id=C),  # unknown node
        assignment(S1, 1, number=2),  # another instance
        assignment(S1, 1, node_id=B, deadline_ms=-1),
        assignment(S1, 2),  # the consolidation, before its turn
        assignment(S1, 3),
        assignment(S1, -1),
        assignment(S1, 2**40),
        assignment(S2, 0),  # unknown session
    ],
)
def test_assignments_that_do_not_fit_are_skipped(item: Any) -> None:
    replica = assigned()
    before = replica.digest
    replica.accept(assign(item), changed=0, skipped=1)
    assert replica.digest == before


def test_a_node_must_be_alive_and_offer_the_ritual() -> None:
    replica = Replica(register(A), register(B, rituals={}), submit())
    replica.accept(assign(assignment(S1, 0, node_id=B)), changed=0, skipped=1)
    replica.accept(set_status(A, "dead"))
    replica.accept(assign(assignment(S1, 0)), changed=0, skipped=1)


def test_a_batch_is_judged_item_by_item() -> None:
    replica = Replica(register(A), submit(branches=3), submit(S2))
    items = [assignment(S1, 2), assignment(S1, 2), assignment(S2, 1), assignment(S2, 9), assignment(S1, 0)]
    replica.accept(assign(*items), changed=3, skipped=2)
    assert replica.queued() == [(S1, 1), (S2, 0)]
    assert replica.session(S2).processing == 1


def test_a_result_is_recorded_once() -> None:
    replica = assigned()
    command = complete(outcome(S1, 0), at_ms=50)
    replica.accept(command, changed=1)
    assert [type(event) for event in replica.events] == [BranchCompleted]
    branch = replica.branch(0)
    assert (branch.status, branch.duration_ms, branch.completed_at_ms) == ("completed", 30, 50)
    assert (branch.patterns_found, branch.connections_found, branch.novelty_score) == (2, 1, 0.5)
    assert replica.read(queries.get_result, S1, 0) == knowledge()
    session = replica.session()
    assert (session.total_patterns, session.total_connections, session.novelty_sum) == (2, 1, 0.5)
    before = replica.digest
    replica.accept(command, changed=0, skipped=1)
    replica.accept(complete(outcome(S1, 0, knowledge=knowledge(summary="other"))), changed=0, skipped=1)
    assert replica.digest == before
    assert [attempt.status for attempt in attempts(replica)] == ["completed"]


@pytest.mark.parametrize(
    "item",
    [
        outcome(S1, 0, 2),
        outcome(S1, 0, 0),
        outcome(S1, 0, -1),
        outcome(S1, 0, node_id=B),
        outcome(S1, 1),  # pending
        outcome(S1, 2),
        outcome(S1, 99),
        outcome(S1, -1),
        outcome(S2, 0),
        outcome(S1, 0, failure=FAILED, knowledge=knowledge()),
        outcome(S1, 0, failure=None, knowledge=None),
    ],
)
def test_outcomes_that_do_not_fit_are_skipped(item: Any) -> None:
    replica = assigned()
    before = replica.digest
    replica.accept(complete(item), changed=0, skipped=1)
    assert replica.digest == before


def test_numbers_from_outside_are_brought_into_range() -> None:
    replica = assigned()
    replica.accept(assign(assignment(S1, 1)))
    extreme = outcome(S1, 0, duration_ms=2**63, knowledge=knowledge(novelty=1e300))
    replica.accept(complete(extreme, outcome(S1, 1, duration_ms=-5, knowledge=knowledge(novelty=-1.0))), changed=2)
    assert (replica.branch(0).duration_ms, replica.branch(0).novelty_score) == (2**38, 1.0)
    assert (replica.branch(1).duration_ms, replica.branch(1).novelty_score) == (0, 0.0)


def test_a_failure_is_retried_elsewhere_and_then_final() -> None:
    replica = assigned()
    replica.accept(complete(outcome(S1, 0, failure=FAILED)), changed=1)
    assert [type(event) for event in replica.events] == [BranchRequeued]
    head = replica.read(queue_head)[0]
    assert (head.branch_index, head.attempt, head.avoid) == (0, 2, A)  # its old place, before branch 1
    replica.accept(assign(assignment(S1, 0, 2, B)), changed=1)
    replica.accept(complete(outcome(S1, 0, 2, B, failure=FAILED)), changed=1)
    assert [type(event) for event in replica.events] == [BranchFailed]
    branch = replica.branch(0)
    assert (branch.status, branch.failures, branch.failure) == ("failed", 2, FAILED)
    assert [(attempt.status, attempt.node_id) for attempt in attempts(replica)] == [("failed", A), ("failed", B)]
    assert replica.session().failed == 1


@pytest.mark.parametrize("by", ["outcome", "requeue"])
def test_losses_are_counted_apart_up_to_a_limit(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "LOSSES_MAX", 3)
    replica = assigned()
    for attempt in (1, 2, 3):
        if by == "outcome":
            replica.accept(complete(outcome(S1, 0, attempt, failure=FAILED, is_lost=True)), changed=1)
        else:
            replica.accept(requeue(S1, 0, attempt, is_lost=True), changed=1)
        replica.accept(assign(assignment(S1, 0, attempt + 1)))
    branch = replica.branch(0)
    assert (branch.status, branch.failures, branch.losses) == ("failed", 0, 3)
    assert branch.failure is not None
    assert branch.failure.code == "lost_too_often"


def test_an_expired_lease_counts_as_a_failure_and_moved_on_ones_are_skipped() -> None:
    replica = assigned()
    replica.accept(requeue(S1, 0), changed=1)
    assert (replica.branch(0).failures, replica.branch(0).status) == (1, "pending")
    for item in (requeue(S1, 0), requeue(S1, 0, 2), requeue(S1, 1), requeue(S1, 9), requeue(S2, 0)):
        replica.accept(item, changed=0, skipped=1)


def test_a_late_result_is_refused_and_its_digest_kept() -> None:
    replica = assigned()
    replica.accept(requeue(S1, 0))
    late = complete(outcome(S1, 0))
    replica.accept(late, changed=0, skipped=1)
    assert replica.branch(0).status == "pending"
    evidence = attempts(replica)[0]
    assert evidence.status == "failed"
    assert evidence.late_result_digest is not None
    before = replica.digest
    replica.accept(late, changed=0, skipped=1)
    replica.accept(complete(outcome(S1, 0, knowledge=knowledge(summary="other"))), changed=0, skipped=1)
    assert replica.digest == before
    replica.accept(complete(outcome(S1, 0, failure=FAILED)), changed=0, skipped=1)
    assert replica.digest == before


def test_a_late_result_of_another_node_is_no_evidence() -> None:
    replica = assigned()
    replica.accept(requeue(S1, 0))
    before = replica.digest
    replica.accept(complete(outcome(S1, 0, node_id=B)), changed=0, skipped=1)
    assert replica.digest == before


def test_a_result_that_is_too_large_is_a_failure() -> None:
    replica = assigned()
    large = complete(outcome(S1, 0, knowledge=knowledge(result="x" * 65_536)))
    replica.accept(large, changed=1)
    evidence = attempts(replica)[0]
    assert evidence.failure is not None
    assert (evidence.failure.code, evidence.duration_ms) == ("result_too_large", 30)
    before = replica.digest
    replica.accept(large, changed=0, skipped=1)
    assert replica.digest == before


def test_a_consolidation_may_return_more() -> None:
    replica = Replica(register(A), submit(branches=1), assign(assignment(S1, 0)), complete(outcome(S1, 0)))
    replica.accept(assign(assignment(S1, 1)), changed=1)
    replica.accept(complete(outcome(S1, 1, knowledge=knowledge(result="x" * 262_144))), changed=1)
    assert replica.branch(1).status == "pending"
    replica.accept(assign(assignment(S1, 1, 2)), changed=1)
    replica.accept(complete(outcome(S1, 1, 2, knowledge=knowledge(result="x" * 200_000))), changed=1)
    assert replica.session().status == "completed"


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "bad",
    [
        {"novelty": float("nan")},
        {"score": float("inf")},
        {"result": [float("nan")]},
        {"result": {"x": b"binary"}},
        {"result": {"x": {1: 2}}},
        {"result": 2**63},
        {"result": _nested(33)},
    ],
)
def test_a_result_that_is_no_json_is_a_failure(bad: dict[str, Any]) -> None:
    replica = assigned()
    # Our own encoder would not write all of these; a peer may.
    data = b"\x01" + msgspec.msgpack.encode(complete(outcome(S1, 0, knowledge=knowledge(**bad))))
    assert replica.apply_bytes(data) == Applied(index=replica.index, changed=1)
    evidence = attempts(replica)[0]
    assert evidence.failure is not None
    assert evidence.failure.code == "result_invalid"
    before = replica.digest
    assert replica.apply_bytes(data) == Applied(index=replica.index, skipped=1)
    assert replica.digest == before


def test_results_nested_up_to_the_limit_are_accepted() -> None:
    replica = assigned()
    replica.accept(complete(outcome(S1, 0, knowledge=knowledge(result=_nested(32)))), changed=1)
    assert replica.branch(0).status == "completed"


def test_long_failures_are_cut() -> None:
    replica = assigned()
    replica.accept(complete(outcome(S1, 0, failure=Failure(code="c" * 999, message="m" * 9_999))), changed=1)
    failure = attempts(replica)[0].failure
    assert failure is not None
    assert (len(failure.code), len(failure.message)) == (64, 2_000)


def test_the_last_outcome_of_a_batch_settles_the_session() -> None:
    replica = Replica(register(A), submit(branches=2))
    replica.accept(assign(assignment(S1, 0), assignment(S1, 1)))
    late_to_the_feast = outcome(S1, 2)  # the consolidation was not even assigned
    replica.accept(complete(outcome(S1, 1), outcome(S1, 0), late_to_the_feast), changed=2, skipped=1)
    assert replica.queued() == [(S1, 2)]


def test_evidence_is_the_digest_of_the_encoded_knowledge() -> None:
    replica = assigned()
    replica.accept(requeue(S1, 0))
    replica.accept(complete(outcome(S1, 0)))
    assert attempts(replica)[0].late_result_digest == digest(encode(knowledge()))


def test_branches_that_were_submitted_differently_are_kept_apart() -> None:
    replica = Replica(register(A))
    replica.accept(submit(S1, 1), changed=1)
    replica.accept(submit(S2, 1, consolidation=spec("echo")), changed=1)
    assert replica.branch(1, S2).ritual == "echo"
    assert replica.branch(0, S1).id != replica.branch(0, S2).id
    assert replica.read(queries.find_branch, replica.branch(0, S2).id) == replica.branch(0, S2)
