"""A node's share of the work: which assignments it takes, and that no outcome is lost or recorded twice."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from consensus.errors import ProposalTimeout
from consensus.state import attempts, queries
from consensus.state.commands import (
    AnyCommand,
    Applied,
    AssignBranches,
    Assignment,
    BranchSpec,
    CancelSession,
    CompleteBranches,
    Outcome,
    Refused,
    RegisterMember,
    Requeue,
    RequeueBranches,
    SubmitSession,
)
from consensus.state.rows import Failure, Knowledge, RitualOffer
from consensus.state.versions import labelled
from node import work as work_module
from node.executor.work import AttemptKey, Work
from node.work import Assignments, Places, Reporter, backoff_ms
from storage.ids import InstanceId, NodeId, SessionId
from tests.unit.http.twin import INSTANCE, NODE, NOW_MS, TwinGroup

SESSION = SessionId("2df18a12-f01b-4fb3-91b1-b52a88d742cf")
OTHER = NodeId("b" * 26)


class RecordingExecutor:
    assignments: Assignments

    def __init__(self) -> None:
        self.submitted: list[Work] = []
        self.cancelled: list[tuple[str, int, int]] = []
        self.room = False
        self.owned: list[Any] = []

    def submit(self, work: Work) -> None:
        self.submitted.append(work)

    def cancel(self, session_id: SessionId, branch_index: int, attempt: int) -> None:
        self.cancelled.append((session_id, branch_index, attempt))

    def has_room(self, kind: str) -> bool:
        return self.room

    def running(self) -> list[AttemptKey]:
        return [work.key for work in self.submitted]


def places(executor: RecordingExecutor) -> Places:
    return Places(NODE, INSTANCE, {"echo": "async"}, executor)


def spec(ritual: str = "echo", task: str = "x") -> BranchSpec:
    return BranchSpec(ritual=ritual, task=task, parameters={"a": 1}, seed=7, timeout_ms=60_000, attempts_max=3)


def register(group: TwinGroup, node: NodeId, instance: InstanceId) -> None:
    group.apply(
        RegisterMember(
            node_id=node, instance_id=instance, name=node[:4], tier="core", address="", http_address="", slots=2,
            async_slots=10, rituals={name: RitualOffer(version="1", kind="async") for name in ("echo", "consolidate")},
            software=labelled("0"), at_ms=NOW_MS,
        )
    )  # fmt: skip


def submit(group: TwinGroup, branches: int) -> None:
    group.apply(
        SubmitSession(
            session_id=SESSION, thought="why?", branches=[spec(task=f"task {i}") for i in range(branches)],
            consolidation=spec("consolidate"), submitted_by=NODE, at_ms=NOW_MS,
        )
    )  # fmt: skip


def assign(
    group: TwinGroup, index: int, attempt: int = 1, node: NodeId = NODE, instance: InstanceId = INSTANCE
) -> None:
    assignment = Assignment(
        session_id=SESSION, branch_index=index, attempt=attempt, node_id=node, instance_id=instance,
        deadline_ms=NOW_MS + 60_000,
    )  # fmt: skip
    answer = group.apply(AssignBranches(assignments=[assignment], at_ms=NOW_MS))
    assert isinstance(answer, Applied)
    assert answer.changed == 1


def outcome(index: int, attempt: int = 1, text: str = "done") -> Outcome:
    return Outcome(
        session_id=SESSION, branch_index=index, attempt=attempt, node_id=NODE, duration_ms=5, ritual_version="1",
        knowledge=Knowledge(summary=text, result={"text": text}),
    )  # fmt: skip


@pytest.fixture
def group() -> TwinGroup:
    group = TwinGroup()
    register(group, NODE, INSTANCE)
    register(group, OTHER, InstanceId("2" * 16))
    return group


@pytest.fixture
def executor(group: TwinGroup) -> RecordingExecutor:
    executor = RecordingExecutor()
    owned: list[Any] = []
    assignments = Assignments(group, lambda name, work: owned.append(work))
    assignments.serve(NODE, INSTANCE, executor)
    executor.owned, executor.assignments = owned, assignments
    group.subscribe_events(assignments.on_events)
    return executor


def test_an_assignment_of_this_instance_is_executed_as_submitted(group: TwinGroup, executor: RecordingExecutor) -> None:
    submit(group, 2)
    assign(group, 1)
    (work,) = executor.submitted
    assert (work.branch_index, work.attempt, work.ritual, work.task) == (1, 1, "echo", "task 1")
    assert (work.parameters, work.seed, work.timeout_ms, work.thought) == ({"a": 1}, 7, 60_000, "why?")
    assert work.inputs is None


def test_others_work_is_left_alone(group: TwinGroup, executor: RecordingExecutor) -> None:
    submit(group, 2)
    assign(group, 0, node=OTHER, instance=InstanceId("2" * 16))
    assert executor.submitted == []
    group.apply(CancelSession(session_id=SESSION, reason="enough", at_ms=NOW_MS))
    assert executor.cancelled == []


def test_what_is_taken_away_is_stopped(group: TwinGroup, executor: RecordingExecutor) -> None:
    submit(group, 2)
    assign(group, 0)
    assign(group, 1)
    failure = Failure(code="lease_expired", message="too late")
    requeue = Requeue(session_id=SESSION, branch_index=0, attempt=1, failure=failure, is_lost=False)
    group.apply(RequeueBranches(requeues=[requeue], at_ms=NOW_MS))
    assert executor.cancelled == [(SESSION, 0, 1)]
    group.apply(CancelSession(session_id=SESSION, reason="enough", at_ms=NOW_MS))
    assert executor.cancelled == [(SESSION, 0, 1), (SESSION, 1, 1)]


def test_what_was_taken_away_while_nothing_was_heard_is_stopped(group: TwinGroup, executor: RecordingExecutor) -> None:
    """As after a snapshot."""
    submit(group, 3)
    for index in range(3):
        assign(group, index)
    away, group._watchers = group._watchers, []
    failure = Failure(code="node_dead", message="not heard from")
    requeues = [
        Requeue(session_id=SESSION, branch_index=index, attempt=1, failure=failure, is_lost=True) for index in (0, 1)
    ]
    group.apply(RequeueBranches(requeues=requeues, at_ms=NOW_MS))
    assign(group, 0, attempt=2, node=OTHER, instance=InstanceId("2" * 16))
    assign(group, 1, attempt=2)
    group._watchers = away
    with group.read() as txn:
        leases = queries.leases(txn)
    executor.assignments.compare(leases, executor)
    assert executor.cancelled == [(SESSION, 0, 1), (SESSION, 1, 1)]
    assert [work.key for work in executor.submitted[3:]] == [(SESSION, 1, 2), (SESSION, 2, 1)], "twice is harmless"


def test_what_is_lost_once_too_often_is_stopped(
    group: TwinGroup, executor: RecordingExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may execute still: its lease ran out, or its node drains."""
    monkeypatch.setattr(attempts, "LOSSES_MAX", 1)
    submit(group, 1)
    assign(group, 0)
    failure = Failure(code="node_draining", message="too late")
    requeue = Requeue(session_id=SESSION, branch_index=0, attempt=1, failure=failure, is_lost=True)
    group.apply(RequeueBranches(requeues=[requeue], at_ms=NOW_MS))
    assert executor.cancelled == [(SESSION, 0, 1)]


