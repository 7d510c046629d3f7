"""The leader's loop: what it sees, what it carries out, and that nothing stops it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from consensus.errors import ProposalTimeout, Unavailable
from consensus.state import queries
from consensus.state.commands import (
    AnyCommand,
    AssignBranches,
    BranchSpec,
    CompleteBranches,
    Outcome,
    RegisterMember,
    SubmitSession,
)
from consensus.state.rows import Attempt, Failure, Knowledge, RitualOffer
from node.pulse import Pulse
from node.scheduler import dispatcher as dispatcher_module
from node.scheduler import policy, speculation
from node.scheduler.dispatcher import Dispatcher
from node.scheduler.judgement import LinkView, Outlook
from storage.ids import InstanceId, NodeId, SessionId
from tests.unit.http.twin import INSTANCE, NODE, NOW_MS, TwinGroup

OTHER = NodeId("b" * 26)
UP = LinkView(is_up=True, since_ms=60_000, instance_id=InstanceId("other"))


def spec(ritual: str) -> BranchSpec:
    return BranchSpec(ritual=ritual, task="x", parameters={}, seed=1, timeout_ms=60_000, attempts_max=3)


def session_id(number: int) -> SessionId:
    return SessionId(f"00000000-0000-0000-0000-{number:012d}")


def register(
    group: TwinGroup, node: NodeId = NODE, instance: InstanceId = INSTANCE, async_slots: int = 4, software: str = "0"
) -> None:
    rituals = {"echo": RitualOffer(version="1", kind="async"), "consolidate": RitualOffer(version="1", kind="async")}
    group.apply(
        RegisterMember(
            node_id=node, instance_id=instance, name=node[:4], tier="core", address="", http_address="", slots=1,
            async_slots=async_slots, rituals=rituals, software=software, at_ms=NOW_MS,
        )
    )  # fmt: skip


def submit(group: TwinGroup, number: int, branches: int, ritual: str = "echo", concurrency: int | None = None) -> None:
    group.apply(
        SubmitSession(
            session_id=session_id(number), thought="?", branches=[spec(ritual)] * branches,
            consolidation=spec("consolidate"), submitted_by=NODE, at_ms=NOW_MS, concurrency=concurrency,
        )
    )  # fmt: skip


def leases(group: TwinGroup) -> list[tuple[str, int]]:
    with group.read() as txn:
        return [(lease.session_id, lease.branch_index) for lease in queries.leases(txn)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def leading(
    group: TwinGroup,
    links: dict[NodeId, LinkView] | None = None,
    kind: type[Dispatcher] = Dispatcher,
) -> AsyncIterator[Dispatcher]:
    dispatcher = kind(NODE, group, lambda: Outlook(links or {}), lambda: NOW_MS)
    group.subscribe_events(lambda events: dispatcher.wake())
    task = asyncio.create_task(dispatcher.run())
    dispatcher.set_leading(True)
    try:
        yield dispatcher
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_work_is_assigned_as_soon_as_there_is_some() -> None:
    group = TwinGroup()
    register(group)

    async def scenario() -> None:
        async with leading(group):
            submit(group, 1, 3)
            await until(lambda: len(leases(group)) == 3)

    run(scenario)


def test_only_a_leader_decides() -> None:
    group = TwinGroup()
    register(group)
    submit(group, 1, 3)

    async def scenario() -> None:
        async with leading(group) as dispatcher:
            dispatcher.set_leading(False)
            for _ in range(50):
                await asyncio.sleep(0)
            assert leases(group) == []
            dispatcher.set_leading(True)
            await until(lambda: len(leases(group)) == 3)

    run(scenario)


def test_what_fits_nowhere_does_not_hide_what_lies_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "LOOK_MIN", 2)
    group = TwinGroup()
    register(group)
    submit(group, 1, 50, ritual="nobody_offers_this")
    submit(group, 2, 2)

    async def scenario() -> None:
        async with leading(group):
            await until(lambda: leases(group) == [(session_id(2), 0), (session_id(2), 1)])

    run(scenario)


def test_a_long_queue_that_fits_nowhere_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "LOOK_MIN", 2)
    group = TwinGroup()
    register(group)
    submit(group, 1, 900, ritual="nobody_offers_this")
    decisions = 0

    class Counting(Dispatcher):
        def _decide(self, leading_s: float) -> Any:
            nonlocal decisions
            decisions += 1
            return super()._decide(leading_s)

    async def scenario() -> None:
        async with leading(group, kind=Counting):
            turns_of_the_loop = 0
            while decisions < 20:
                turns_of_the_loop += 1
                await asyncio.sleep(0)
            assert turns_of_the_loop >= 10

    run(scenario)


def test_sessions_at_their_limit_do_not_keep_the_leader_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "LOOK_MIN", 2)
    group = TwinGroup()
    register(group, async_slots=33)
    for number in range(1, 31):
        submit(group, number, 9, concurrency=1)

    async def scenario() -> None:
        async with leading(group) as dispatcher:
            await until(lambda: len(leases(group)) == 30)
            await until(lambda: dispatcher._pause_s == dispatcher_module.REVIEW_S)

    run(scenario)


class Straggling(TwinGroup):
    """Three branches of four are done in 10 ms each, on either node; the last one is not. Counts what is assigned."""

    def __init__(self, software: str) -> None:
        super().__init__()
        self.assigned: list[AssignBranches] = []
        register(self, software="0.2.0+commands.2")
        register(self, OTHER, InstanceId("other"), software=software)

    async def propose(self, command: AnyCommand, deadline_s: float = 10.0) -> Any:
        if isinstance(command, AssignBranches):
            self.assigned.append(command)
        return await super().propose(command, deadline_s)

    def told(self, attempt: Attempt, **how: Any) -> None:
        where: dict[str, Any] = {
            "session_id": session_id(1),
            "branch_index": attempt.branch_index,
            "node_id": attempt.node_id,
        }
        outcome = Outcome(attempt=attempt.attempt, duration_ms=10, ritual_version="1", **where, **how)
        self.apply(CompleteBranches(outcomes=[outcome], at_ms=NOW_MS))

    def attempts(self, index: int) -> list[Attempt]:
        with self.read() as txn:
            return queries.list_attempts(txn, session_id(1), index)


@contextlib.asynccontextmanager
async def straggling(monkeypatch: pytest.MonkeyPatch, software: str) -> AsyncIterator[Straggling]:
    monkeypatch.setattr(dispatcher_module, "REVIEW_S", 0.001)
    monkeypatch.setattr(speculation, "SLOW_MS", 0)
    group = Straggling(software)
    async with leading(group, {OTHER: UP}):
        submit(group, 1, 4)
        await until(lambda: len(leases(group)) == 4)
        for index in range(3):
            group.told(group.attempts(index)[0], knowledge=Knowledge())
        yield group


def test_a_second_attempt_that_failed_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state would pass it over, and the log would grow with every review."""

    async def scenario() -> None:
        async with straggling(monkeypatch, "0.2.0+commands.2") as group:
            await until(lambda: len(group.attempts(3)) == 2)
            group.told(group.attempts(3)[1], failure=Failure(code="ritual_failed", message="It failed."))
            proposed = len(group.assigned)
            await asyncio.sleep(0.05)
            assert len(group.assigned) == proposed
            assert [row.status for row in group.attempts(3)] == ["processing", "failed"]

    run(scenario)


