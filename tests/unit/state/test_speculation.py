"""Two attempts of a branch at the same time: the first valid result counts, and nothing is given or recorded twice."""

import pytest

from consensus.state import attempts, queries
from consensus.state.encoding import encode_command
from consensus.state.events import AttemptEnded, BranchAssigned, BranchCancelled, BranchCompleted, BranchRequeued
from consensus.state.rows import AttemptStatus, Running
from tests.unit.state.model import (
    FAILED,
    S1,
    A,
    B,
    C,
    Replica,
    assign,
    assignment,
    cancel,
    complete,
    drain,
    instance,
    knowledge,
    outcome,
    queue_head,
    register,
    requeue,
    set_status,
    spec,
    speculate,
    submit,
)

BESIDE = speculate(assignment(S1, 0, 2, B, deadline_ms=1_200))


def replica(*, attempts_max: int = 2) -> Replica:
    """One branch on A, its second attempt on B."""
    begun = Replica(
        register(A),
        register(B),
        register(C),
        submit(S1, specs=[spec(attempts_max=attempts_max), spec()]),
        assign(assignment(S1, 0)),
    )
    begun.accept(BESIDE, changed=1)
    return begun


def tried(of: Replica) -> list[tuple[int, str, AttemptStatus]]:
    return [(row.attempt, row.node_id, row.status) for row in of.read(queries.list_attempts, S1, 0)]


def ended(attempt: int, node: str, status: AttemptStatus, at_ms: int) -> AttemptEnded:
    return AttemptEnded(at_ms=at_ms, session_id=S1, branch_index=0, attempt=attempt, node_id=node, status=status)  # type: ignore[arg-type]


def test_a_second_attempt_runs_beside_the_first() -> None:
    both = replica()
    branch = both.branch(0)
    assert (branch.status, branch.attempt, branch.node_id) == ("processing", 1, A)
    assert branch.speculative == Running(
        attempt=2, node_id=B, instance_id=instance(B), deadline_ms=1_200, started_at_ms=30
    )
    assert [(row.attempt, row.node_id) for row in both.read(queries.leases)] == [(1, A), (2, B)]
    assert tried(both) == [(1, A, "processing"), (2, B, "processing")]
    assert both.session().processing == 1, "branches are counted, not attempts"
    assert isinstance(both.events[0], BranchAssigned)


def test_the_speculative_result_is_recorded_and_the_first_attempt_is_told_to_stop() -> None:
    both = replica()
    both.accept(complete(outcome(S1, 0, 2, B)), changed=1)
    assert both.events[0] == ended(1, A, "superseded", 50)
    assert isinstance(both.events[1], BranchCompleted)
    branch = both.branch(0)
    assert (branch.status, branch.attempt, branch.node_id, branch.started_at_ms) == ("completed", 2, B, 30)
    assert tried(both) == [(1, A, "superseded"), (2, B, "completed")]
    assert both.read(queries.leases) == []
    assert both.session().completed == 1


def test_the_first_attempt_may_win_too() -> None:
    both = replica()
    both.accept(complete(outcome(S1, 0)), changed=1)
    assert both.events[0] == ended(2, B, "superseded", 50)
    assert tried(both) == [(1, A, "completed"), (2, B, "superseded")]
    assert both.branch(0).speculative is None


@pytest.mark.parametrize(("winner", "loser"), [((1, A), (2, B)), ((2, B), (1, A))])
def test_the_result_that_comes_second_is_evidence_only(winner: tuple[int, str], loser: tuple[int, str]) -> None:
    both = replica()
    both.accept(complete(outcome(S1, 0, *winner)))  # type: ignore[arg-type]
    before = both.read(queries.get_result, S1, 0)
    other = outcome(S1, 0, *loser, knowledge=knowledge(summary="another"))  # type: ignore[arg-type]
    both.accept(complete(other), changed=0, skipped=1)
    assert both.read(queries.get_result, S1, 0) == before
    assert both.session().completed == 1
    late = both.read(queries.list_attempts, S1, 0)[loser[0] - 1]
    assert late.late_result_digest is not None


def test_two_results_in_one_command_are_one_result() -> None:
    both = replica()
    both.accept(complete(outcome(S1, 0, 2, B), outcome(S1, 0)), changed=1, skipped=1)
    assert both.branch(0).attempt == 2


def test_one_that_fails_leaves_the_branch_to_the_other() -> None:
    both = replica(attempts_max=1)
    both.accept(complete(outcome(S1, 0, failure=FAILED)), changed=1)
    assert both.events == [ended(1, A, "failed", 50)]
    branch = both.branch(0)
    assert (branch.status, branch.attempt, branch.node_id, branch.deadline_ms) == ("processing", 2, B, 1_200)
    assert (branch.failures, branch.speculative) == (1, None)
    assert [(row.attempt, row.node_id) for row in both.read(queries.leases)] == [(2, B)]
    both.accept(complete(outcome(S1, 0, 2, B)), changed=1)
    assert both.branch(0).status == "completed"


def test_the_branch_fails_when_both_have_failed_too_often() -> None:
    both = replica(attempts_max=1)
    for number, node in ((2, B), (1, A)):
        both.accept(complete(outcome(S1, 0, number, node, failure=FAILED)))
    branch = both.branch(0)
    assert (branch.status, branch.failures) == ("failed", 2)


