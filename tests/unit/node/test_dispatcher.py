"""The leader's loop: what it sees, what it carries out, and that nothing stops it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from consensus.errors import ProposalTimeout, Unavailable
from consensus.state import queries
from consensus.state.commands import AnyCommand, BranchSpec, RegisterMember, SubmitSession
from consensus.state.rows import RitualOffer
from node.pulse import Pulse
from node.scheduler import dispatcher as dispatcher_module
from node.scheduler import policy
from node.scheduler.dispatcher import Dispatcher
from node.scheduler.judgement import LinkView, Outlook
from storage.ids import InstanceId, NodeId, SessionId
from tests.unit.http.twin import INSTANCE, NODE, NOW_MS, TwinGroup

OTHER = NodeId("b" * 26)


def spec(ritual: str) -> BranchSpec:
    return BranchSpec(ritual=ritual, task="x", parameters={}, seed=1, timeout_ms=60_000, attempts_max=3)


def session_id(number: int) -> SessionId:
    return SessionId(f"00000000-0000-0000-0000-{number:012d}")


def register(group: TwinGroup, node: NodeId = NODE, instance: InstanceId = INSTANCE, async_slots: int = 4) -> None:
    rituals = {"echo": RitualOffer(version="1", kind="async"), "consolidate": RitualOffer(version="1", kind="async")}
    group.apply(
        RegisterMember(
            node_id=node, instance_id=instance, name=node[:4], tier="core", address="", http_address="", slots=1,
            async_slots=async_slots, rituals=rituals, software="0", at_ms=NOW_MS,
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
    group: TwinGroup, links: dict[NodeId, LinkView] | None = None, kind: type[Dispatcher] = Dispatcher
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
    asyncio.run(asyncio.wait_for(scenario(), 20))  # type: ignore[arg-type]


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
    monkeypatch.setattr(dispatcher_module.time, "monotonic", lambda: now[0])
    group = TwinGroup()
    dispatcher = Dispatcher(NODE, group, dict, lambda: NOW_MS)
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
