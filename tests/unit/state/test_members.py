"""Registrations and changes of status, and what becomes of the work of those who are gone."""

import pytest
from msgspec.structs import replace

from consensus.state import members, queries
from consensus.state.commands import RegisterMember
from consensus.state.events import BranchRequeued, MemberDraining, MemberRegistered, MemberStatusChanged
from consensus.state.rows import Member
from tests.unit.state.model import (
    S1,
    A,
    B,
    C,
    Replica,
    assign,
    assignment,
    complete,
    drain,
    offer,
    outcome,
    queue_head,
    register,
    set_status,
    submit,
)


def member(replica: Replica, node_id: str = A) -> Member:
    found: Member = replica.read(queries.get_member, node_id)
    return found


def test_a_registration_is_recorded_and_told() -> None:
    replica = Replica()
    replica.accept(register(A, at_ms=5), changed=1)
    assert [type(event) for event in replica.events] == [MemberRegistered]
    assert (member(replica).status, member(replica).joined_at_ms) == ("alive", 5)


def test_the_same_registration_again_changes_nothing() -> None:
    replica = Replica(register(A))
    before = replica.digest
    replica.accept(register(A), changed=0)
    replica.accept(register(A, at_ms=99), changed=0)  # only the time differs: nothing new was said
    assert replica.events == []
    assert replica.digest == before


def test_a_changed_offer_replaces_the_row_and_keeps_the_work() -> None:
    replica = Replica(register(A), submit(), assign(assignment(S1, 0)))
    replica.accept(register(A, at_ms=2, slots=8), changed=1)
    assert member(replica).slots == 8
    assert member(replica).joined_at_ms == 1
    assert replica.leased() == [(S1, 0)]


def test_an_older_registration_of_the_same_instance_is_refused() -> None:
    replica = Replica(register(A, at_ms=5), register(A, at_ms=9, slots=8))
    assert replica.refuse(register(A, at_ms=5)) == "stale_registration"


def test_a_new_instance_ends_the_attempts_of_the_former() -> None:
    replica = Replica(register(A), register(B), submit(), assign(assignment(S1, 0), assignment(S1, 1, node_id=B)))
    replica.accept(register(A, 2, at_ms=9), changed=1)
    assert [type(event) for event in replica.events] == [MemberRegistered, BranchRequeued]
    assert replica.queued() == [(S1, 0)]
    assert replica.leased() == [(S1, 1)]
    assert (replica.branch(0).losses, replica.branch(0).failures) == (1, 0)
    assert member(replica).former_instance_ids == ["n1-1"]


def test_a_delayed_registration_of_a_former_instance_is_refused() -> None:
    replica = Replica(register(A, 1), register(A, 2), register(A, 3))
    assert replica.refuse(register(A, 1, at_ms=99)) == "stale_instance"
    assert replica.refuse(register(A, 2, at_ms=99)) == "stale_instance"


@pytest.mark.parametrize("status", ["dead", "left"])
def test_the_attempts_of_a_member_that_is_gone_are_requeued(status: str) -> None:
    replica = Replica(register(A), submit(), assign(assignment(S1, 0), assignment(S1, 1)))
    replica.accept(set_status(A, status), changed=3)  # type: ignore[arg-type]
    assert [type(event) for event in replica.events] == [MemberStatusChanged, BranchRequeued, BranchRequeued]
    assert replica.queued() == [(S1, 0), (S1, 1)]
    assert replica.read(queue_head)[0].avoid == A
    assert replica.read(queries.list_attempts, S1, 0)[0].failure.code == f"node_{status}"
    replica.accept(set_status(A, status), changed=0)  # type: ignore[arg-type]


def test_a_status_is_only_for_the_instance_it_was_decided_about() -> None:
    replica = Replica(register(A, 1), register(A, 2))
    assert replica.refuse(set_status(A, "dead", 1)) == "stale_instance"
    assert replica.refuse(set_status(C, "dead")) == "unknown_member"


def test_the_dead_may_come_back_and_those_who_left_must_register() -> None:
    replica = Replica(register(A), set_status(A, "dead"))
    replica.accept(set_status(A, "alive"), changed=1)
    replica.accept(set_status(A, "left"), changed=1)
    replica.accept(set_status(A, "alive"), changed=0, skipped=1)
    replica.accept(register(A, at_ms=1), changed=0, skipped=1)  # the registration we know, delivered twice
    assert member(replica).status == "left"
    replica.accept(register(A, at_ms=9), changed=1)
    assert member(replica).status == "alive"