def test_a_consolidation_sees_every_branch(group: TwinGroup, executor: RecordingExecutor) -> None:
    submit(group, 2)
    assign(group, 0)
    group.apply(CompleteBranches(outcomes=[outcome(0, text="zero")], at_ms=NOW_MS))
    failure = Failure(code="ritual_error", message="broken")
    for attempt in (1, 2, 3):
        assign(group, 1, attempt)
        bad = Outcome(
            session_id=SESSION, branch_index=1, attempt=attempt, node_id=NODE, duration_ms=1, ritual_version="1",
            failure=failure,
        )  # fmt: skip
        group.apply(CompleteBranches(outcomes=[bad], at_ms=NOW_MS))
    assign(group, 2)
    inputs = executor.submitted[-1].inputs
    assert inputs is not None
    assert [(one.branch_index, one.status) for one in inputs] == [(0, "completed"), (1, "failed")]
    assert inputs[0].knowledge is not None
    assert inputs[0].knowledge.result == {"text": "zero"}
    assert inputs[1].failure == failure
    assert not executor.submitted[-1].inputs_trimmed


def test_inputs_beyond_the_cap_come_without_their_result(
    group: TwinGroup, executor: RecordingExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_module, "INPUT_BYTES_MAX", 40)
    submit(group, 3)
    for index in range(3):
        assign(group, index)
        group.apply(CompleteBranches(outcomes=[outcome(index)], at_ms=NOW_MS))
    assign(group, 3)
    inputs = executor.submitted[-1].inputs
    assert inputs is not None
    assert [one.knowledge is not None and one.knowledge.result is not None for one in inputs] == [True, False, False]
    assert [one.knowledge is not None and one.knowledge.summary for one in inputs] == ["done"] * 3
    assert executor.submitted[-1].inputs_trimmed


