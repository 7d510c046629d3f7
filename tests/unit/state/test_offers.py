"""A free place that comes with the command which makes a branch ready."""

from consensus.state import queries
from consensus.state.events import BranchAssigned
from tests.unit.state.model import (
    S1,
    S2,
    A,
    B,
    Replica,
    assign,
    assignment,
    complete,
    offer,
    outcome,
    queue_head,
    register,
    set_status,
    spec,
    submit,
)


def assigned(replica: Replica) -> list[tuple[str, int, str]]:
    """By the last command."""
    return [(e.session_id, e.branch_index, e.node_id) for e in replica.events if isinstance(e, BranchAssigned)]


def test_the_first_branch_takes_the_place_offered_with_the_submission() -> None:
    replica = Replica(register(A), register(B))
    replica.accept(submit(S1, 3, offer=offer(B, grace_ms=100), at_ms=10))
    assert assigned(replica) == [(S1, 0, B)]
    with replica.store.read() as txn:
        (lease,) = queries.leases(txn)
        session = queries.get_session(txn, S1)
    assert lease.deadline_ms == 10 + spec().timeout_ms + 100
    assert session is not None
    assert (session.status, session.pending, session.processing) == ("processing", 2, 1)


def test_nobody_who_waits_is_overtaken() -> None:
    replica = Replica(register(A), submit(S1, 1))
    replica.accept(submit(S2, 1, offer=offer(A)))
    assert assigned(replica) == []


def test_an_offer_that_does_not_fit_is_passed_over() -> None:
    for preparation in ((), (register(A, number=2),), (register(A), set_status(A, "dead"))):
        replica = Replica(*preparation)
        replica.accept(submit(S1, 1, offer=offer(A, number=1)))
        assert assigned(replica) == []
        with replica.store.read() as txn:
            assert queries.queue_length(txn) == 1


def test_a_repeated_submission_assigns_nothing() -> None:
    replica = Replica(register(A), submit(S1, 2))
    replica.accept(submit(S1, 2, offer=offer(A)))
    assert assigned(replica) == []


def test_the_consolidation_goes_to_whoever_reports_the_last_branch() -> None:
    replica = Replica(register(A), submit(S1, 2), assign(assignment(S1, 0), assignment(S1, 1)))
    replica.accept(complete(outcome(S1, 0), offered=offer(A)))
    assert assigned(replica) == []
    replica.accept(complete(outcome(S1, 1), offered=offer(A)))
    assert assigned(replica) == [(S1, 2, A)]
    replica.accept(complete(outcome(S1, 2), offered=offer(A)))
    with replica.store.read() as txn:
        assert queries.get_insight(txn, S1) is not None


def test_one_offer_is_one_place() -> None:
    replica = Replica(register(A), submit(S1, 1), submit(S2, 1), assign(assignment(S1, 0), assignment(S2, 0)))
    replica.accept(complete(outcome(S1, 0), outcome(S2, 0), offered=offer(A)))
    assert assigned(replica) == [(S1, 1, A)]
    with replica.store.read() as txn:
        assert [entry.session_id for entry in queue_head(txn)] == [S2]
