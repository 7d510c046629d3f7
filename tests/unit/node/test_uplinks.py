"""What a parent does for its Leaf nodes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from consensus.errors import Unavailable
from consensus.state import queries
from consensus.state.commands import AssignBranches, Assignment, BranchSpec, Outcome, RegisterMember, SubmitSession
from consensus.state.rows import Knowledge, Member, RitualOffer
from mesh.errors import PeerUnavailable
from mesh.handshake import Hello
from mesh.identity import Identity
from node.executor.work import AttemptKey
from node.service.ports import NodeFacts
from node.uplinks import messages
from node.uplinks import parent as parent_module
from node.uplinks.errors import UplinkError
from node.uplinks.messages import (
    Assigned,
    Attach,
    Attached,
    Register,
    Registered,
    SignedOutcomes,
    Verdict,
)
from node.uplinks.parent import Parent
from node.work import Assignments, Places, Reporter
from storage.ids import InstanceId, NodeId, SessionId
from tests.unit.http.twin import INSTANCE, NODE, NOW_MS, TwinGroup
from tests.unit.node.test_work import RecordingExecutor

SESSION = SessionId("2df18a12-f01b-4fb3-91b1-b52a88d742cf")
LEAF = Identity.generate()
OTHER = NodeId("b" * 26)
FACTS = NodeFacts(node_id=NODE, instance_id=INSTANCE, name="node-1", tier="core", mesh_name="home", data_dir="")


class FakeMesh:
    """Links to Leaf nodes; what is sent to them is kept."""

    def __init__(self) -> None:
        self.servers: dict[str, Callable[[NodeId, bytes], Coroutine[Any, Any, bytes]]] = {}
        self.hellos: dict[NodeId, Hello] = {}
        self.works: list[Assigned] = []
        self.notices: list[tuple[str, bytes]] = []
        self.closed: list[NodeId] = []
        self.takes = True

    def serve(self, method: str, server: Callable[[NodeId, bytes], Coroutine[Any, Any, bytes]]) -> None:
        self.servers[method] = server

    def notify(self, peer: NodeId, topic: str, payload: bytes) -> bool:
        self.notices.append((topic, payload))
        return True

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        if not self.takes:
            raise PeerUnavailable("link_lost", "gone")
        self.works += messages.decode(payload, list[Assigned])
        return b""

    def hello_of(self, peer: NodeId) -> Hello | None:
        return self.hellos.get(peer)

    def addresses_for(self, peer: NodeId, listener: NodeId) -> tuple[str, ...]:
        return ("10.0.0.2:7781",)

    def close_link(self, peer: NodeId, code: str, message: str) -> None:
        self.closed.append(peer)


class House:
    """A parent with everything behind it."""

    def __init__(self) -> None:
        self.group = TwinGroup()
        self.mesh = FakeMesh()
        self.own: set[asyncio.Task[None]] = set()
        self.assignments = Assignments(self.group, lambda name, work: None)
        self.executor = RecordingExecutor()
        self.reporter = Reporter(self.group, Places(NODE, INSTANCE, {}, self.executor), lambda: NOW_MS)
        self.refuses = ""
        self.parent = Parent(
            FACTS, self.mesh, self.group, self.assignments, self.reporter, lambda: NODE, lambda: self.refuses,
            lambda: NOW_MS + 5_000,
        )  # fmt: skip
        self.group.subscribe_events(self.assignments.on_events)
        self.group.subscribe_events(self.parent.on_events)

    def link(self, instance: str = "i1") -> None:
        hello = Hello(1, 1, "home", LEAF.node_id, InstanceId(instance), "leaf-1", "leaf")
        self.mesh.hellos[LEAF.node_id] = hello
        self.parent.link_up(hello)

    async def ask(self, method: str, message: object) -> bytes:
        return await self.mesh.servers[method](LEAF.node_id, messages.encode(message))

    async def attach(self) -> Attached:
        return messages.decode(await self.ask(messages.ATTACH, Attach(name="leaf-1")), Attached)

    async def register(self, at_ms: int = NOW_MS, running: list[AttemptKey] | None = None) -> Registered:
        offer = Register(
            name="leaf-1", http_address="", slots=1, async_slots=10, software="0",
            rituals={"echo": RitualOffer(version="1", kind="async")}, at_ms=at_ms, running=running or [],
        )  # fmt: skip
        return messages.decode(await self.ask(messages.REGISTER, offer), Registered)

    async def report(self, *outcomes: Outcome, by: Identity = LEAF, mesh: str = "home") -> list[str]:
        contents = [messages.encode(outcome) for outcome in outcomes]
        signed = SignedOutcomes(contents=contents, proof=by.sign(messages.signable(mesh, contents)))
        return [one.result for one in messages.decode(await self.ask(messages.REPORT, signed), list[Verdict])]

    def member(self) -> Member:
        with self.group.read() as txn:
            found = queries.get_member(txn, LEAF.node_id)
        assert found is not None
        return found

    def submit(self, count: int = 1) -> None:
        spec = BranchSpec(ritual="echo", task="x", parameters={}, seed=1, timeout_ms=60_000, attempts_max=3)
        self.group.apply(
            SubmitSession(
                session_id=SESSION, thought="?", branches=[spec] * count, consolidation=spec, submitted_by=NODE,
                at_ms=NOW_MS,
            )
        )  # fmt: skip

    def assign(self, index: int = 0, attempt: int = 1, instance: str = "i1") -> None:
        assignment = Assignment(
            session_id=SESSION, branch_index=index, attempt=attempt, node_id=LEAF.node_id,
            instance_id=InstanceId(instance), deadline_ms=NOW_MS + 60_000,
        )  # fmt: skip
        self.group.apply(AssignBranches(assignments=[assignment], at_ms=NOW_MS))

    def status(self, index: int = 0) -> str:
        with self.group.read() as txn:
            branch = queries.get_branch(txn, SESSION, index)
        assert branch is not None
        return branch.status

    async def pushed(self, count: int) -> list[AttemptKey]:
        while len(self.mesh.works) < count:
            await asyncio.sleep(0)
        return [one.work.key for one in self.mesh.works]


def outcome(index: int = 0, attempt: int = 1, node: NodeId = LEAF.node_id) -> Outcome:
    return Outcome(
        session_id=SESSION, branch_index=index, attempt=attempt, node_id=node, duration_ms=1, ritual_version="1",
        knowledge=Knowledge(summary="done"),
    )  # fmt: skip


def run(test: Callable[[House], Awaitable[None]]) -> None:
    async def main() -> None:
        house = House()
        reporting = asyncio.create_task(house.reporter.run())
        try:
            async with asyncio.timeout(20):
                await test(house)
        finally:
            house.parent.stop()
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)

    asyncio.run(main())


def test_assignments_are_pushed_when_they_are_applied_and_outcomes_recorded_once() -> None:
    async def test(house: House) -> None:
        house.link()
        assert (await house.attach()).refusal == ""
        await house.register()
        member = house.member()
        assert (member.tier, member.parent, member.parent_instance) == ("leaf", NODE, INSTANCE)
        house.submit()
        house.assign()
        assert await house.pushed(1) == [AttemptKey(SESSION, 0, 1)]
        assert await house.report(outcome(), outcome()) == ["recorded", "recorded"]
        assert await house.report(outcome()) == ["recorded"], "it did not hear the answer"
        assert house.status() == "completed"

    run(test)


def test_what_was_assigned_while_it_was_away_is_pushed_when_it_registers() -> None:
    async def test(house: House) -> None:
        house.link()
        await house.attach()
        await house.register()
        house.submit(3)
        house.mesh.hellos.clear()
        house.parent.link_down(LEAF.node_id)
        for index in range(3):
            house.assign(index)
        house.link()
        await house.attach()
        gone = AttemptKey(SESSION, 9, 1)
        registered = await house.register(NOW_MS + 1, running=[AttemptKey(SESSION, 1, 1), gone])
        assert registered.stop == [gone]
        assert await house.pushed(2) == [AttemptKey(SESSION, 0, 1), AttemptKey(SESSION, 2, 1)]

    run(test)


def test_results_of_a_former_start_count_until_the_new_one_registers() -> None:
    async def test(house: House) -> None:
        house.link()
        await house.attach()
        await house.register()
        house.submit(2)
        house.assign(0)
        house.assign(1)
        house.link("i2")  # restarted
        await house.attach()
        assert await house.report(outcome(0)) == ["recorded"]
        await house.register(NOW_MS + 1)
        assert (house.status(0), house.status(1)) == ("completed", "pending")
        assert await house.report(outcome(1)) == ["superseded"]
        with house.group.read() as txn:
            assert queries.list_attempts(txn, SESSION, 1)[0].late_result_digest is not None

    run(test)


def test_only_what_a_leaf_has_made_and_signed_is_recorded() -> None:
    async def test(house: House) -> None:
        house.link()
        await house.attach()
        await house.register()
        house.submit()
        house.assign()
        stranger = Identity.generate()
        assert await house.report(outcome(), by=stranger) == ["refused"]
        assert await house.report(outcome(node=stranger.node_id), by=stranger) == ["refused"]
        assert await house.report(outcome(), mesh="other") == ["refused"]
        assert house.status() == "processing"

    run(test)


def test_nothing_is_taken_from_who_is_not_attached() -> None:
    async def test(house: House) -> None:
        house.link()
        for asking in (house.register(), house.report(outcome()), house.ask(messages.SEEN, ["x"])):
            with pytest.raises(UplinkError, match="attach first"):
                await asking
        house.refuses = "draining"
        assert (await house.attach()).refusal == "draining"
        assert house.parent.capacity() is None

    run(test)


def test_a_parent_that_is_full_says_so_and_names_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(house: House) -> None:
        monkeypatch.setattr(parent_module, "UPLINKS_MAX", 0)
        house.group.apply(registration(OTHER))
        house.link()
        attached = await house.attach()
        assert attached.refusal == "full"
        assert [one.node_id for one in attached.told.alternatives] == [OTHER]

    run(test)


def registration(node_id: NodeId, **more: Any) -> RegisterMember:
    command = RegisterMember(
        node_id=node_id, instance_id=InstanceId(f"{node_id}-1"), name=node_id[:4], tier="core", address="",
        http_address="", slots=1, async_slots=1, rituals={}, software="0", at_ms=NOW_MS,
    )  # fmt: skip
    return replace(command, **more)


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_leaf_that_is_gone_is_dead_unless_it_hangs_on_another(
    is_elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(house: House) -> None:
        monkeypatch.setattr(parent_module, "GONE_MS", 0)
        monkeypatch.setattr(parent_module, "LOOK_S", 0.001)
        house.link()
        await house.attach()
        await house.register()
        house.submit()
        house.assign()
        house.parent.link_down(LEAF.node_id)
        if is_elsewhere:
            house.group.apply(
                registration(
                    LEAF.node_id, instance_id=InstanceId("i1"), tier="leaf", at_ms=NOW_MS + 1, parent=OTHER,
                    parent_instance=InstanceId("x"),
                )
            )  # fmt: skip
        running = asyncio.create_task(house.parent.run())
        try:
            while house.parent._gone:
                await asyncio.sleep(0.001)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert house.member().status == ("alive" if is_elsewhere else "dead")
        assert house.status() == ("processing" if is_elsewhere else "pending")

    run(test)


def test_a_leaf_whose_registration_comes_through_after_it_has_gone_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(house: House) -> None:
        monkeypatch.setattr(parent_module, "GONE_MS", 0)
        monkeypatch.setattr(parent_module, "LOOK_S", 0.001)
        house.link()
        await house.attach()
        house.parent.link_down(LEAF.node_id)
        running = asyncio.create_task(house.parent.run())
        try:
            while house.parent._gone:
                await asyncio.sleep(0.001)
            house.group.apply(
                registration(
                    LEAF.node_id, instance_id=InstanceId("i1"), tier="leaf", parent=NODE, parent_instance=INSTANCE
                )
            )
            while house.member().status != "dead":
                await asyncio.sleep(0.001)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    run(test)


def test_a_leaf_that_is_gone_is_not_forgotten_while_the_replica_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(house: House) -> None:
        monkeypatch.setattr(parent_module, "GONE_MS", 0)
        house.link()
        await house.attach()
        await house.register()
        house.parent.link_down(LEAF.node_id)

        def fail() -> None:
            raise Unavailable("recovering", "not now")

        with monkeypatch.context() as patched:
            patched.setattr(house.group, "read", fail)
            await house.parent._bury(time.monotonic())
        await house.parent._bury(time.monotonic())
        assert house.member().status == "dead"

    run(test)


def test_an_outcome_that_cannot_be_read_does_not_hold_up_the_others() -> None:
    async def test(house: House) -> None:
        house.link()
        await house.attach()
        await house.register()
        house.submit()
        house.assign()
        contents = [b"of another version", messages.encode(outcome())]
        signed = SignedOutcomes(contents=contents, proof=LEAF.sign(messages.signable("home", contents)))
        verdicts = messages.decode(await house.ask(messages.REPORT, signed), list[Verdict])
        assert [(one.key, one.result) for one in verdicts] == [(AttemptKey(SESSION, 0, 1), "recorded")]

    run(test)


def test_what_waits_for_a_majority_is_taken_once_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(house: House) -> None:
        monkeypatch.setattr(parent_module, "RECORD_S", 0.01)
        monkeypatch.setattr(parent_module, "RECORDING_BYTES_MAX", 4 * len(messages.encode(outcome())))
        taken: list[Outcome] = []
        monkeypatch.setattr(house.reporter, "add", lambda outcome, answered: taken.append(outcome))
        for _ in range(3):
            house.link()
            await house.attach()
            with pytest.raises(UplinkError, match="report again"):
                await house.report(outcome(0), outcome(1))
        assert [one.branch_index for one in taken] == [0, 1]
        with pytest.raises(UplinkError, match="too many") as refused:
            await house.report(*(outcome(index) for index in range(10)))
        assert refused.value.code == "busy"
        assert len(taken) == 4

    run(test)


def test_a_leaf_that_others_say_is_dead_is_told_to_register_again() -> None:
    async def test(house: House) -> None:
        house.link()
        await house.attach()
        await house.register()
        assert house.mesh.notices == []
        command = registration(
            LEAF.node_id, instance_id=InstanceId("i1"), tier="leaf", at_ms=NOW_MS + 1, parent=OTHER,
            parent_instance=InstanceId("x"),
        )  # fmt: skip
        house.group.apply(command)
        assert [topic for topic, _ in house.mesh.notices] == [messages.AGAIN]
        await house.register(NOW_MS + 2)
        assert house.member().parent == NODE

    run(test)


def test_a_leaf_that_takes_no_work_loses_its_uplink() -> None:
    async def test(house: House) -> None:
        house.link()
        await house.attach()
        await house.register()
        house.mesh.takes = False
        house.submit()
        house.assign()
        while not house.mesh.closed:
            await asyncio.sleep(0)
        assert house.status() == "processing", "it is leased, and sent again to whoever attaches"

    run(test)