def test_inputs_of_a_large_session_are_read_beside_the_loop(
    group: TwinGroup, executor: RecordingExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_module, "INLINE_BRANCHES_MAX", 1)
    submit(group, 2)
    for index in range(2):
        assign(group, index)
        group.apply(CompleteBranches(outcomes=[outcome(index)], at_ms=NOW_MS))
    assign(group, 2)
    assert [work.branch_index for work in executor.submitted] == [0, 1]
    asyncio.run(executor.owned.pop())
    inputs = executor.submitted[-1].inputs
    assert inputs is not None
    assert len(inputs) == 2


def test_what_is_cancelled_while_its_inputs_are_read_does_not_start(
    group: TwinGroup, executor: RecordingExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_module, "INLINE_BRANCHES_MAX", 0)
    submit(group, 1)
    assign(group, 0)
    group.apply(CompleteBranches(outcomes=[outcome(0)], at_ms=NOW_MS))
    assign(group, 1)

    read, may_go_on = Assignments._read_inputs, threading.Event()

    def read_slowly(self: Assignments, session_id: SessionId) -> Any:
        assert may_go_on.wait(10)
        return read(self, session_id)

    monkeypatch.setattr(Assignments, "_read_inputs", read_slowly)

    async def scenario() -> None:
        preparing = asyncio.create_task(executor.owned.pop())
        await asyncio.sleep(0)
        group.apply(CancelSession(session_id=SESSION, reason="enough", at_ms=NOW_MS))
        may_go_on.set()
        await preparing

    asyncio.run(scenario())
    assert [work.branch_index for work in executor.submitted] == [0]


def test_a_free_place_is_offered_for_rituals_that_are_known_here(executor: RecordingExecutor) -> None:
    assert places(executor).offer("echo") is None
    executor.room = True
    offer = places(executor).offer("echo")
    assert offer is not None
    assert (offer.node_id, offer.instance_id) == (NODE, INSTANCE)
    assert places(executor).offer("unknown") is None
    assert places(executor).offer_any() == offer
    bound = Places(NODE, INSTANCE, {"echo": "async"}, executor, lambda: True)
    assert (bound.offer("echo"), bound.offer_any()) == (None, None)


class Flaky(TwinGroup):
    """Loses the first answers: before the command is applied, or after."""

    def __init__(self, losses: int, *, applies: bool) -> None:
        super().__init__()
        self.losses, self.applies = losses, applies
        self.proposed: list[AnyCommand] = []

    async def propose(self, command: AnyCommand, deadline_s: float = 10.0):  # type: ignore[no-untyped-def]
        self.proposed.append(command)
        if self.losses:
            self.losses -= 1
            if self.applies:
                self.apply(command)
            raise ProposalTimeout("timeout", deadline_s)
        return await super().propose(command, deadline_s)


