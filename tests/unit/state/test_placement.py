"""Priorities, placements, limits and rests in the replicated state, and what older versions make of them."""

import msgspec

from consensus.state import queries, tables
from consensus.state.encoding import body_digest, encode_command
from consensus.state.rows import Condition, Placement
from consensus.state.versions import version_of
from storage.codec import digest
from storage.keys import u64
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
    offer,
    outcome,
    queue_head,
    register,
    spec,
    submit,
)

GPU = Placement(require=[Condition(label="gpu", operator="exists")])


def test_the_queue_is_served_by_priority_then_by_submission() -> None:
    replica = Replica(
        register(A),
        submit(S1, 1),
        submit(S2, 1, priority=-3),
        submit(S3, 1, priority=10),
    )
    assert replica.queued() == [(S3, 0), (S1, 0), (S2, 0)]
    assert replica.read(queries.queued_priorities) == [10, 0, -3]
    replica.accept(cancel(S3))
    assert replica.queued() == [(S1, 0), (S2, 0)]


def test_each_session_with_work_is_found_once_however_much_it_has() -> None:
    replica = Replica(submit(S1, 50), submit(S2, 1, priority=1), submit(S3, 2))
    prefixes = list(replica.read(lambda txn: list(queries.queued_sessions(txn, 0))))
    assert prefixes == [u64(1), u64(3)]
    assert replica.read(lambda txn: list(queries.queued_sessions(txn, 0, u64(2)))) == [u64(3)]
    assert replica.read(lambda txn: list(queries.queued_sessions(txn, 1))) == [tables.queue_prefix(1, 2)]
    assert replica.read(lambda txn: list(queries.queued_sessions(txn, -1))) == []
    some = replica.read(queries.queued_of, u64(1), u64(1) + tables.u32(10), 5)
    assert [entry.branch_index for _, entry in some] == [10, 11, 12, 13, 14]


def test_keys_of_sessions_without_a_priority_are_those_of_the_first_version() -> None:
    assert tables.queue_prefix(0, 77) == u64(77)
    for priority in range(-10, 11):
        assert tables.queue_priority(tables.queue_prefix(priority, 2**50)) == priority


def test_what_says_nothing_new_is_encoded_as_before() -> None:
    plain = submit()
    assert version_of(plain) == 1
    first = (plain.thought, None, [list(msgspec.structs.astuple(s))[:6] for s in plain.branches])
    old_body = [*first, list(msgspec.structs.astuple(plain.consolidation))[:6]]
    assert body_digest(plain) == digest(tables.encode(old_body))
    for command in (
        submit(priority=1),
        submit(concurrency=2),
        submit(ritual_concurrency={"echo": 2}),
        submit(specs=[spec(placement=GPU)]),
        register(labels={"gpu": "a"}),
        register(ritual_limits={"echo": 1}),
        complete(outcome(S1, 0, failure=FAILED, retry_at_ms=9)),
    ):
        assert version_of(command) == 2
        assert encode_command(command)[0] == 2


def test_priority_and_limit_are_part_of_the_body() -> None:
    replica = Replica(submit(S1, 1, priority=1, concurrency=2))
    assert replica.refuse(submit(S1, 1)) == "session_exists"
    assert replica.refuse(submit(S1, 1, priority=1)) == "session_exists"
    replica.accept(submit(S1, 1, priority=1, concurrency=2), changed=0)


def test_a_limit_of_a_ritual_is_part_of_the_body_and_of_its_branches_in_the_queue() -> None:
    limits = {"echo": 1}
    replica = Replica(register(A), submit(S1, 2, ritual_concurrency=limits))
    assert replica.refuse(submit(S1, 2)) == "session_exists"
    replica.accept(submit(S1, 2, ritual_concurrency=limits), changed=0)
    replica.accept(assign(assignment(S1, 0)))
    replica.accept(complete(outcome(S1, 0, failure=FAILED)))
    assert [entry.ritual_concurrency for entry in replica.read(queue_head)] == [1, 1]
    assert replica.refuse(submit(S2, ritual_concurrency={"other": 1})) == "malformed"
    assert replica.refuse(submit(S2, ritual_concurrency={"echo": 0})) == "malformed"


def test_a_queued_branch_carries_what_placement_needs() -> None:
    replica = Replica(register(A), submit(specs=[spec(placement=GPU)], concurrency=3))
    (entry,) = replica.read(queue_head)
    assert (entry.placement, entry.concurrency, entry.not_before_ms) == (GPU, 3, 0)
    assert replica.branch(0).placement == GPU


def test_a_failed_attempt_rests_as_long_as_its_reporter_says_and_a_lost_one_not_at_all() -> None:
    replica = Replica(register(A), submit(branches=1), assign(assignment(S1, 0)))
    replica.accept(complete(outcome(S1, 0, failure=FAILED, retry_at_ms=500)))
    (entry,) = replica.read(queue_head)
    assert (entry.avoid, entry.not_before_ms) == (A, 500)
    replica.accept(assign(assignment(S1, 0, 2)))
    replica.accept(register(A, 2, at_ms=9))
    assert replica.read(queue_head)[0].not_before_ms == 0


def test_an_offered_place_is_not_for_what_the_scheduler_must_judge() -> None:
    def took(*commands: object, **changes: object) -> bool:
        replica = Replica(*commands, submit(offer=offer(A), **changes))  # type: ignore[arg-type]
        return replica.leased() != []

    assert took(register(A))
    assert not took(register(A), specs=[spec(placement=GPU)])
    assert not took(register(A, ritual_limits={"echo": 1}))
    assert not took(register(A), submit(S2, 1)), "another session waits"
    assert not took(register(A), submit(S2, 1, priority=-1)), "whatever its priority"
    assert took(register(A), priority=5)


def test_caps_of_labels_and_conditions() -> None:
    replica = Replica(register(B))
    assert replica.refuse(register(A, labels={"x" * 65: "y"})) == "too_large"
    assert replica.refuse(register(A, labels={str(n): "y" for n in range(65)})) == "too_large"
    assert replica.refuse(register(A, ritual_limits={"nothing": 1})) == "malformed"
    assert replica.refuse(register(A, ritual_limits={"echo": 0})) == "malformed"
    assert replica.refuse(submit(priority=11)) == "malformed"
    assert replica.refuse(submit(concurrency=0)) == "malformed"
    many = Placement(require=[Condition(label="a", operator="exists")] * 17)
    assert replica.refuse(submit(specs=[spec(placement=many)])) == "too_large"


def test_the_fast_way_to_encode_a_row_is_the_other_one() -> None:
    replica = Replica(
        register(A),
        register(B, labels={"gpu": "1"}),
        submit(S1, 2),
        submit(S2, 1, priority=1, concurrency=2),
        submit(S3, specs=[spec(placement=GPU)]),
    )
    rows = [
        *replica.read(queries.members),
        *replica.read(queries.list_sessions),
        *replica.read(queue_head),
        *(replica.branch(0, identity) for identity in (S1, S2, S3)),
        spec(),
        spec(placement=GPU),
    ]
    for row in rows:
        assert tables.encode_row(row) == tables.encode(tables.trimmed(row))
        assert msgspec.msgpack.decode(tables.encode_row(row), type=type(row)) == row
