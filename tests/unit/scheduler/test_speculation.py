"""Second attempts of what is slow: which branches, where, and when not."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from consensus.state.commands import AssignBranches
from consensus.state.rows import Branch, Lease, Placement, QueueEntry, Running, Session
from node.scheduler import policy, speculation
from node.scheduler.fairness import Turns
from storage.ids import BranchId, InstanceId, NodeId, SessionId
from tests.unit.scheduler.world import NOW_MS, SESSION, ListQueue, entry, lease, member, view

SESSIONS_OWN = ("speculation", "concurrency", "ritual_concurrency", "pending")


@dataclasses.dataclass
class Ledger:
    """A session of ten: nine done in 1 s each, the tenth (index 9) still executing on `b`."""

    session_row: Session
    branches: dict[int, Branch]
    ran_ms: int
    spent: bool = False
    reads: int = 0

    def session(self, session_id: SessionId) -> Session | None:
        return self.session_row if session_id == SESSION else None

    def branch(self, session_id: SessionId, branch_index: int) -> Branch | None:
        self.reads += 1
        return self.branches.get(branch_index)

    def takes_second(self, branch: Branch) -> bool:
        return not self.spent


def ledger(*, ran_ms: int = 60_000, done: int = 9, mean_ms: int = 1_000, **changes: Any) -> Ledger:
    session = Session(
        id=SESSION,
        thought="why?",
        total_branches=10,
        consolidation="consolidate",
        submit_index=1,
        body_digest=b"",
        submitted_by=NodeId("a"),
        rev=1,
        completed=done,
        duration_sum_ms=done * mean_ms,
        **{name: changes.pop(name) for name in SESSIONS_OWN if name in changes},
    )
    branch = Branch(
        id=BranchId("b"),
        session_id=SESSION,
        branch_index=9,
        ritual="cpu",
        task="look",
        parameters={},
        seed=1,
        timeout_ms=100_000,
        attempts_max=3,
        rev=1,
        status="processing",
        attempt=1,
        node_id=NodeId("b"),
        instance_id=InstanceId("b-1"),
        deadline_ms=NOW_MS + 50_000,
        started_at_ms=NOW_MS - 3_600_000,
        **changes,
    )
    return Ledger(session, {9: branch}, ran_ms)


SLOW = lease(9, "b", deadline_ms=NOW_MS + 50_000)


def second(
    told: Ledger,
    nodes: Sequence[str] = ("a", "b", "c"),
    leases: Sequence[Lease] = (SLOW,),
    queue: Sequence[QueueEntry] = (),
    overdue: Sequence[Lease] = (),
    turns: Turns | None = None,
    **more: Any,
) -> list[tuple[int, str, int]]:
    members = [member(name, **more) for name in nodes]
    world = view(members, queue, leases, overdue=overdue, age_ms=lambda lease: told.ran_ms)
    commands, _ = policy.decide(world, ListQueue([(0, queue)]), turns or Turns(), NOW_MS, told)
    return [
        (item.branch_index, item.node_id, item.attempt)
        for command in commands
        if isinstance(command, AssignBranches)
        for item in command.speculative
    ]


def test_a_straggler_gets_a_second_attempt_elsewhere() -> None:
    assert second(ledger()) == [(9, "c", 2)]


def test_its_lease_is_as_long_as_that_of_any_attempt() -> None:
    world = view([member("a"), member("b")], leases=[SLOW], age_ms=lambda lease: 60_000)
    (command,) = policy.decide(world, ListQueue([]), Turns(), NOW_MS, ledger())[0]
    assert isinstance(command, AssignBranches)
    assert command.assignments == []
    assert command.speculative[0].deadline_ms == NOW_MS + 100_000 + policy.LEASE_GRACE_MS


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (ledger(ran_ms=1_999), "not twice as long as the others, nor a second longer"),
        (ledger(mean_ms=100, ran_ms=1_050), "a little work, although many times as long"),
        (ledger(mean_ms=40_000), "not much longer than the others"),
        (ledger(done=7), "too few are done to know what is usual"),
        (ledger(done=0), "none is"),
        (ledger(speculation=False), "its session does not want it"),
        (ledger(concurrency=1), "its session may run no more"),
        (ledger(ritual_concurrency={"cpu": 2}, pending=1), "the same, of its ritual"),
        (ledger(concurrency=2, pending=1), "another branch of its session rests, and wants the place after that"),
        (ledger(placement=Placement(node="b")), "it may only be there"),
        (ledger(role="consolidation"), "there is but one of its kind"),
    ],
)
def test_no_second_attempt(told: Ledger, why: str) -> None:
    assert second(told) == [], why


def test_never_on_the_same_node() -> None:
    assert second(ledger(), ["b"]) == []
    full = [SLOW, *(lease(n, node) for n, node in enumerate(["a", "a", "c", "c"]))]
    assert second(ledger(), leases=full) == []


def test_there_is_one_beside_an_attempt_at_most() -> None:
    beside = Running(
        attempt=2, node_id=NodeId("c"), instance_id=InstanceId("c-1"), deadline_ms=NOW_MS + 9, started_at_ms=NOW_MS
    )
    told = ledger(speculative=beside)
    told.spent = True
    assert second(told, leases=[SLOW, replace(SLOW, attempt=2, node_id=NodeId("c"))]) == []


def test_second_attempts_have_a_tenth_of_the_slots() -> None:
    doubled = [SLOW, replace(SLOW, attempt=2, node_id=NodeId("c"))]
    others = [replace(lease, branch_index=8) for lease in doubled]
    assert second(ledger(), leases=[*others, SLOW], async_slots=4) == [], "one of 18 is taken"
    assert second(ledger(), leases=[*others, SLOW], async_slots=5) == [(9, "a", 2)], "one of 21, of two"


def test_what_the_state_would_pass_over_is_not_proposed() -> None:
    told = ledger()
    told.spent = True
    assert second(told) == []


def test_slow_is_what_this_leader_has_seen_for_long_whatever_clocks_say() -> None:
    """It has begun an hour ago, by the clock of whoever gave it out."""
    assert second(ledger(ran_ms=2_000)) == []
    assert second(ledger(ran_ms=2_001)) == [(9, "c", 2)]


def test_a_look_is_bounded_and_the_next_one_goes_on_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "READS_MAX", 101)
    told, turns = ledger(), Turns()
    leases = [replace(SLOW, branch_index=index, attempt=9) for index in range(1_000, 1_250)]
    assert second(told, leases=[*leases, replace(SLOW, branch_index=9_999)], async_slots=999, turns=turns) == []
    assert told.reads == 100
    told.branches[9_999] = replace(told.branches[9], branch_index=9_999)
    found = [
        second(told, leases=[*leases, replace(SLOW, branch_index=9_999)], async_slots=999, turns=turns)
        for _ in range(3)
    ]
    assert found == [[], [(9_999, "c", 2)], []], "then from the beginning"
    assert told.reads == 400


def test_what_waits_comes_first() -> None:
    waiting = [entry(n) for n in range(5)]
    assert second(ledger(), queue=waiting, async_slots=0) == []
    assert len(second(ledger(), queue=waiting[:3], async_slots=0)) == 1


def test_what_has_run_out_is_requeued_and_not_doubled() -> None:
    assert second(ledger(), overdue=[SLOW]) == []


def test_nobody_looks_without_a_ledger() -> None:
    world = view([member("a"), member("b")], leases=[SLOW])
    assert policy.decide(world, ListQueue([]), Turns(), NOW_MS)[0] == []