@contextlib.asynccontextmanager
async def running(reporter: Reporter) -> AsyncIterator[None]:
    task = asyncio.create_task(reporter.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("applies", [False, True])
def test_an_outcome_survives_lost_answers_and_is_recorded_once(applies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "REPORT_PAUSE_S", 0.0)
    group = Flaky(3, applies=applies)
    register(group, NODE, INSTANCE)
    submit(group, 1)
    assign(group, 0)

    async def scenario() -> None:
        reporter = Reporter(group, places(RecordingExecutor()), lambda: NOW_MS)
        async with running(reporter), asyncio.timeout(10):
            reporter.add(outcome(0))
            await reporter.wait_idle()

    asyncio.run(scenario())
    with group.read() as txn:
        session = queries.get_session(txn, SESSION)
        attempts = queries.list_attempts(txn, SESSION, 0)
    assert session is not None
    assert session.completed == 1
    assert [attempt.status for attempt in attempts] == ["completed"]


def test_outcomes_that_come_together_are_recorded_together() -> None:
    group = Flaky(0, applies=True)
    register(group, NODE, INSTANCE)
    submit(group, 20)
    for index in range(20):
        assign(group, index)

    async def scenario() -> None:
        reporter = Reporter(group, places(RecordingExecutor()), lambda: NOW_MS)
        async with running(reporter), asyncio.timeout(10):
            for index in range(20):
                reporter.add(outcome(index))
            await reporter.wait_idle()

    asyncio.run(scenario())
    assert [len(command.outcomes) for command in group.proposed if isinstance(command, CompleteBranches)] == [20]


def poisoned(command: AnyCommand, poison: Callable[[Outcome], bool]) -> bool:
    return isinstance(command, CompleteBranches) and any(map(poison, command.outcomes))


def test_one_bad_outcome_does_not_take_its_neighbours_along() -> None:
    class Picky(TwinGroup):
        async def propose(self, command: AnyCommand, deadline_s: float = 10.0):  # type: ignore[no-untyped-def]
            if poisoned(command, lambda one: one.branch_index == 3 and one.knowledge is not None):
                return Refused(index=1, code="malformed", message="not this one")
            return await super().propose(command, deadline_s)

    group = Picky()
    register(group, NODE, INSTANCE)
    submit(group, 8)
    for index in range(8):
        assign(group, index)

    async def scenario() -> None:
        reporter = Reporter(group, places(RecordingExecutor()), lambda: NOW_MS)
        async with running(reporter), asyncio.timeout(10):
            for index in range(8):
                reporter.add(outcome(index))
            await reporter.wait_idle()

    asyncio.run(scenario())
    with group.read() as txn:
        session = queries.get_session(txn, SESSION)
        third = queries.get_branch(txn, SESSION, 3)
        attempts = queries.list_attempts(txn, SESSION, 3)
    assert session is not None
    assert third is not None
    assert session.completed == 7
    assert third.status == "pending", "its failure is recorded and it is tried again"
    assert [attempt.failure and attempt.failure.code for attempt in attempts] == ["malformed"]


@pytest.mark.parametrize(
    "changes",
    [
        {"knowledge": Knowledge(result="x" * 2**21)},
        {"knowledge": None, "failure": Failure(code="ritual_error", message="x" * 2**21)},
        {"ritual_version": "x" * 2**21},
    ],
)
def test_an_outcome_too_large_for_a_command_does_not_keep_its_neighbours(changes: dict[str, Any]) -> None:
    """No worker or Leaf of ours makes one; a ritual that writes into its pipe, or a Leaf that lies, does."""
    group = TwinGroup()
    register(group, NODE, INSTANCE)
    submit(group, 3)
    for index in range(3):
        assign(group, index)

    async def scenario() -> None:
        reporter = Reporter(group, places(RecordingExecutor()), lambda: NOW_MS)
        async with running(reporter), asyncio.timeout(10):
            reporter.add(outcome(0))
            reporter.add(msgspec.structs.replace(outcome(1), **changes))
            reporter.add(outcome(2))
            await reporter.wait_idle()

    asyncio.run(scenario())
    with group.read() as txn:
        statuses = [branch.status for branch in queries.list_branches(txn, SESSION)]
        found = queries.list_attempts(txn, SESSION, 1)
    assert statuses == ["completed", "pending", "completed"]
    assert [attempt.failure and attempt.failure.code for attempt in found] == ["too_large"]


@pytest.mark.parametrize(
    ("code", "is_lost", "rests"),
    [
        ("ritual_error", False, True),
        ("waited_too_long", True, True),
        ("worker_lost", True, True),
        ("drained", True, False),
    ],
)
def test_what_a_node_could_not_execute_rests_and_what_it_hands_back_does_not(
    code: str, is_lost: bool, rests: bool
) -> None:
    """Or a node whose workers crash would use up all the losses of a branch within seconds."""
    group = TwinGroup()
    register(group, NODE, INSTANCE)
    submit(group, 1)
    assign(group, 0)
    ended = msgspec.structs.replace(
        outcome(0), knowledge=None, failure=Failure(code=code, message="?"), is_lost=is_lost
    )

    async def scenario() -> None:
        reporter = Reporter(group, places(RecordingExecutor()), lambda: NOW_MS)
        async with running(reporter), asyncio.timeout(10):
            reporter.add(ended)
            await reporter.wait_idle()

    asyncio.run(scenario())
    with group.read() as txn:
        session = queries.get_session(txn, SESSION)
        assert session is not None
        entry = queries.queue_entry(txn, session, 0)
    assert entry is not None
    assert entry.not_before_ms == (NOW_MS + backoff_ms(1) if rests else 0)


def test_failed_attempts_rest_longer_each_time() -> None:
    rests = [backoff_ms(attempt) for attempt in range(1, 30)]
    assert rests[:4] == [200, 400, 800, 1600]
    assert rests == sorted(rests)
    assert rests[-1] == 60_000