def test_a_suspect_keeps_what_it_has_and_gets_nothing_new() -> None:
    replica = Replica(register(A), submit(), assign(assignment(S1, 0)))
    replica.accept(set_status(A, "suspect"), changed=1)
    replica.accept(assign(assignment(S1, 1)), changed=0, skipped=1)
    assert (replica.leased(), replica.queued()) == ([(S1, 0)], [(S1, 1)])
    replica.accept(complete(outcome(S1, 0)), changed=1)
    replica.accept(set_status(A, "alive"), changed=1)
    replica.accept(assign(assignment(S1, 1)), changed=1)


def test_who_drains_keeps_what_it_has_and_gets_nothing_new() -> None:
    replica = Replica(register(A), submit(), assign(assignment(S1, 0)))
    replica.accept(drain(A, hand_back_at_ms=900), changed=1)
    assert replica.events == [MemberDraining(at_ms=5, node_id=A, is_draining=True, is_leaving=False)]
    assert (member(replica).is_draining, member(replica).hand_back_at_ms) == (True, 900)
    replica.accept(drain(A, hand_back_at_ms=900), changed=0)
    replica.accept(assign(assignment(S1, 1)), changed=0, skipped=1)
    replica.accept(complete(outcome(S1, 0), offered=offer(A)), changed=1)
    assert replica.leased() == [], "its own offer is passed over too"
    replica.accept(register(A, at_ms=7, slots=0), changed=1)
    assert member(replica).is_draining, "the same instance drains on, whatever it offers"
    replica.accept(drain(A, is_leaving=None), changed=1)
    replica.accept(assign(assignment(S1, 1)), changed=1)


def test_starting_again_ends_draining_and_leaving() -> None:
    replica = Replica(register(A), drain(A, is_leaving=True))
    replica.accept(register(A, 2, at_ms=9), changed=1)
    assert (member(replica).is_draining, member(replica).is_leaving) == (False, False)
    assert replica.refuse(drain(A, 1)) == "stale_instance"
    replica.accept(drain(A, 2, is_leaving=True), changed=1)
    replica.accept(set_status(A, "left", 2), changed=1)
    assert replica.refuse(drain(A, 2)) == "has_left"
    replica.accept(register(A, 3, at_ms=10), changed=1)
    assert (member(replica).status, member(replica).is_draining) == ("alive", False)


def test_who_was_asked_to_leave_and_has_left_does_not_come_back_without_a_start() -> None:
    replica = Replica(register(A), drain(A, is_leaving=True), set_status(A, "left"))
    assert replica.refuse(register(A, at_ms=9)) == "has_left"
    assert replica.refuse(register(A, at_ms=9, slots=0)) == "has_left"
    assert member(replica).status == "left"
    replica.accept(register(A, 2, at_ms=9), changed=1)
    assert member(replica).status == "alive"


def on(parent: str, at_ms: int) -> RegisterMember:
    return replace(register(C, at_ms=at_ms), tier="leaf", parent=parent, parent_instance=f"{parent}-1")


def test_a_leaf_that_changes_its_parent_keeps_its_work() -> None:
    replica = Replica(on(A, 5), submit(), assign(assignment(S1, 0, node_id=C)))
    replica.accept(on(B, 6), changed=1)
    assert (member(replica, C).parent, member(replica, C).status) == (B, "alive")
    assert replica.leased() == [(S1, 0)]
    assert replica.refuse(on(A, 5)) == "stale_registration", "the former parent is late"


def test_a_former_parent_has_no_say_in_the_status_of_a_leaf() -> None:
    replica = Replica(on(A, 5), submit(), assign(assignment(S1, 0, node_id=C)), on(B, 6))
    replica.accept(replace(set_status(C, "dead"), registered_at_ms=5), changed=0, skipped=1)
    assert replica.leased() == [(S1, 0)]
    replica.accept(replace(set_status(C, "dead"), registered_at_ms=6), changed=2)
    assert replica.queued() == [(S1, 0), (S1, 1)]


def test_there_is_room_for_so_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MEMBERS_MAX", 1)
    replica = Replica(register(A))
    assert replica.refuse(register(B)) == "too_many_members"
    replica.accept(register(A, 2), changed=1)