def test_what_is_left_after_too_many_failures_is_the_last_chance() -> None:
    """Else each would be followed by another one beside it, and the branch would never be given up."""
    both = replica(attempts_max=1)
    assert not both.read(queries.takes_second_attempt, both.branch(0)), "there is one"
    both.accept(complete(outcome(S1, 0, failure=FAILED)))
    assert not both.read(queries.takes_second_attempt, both.branch(0))
    both.accept(speculate(assignment(S1, 0, 3, C)), changed=0, skipped=1)


def test_what_is_left_after_too_many_losses_is_the_last_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "LOSSES_MAX", 1)
    both = replica()
    both.accept(requeue(S1, 0, 1, is_lost=True))
    both.accept(speculate(assignment(S1, 0, 3, C)), changed=0, skipped=1)
    both.accept(requeue(S1, 0, 2, is_lost=True))
    failure = both.branch(0).failure
    assert failure is not None
    assert failure.code == "lost_too_often"


def test_the_loss_of_the_other_does_not_make_good_for_the_last_failure() -> None:
    both = replica(attempts_max=1)
    both.accept(complete(outcome(S1, 0, failure=FAILED)))
    both.accept(requeue(S1, 0, 2, is_lost=True))
    branch = both.branch(0)
    assert (branch.status, branch.failure, branch.failures, branch.losses) == ("failed", FAILED, 1, 1)


def test_a_number_is_never_given_twice() -> None:
    both = replica()
    both.accept(requeue(S1, 0, 2, is_lost=True))
    assert both.branch(0).attempt == 1
    both.accept(requeue(S1, 0, 1, is_lost=True))
    assert isinstance(both.events[0], BranchRequeued)
    assert both.events[0].attempt == 1
    [entry] = [entry for entry in both.read(queue_head) if entry.branch_index == 0]
    assert (entry.attempt, entry.avoid) == (3, A)
    both.accept(assign(assignment(S1, 0, 2, C)), changed=0, skipped=1)
    both.accept(assign(assignment(S1, 0, 3, C)), changed=1)
    assert both.branch(0).losses == 2


def test_beside_each_attempt_there_is_one_at_most() -> None:
    both = replica()
    both.accept(speculate(assignment(S1, 0, 3, C)), changed=0, skipped=1)
    both.accept(BESIDE, changed=0, skipped=1)
    both.accept(requeue(S1, 0, 2, is_lost=True))
    for number in (2, 3):
        both.accept(speculate(assignment(S1, 0, number, C)), changed=0, skipped=1)


def test_the_one_that_is_left_may_have_another_beside_it() -> None:
    both = replica()
    both.accept(requeue(S1, 0, 1, is_lost=True))
    both.accept(speculate(assignment(S1, 0, 3, C)), changed=1)
    both.accept(complete(outcome(S1, 0, 3, C)), changed=1)
    assert tried(both) == [(1, A, "lost"), (2, B, "superseded"), (3, C, "completed")]


@pytest.mark.parametrize(
    "beside",
    [
        assignment(S1, 0, 2, A),  # where it is already
        assignment(S1, 0, 3, B),  # not its number
        assignment(S1, 1, 1, B),  # not processing
        assignment(S1, 0, 2, B, number=9),  # another instance
        assignment(S1, 0, 2, B, deadline_ms=-1),
        assignment(S1, 9, 2, B),
    ],
)
def test_what_does_not_fit_is_skipped(beside: object) -> None:
    one = Replica(register(A), register(B), submit(S1), assign(assignment(S1, 0)))
    one.accept(speculate(beside), changed=0, skipped=1)  # type: ignore[arg-type]
    assert one.branch(0).speculative is None


def test_nobody_who_drains_or_lacks_the_ritual_gets_one() -> None:
    one = Replica(register(A), register(B), register(C, rituals={}), submit(S1), assign(assignment(S1, 0)))
    one.accept(drain(B))
    for node in (B, C):
        one.accept(speculate(assignment(S1, 0, 2, node)), changed=0, skipped=1)


@pytest.mark.parametrize("gone", [A, B])
def test_a_node_that_dies_takes_only_its_own_attempt_along(gone: str) -> None:
    both = replica()
    both.accept(set_status(gone, "dead"), changed=2)  # type: ignore[arg-type]
    stays = B if gone == A else A
    assert [row.node_id for row in both.read(queries.leases)] == [stays]
    assert (both.branch(0).status, both.branch(0).node_id) == ("processing", stays)


def test_both_are_stopped_when_the_session_is_cancelled() -> None:
    both = replica()
    both.accept(cancel())
    stopped = {(e.attempt, e.node_id) for e in both.events if isinstance(e, AttemptEnded | BranchCancelled)}
    assert stopped == {(1, A), (2, B)}
    assert tried(both) == [(1, A, "cancelled"), (2, B, "cancelled")]
    assert both.read(queries.leases) == []


def test_only_those_who_know_it_are_told() -> None:
    assert encode_command(BESIDE)[0] == 2
    assert encode_command(assign(assignment(S1, 0)))[0] == 1
    assert encode_command(submit(S1, speculation=False))[0] == 2


def test_a_session_without_speculation_is_another_body() -> None:
    one = Replica(submit(S1))
    assert one.refuse(submit(S1, speculation=False)) == "session_exists"
    assert one.session().speculation