def test_nothing_is_speculative_while_a_member_does_not_know_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with straggling(monkeypatch, "0.1.0") as group:
            await asyncio.sleep(0.05)
            assert not any(command.speculative for command in group.assigned)
            register(group, OTHER, InstanceId("other"), software="0.2.0+commands.2")
            await until(lambda: len(group.attempts(3)) == 2)

    run(scenario)


def test_a_long_queue_that_fits_nowhere_does_not_hide_what_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for when all of the queue has been seen, which may be many decisions after it was due."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(policy, "LOOK_MIN", 2)
    group = Straggling("0.2.0+commands.2")
    dispatcher = Dispatcher(NODE, group, lambda: Outlook({OTHER: UP}), lambda: NOW_MS)
    submit(group, 1, 4)
    for command in dispatcher._decide(60.0)[0]:
        group.apply(command)
    now[0] += dispatcher_module.REVIEW_S
    dispatcher._decide(60.0)
    for index in range(3):
        group.told(group.attempts(index)[0], knowledge=Knowledge())
    now[0] += 30.0
    submit(group, 2, 900, ritual="nobody_offers_this")
    dispatcher._slow_at = 0.0
    commands, is_done = dispatcher._decide(60.0)
    assert not is_done
    while not is_done:
        commands, is_done = dispatcher._decide(60.0)
    assert [isinstance(command, AssignBranches) and len(command.speculative) for command in commands] == [1]


@pytest.mark.parametrize("where", ["read", "propose"])
def test_a_decision_that_fails_is_made_again(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "REVIEW_S", 0.001)

    class Failing(TwinGroup):
        failures = 3

        def read(self) -> Any:
            if where == "read" and self.failures:
                self.failures -= 1
                raise Unavailable("quarantined", "not now")
            return super().read()

        async def propose(self, command: AnyCommand, deadline_s: float = 10.0) -> Any:
            if where == "propose" and self.failures:
                self.failures -= 1
                raise ProposalTimeout("no_leader", deadline_s)
            return await super().propose(command, deadline_s)

    group = Failing()
    register(group)
    submit(group, 1, 2)

    async def scenario() -> None:
        async with leading(group):
            await until(lambda: not group.failures and len(leases(group)) == 2)

    run(scenario)


def test_a_follower_that_acknowledges_nothing_gets_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    group = TwinGroup()
    dispatcher = Dispatcher(NODE, group, lambda: Outlook({}), lambda: NOW_MS)
    group.state.commit_index = 10
    group.state.match_index = {OTHER: 4}
    assert dispatcher._stuck(now[0]) == set()
    now[0] += dispatcher_module.STUCK_S + 0.1
    assert dispatcher._stuck(now[0]) == {OTHER}
    group.state.match_index = {OTHER: 5}
    assert dispatcher._stuck(now[0]) == set(), "it moves"
    now[0] += 60
    group.state.match_index = {OTHER: 10}
    assert dispatcher._stuck(now[0]) == set(), "it has everything"
    group.state.withdrawn = (OTHER,)
    assert dispatcher._stuck(now[0]) == {OTHER}, "its tables are damaged"


def test_the_pulse_beats_only_while_leading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.pulse.CANARY_PERIOD_S", 0.0)
    group = TwinGroup()
    is_leading = [False]

    async def scenario() -> None:
        task = asyncio.create_task(Pulse(NODE, group, lambda: is_leading[0], lambda: NOW_MS).run())
        for _ in range(50):
            await asyncio.sleep(0)
        assert group.state.applied_index == 0
        is_leading[0] = True
        await until(lambda: group.state.applied_index > 2)
        group.fails = ProposalTimeout("no_leader", 1.0)
        for _ in range(50):
            await asyncio.sleep(0)
        beats = group.state.applied_index
        group.fails = None
        await until(lambda: group.state.applied_index > beats)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    run(scenario)
    with group.read() as txn:
        assert queries.last_canary(txn) is not None
