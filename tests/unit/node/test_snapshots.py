"""Replicas over real stores that fall behind or are damaged, and get a snapshot from another."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from consensus import snapshot
from consensus.errors import Unavailable
from consensus.group import Group
from consensus.machine import DomainMachine
from consensus.state import queries
from consensus.state.apply import digest
from consensus.state.tables import MEMBERS, SESSIONS, recomputed_digest, uuid_key
from node import snapshots
from node.snapshots import METHOD, Snapshots
from node.workshop import WorkFailed, Workshop
from storage.environment import Environment
from storage.errors import DiskFull
from storage.ids import NodeId
from tests.unit.consensus.test_group import ALL_TABLES, IDS, QUICK, End, Net, leader_of
from tests.unit.node import test_snapshots
from tests.unit.state.model import S1, register, session_id, submit

SHORT = msgspec.structs.replace(QUICK, log_keep_entries=20, log_hold_entries=20)

Wire = Callable[[bytes], Awaitable[bytes]]


class Nodes(Net):
    """`wire` is what an answer with a part of a snapshot goes through."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.stores: dict[NodeId, Environment] = {}
        self.snapshots: dict[NodeId, Snapshots] = {}
        self.tasks: dict[NodeId, asyncio.Task[None]] = {}
        self.offsets: list[int] = []
        self.wire: Wire | None = None

    async def start(self, node: NodeId) -> None:
        store = self.stores[node] = Environment.open(self.folder / node / "consensus", ALL_TABLES)
        group = self.groups[node] = Group(node, IDS, store, DomainMachine(), self.end(node), settings=SHORT)
        end = Snapshots(node, group, self.request(node), Workshop(store, self.folder / node))
        self.snapshots[node] = end
        await end.open()
        group.start()
        self.tasks[node] = asyncio.create_task(end.run())

    async def stop(self, node: NodeId) -> None:
        self.tasks[node].cancel()
        with suppress(asyncio.CancelledError):
            await self.tasks[node]
        self.snapshots[node].stop()
        await self.groups[node].stop()
        self.stores[node].close()

    def request(self, node: NodeId) -> Callable[[NodeId, str, bytes, float], Awaitable[bytes]]:
        async def request(peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
            assert method == METHOD
            if not self.reaches(node, peer):
                raise ConnectionError(peer)
            self.offsets.append(msgspec.msgpack.decode(payload, type=snapshots.Ask).offset)
            answer = await self.snapshots[peer].on_request(node, payload)
            return answer if self.wire is None else await self.wire(answer)

        return request

    def end(self, node: NodeId) -> End:
        return End(self, node)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Nodes]:
    nodes = Nodes(folder)
    for node in IDS:
        await nodes.start(node)
    try:
        for node in IDS:
            for other in IDS:
                if node != other:
                    nodes.groups[node].on_link_up(other)
        yield nodes
    finally:
        for node in IDS:
            await nodes.stop(node)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def converge(nodes: Nodes, leader: NodeId) -> None:
    """All hold the same, and their rows are what their digests say."""
    index = nodes.groups[leader].status().applied_index
    await until(lambda: all(group.status().applied_index >= index for group in nodes.groups.values()))
    digests = set()
    for store in nodes.stores.values():
        with store.read() as txn:
            assert digest(txn) == recomputed_digest(txn)
            digests.add(digest(txn))
    assert len(digests) == 1


async def left_behind(nodes: Nodes, sessions: int = 80) -> tuple[NodeId, NodeId]:
    """A leader, and somebody whom its log cannot help any more, still cut off."""
    leader = await leader_of(nodes)
    lost = next(node for node in IDS if node != leader)
    nodes.cut(lost)
    leader = await leader_of(nodes)
    for number in range(sessions):
        await nodes.groups[leader].propose(submit(session_id(number + 1)))
    lag = nodes.groups[lost].status().last_index
    await until(lambda: nodes.groups[leader].status().first_index > lag + 1)
    return leader, lost


def test_who_is_too_far_behind_gets_a_snapshot(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as nodes:
            leader, lost = await left_behind(nodes)
            told: list[int] = []
            nodes.groups[lost].subscribe_status(lambda status: told.append(status.installed_index))
            nodes.heal(lost)
            await until(lambda: any(told))
            await nodes.groups[leader].propose(submit(session_id(999)))
            await converge(nodes, leader)
            assert nodes.snapshots[lost].progress.state == "idle" or not nodes.groups[lost].status().needs_snapshot
            status = nodes.groups[leader].status()
            assert status.last_index - status.first_index < 3 * SHORT.log_keep_entries

    asyncio.run(scenario())


def test_a_transfer_goes_on_where_it_was_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 2_000)

    async def scenario() -> None:
        async with running(tmp_path) as nodes:
            leader, lost = await left_behind(nodes)
            stuck = asyncio.Event()

            async def some(answer: bytes) -> bytes:
                if msgspec.msgpack.decode(answer, type=snapshots.Part).offset >= 8_000:
                    stuck.set()
                    raise ConnectionError("the line is cut")
                return answer

            nodes.wire = some
            nodes.heal(lost)
            async with asyncio.timeout(60):
                await stuck.wait()
            nodes.cut(lost)
            await nodes.stop(lost)
            nodes.wire, nodes.offsets = None, []
            await nodes.start(lost)
            nodes.heal(lost)
            await nodes.groups[leader].propose(submit(session_id(999)))
            await converge(nodes, leader)
            assert nodes.offsets[0] == 8_000

    asyncio.run(scenario())


@asynccontextmanager
async def busy(nodes: Nodes, leader: NodeId) -> AsyncIterator[None]:
    """The log goes on all the time."""

    async def work() -> None:
        for number in itertools.count(1_000):
            await nodes.groups[leader].propose(submit(session_id(number)))

    working = asyncio.create_task(work())
    try:
        yield
    finally:
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working


@pytest.mark.parametrize("slow", ["make", "fill"])
def test_the_log_behind_a_snapshot_is_kept_while_it_is_made_and_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """Both take minutes where there is much: without it the next one would be needed, and the next."""
    monkeypatch.setattr(test_snapshots, "SHORT", msgspec.structs.replace(SHORT, log_hold_entries=100_000))
    monkeypatch.setattr(snapshot, "LOG_HELD_S", 3.0)
    monkeypatch.setattr(snapshots, "HOLD_S", 0.2)
    done: list[str] = []

    def slowed(work: Callable[[], object], began: Callable[[], int]) -> Callable[[], object]:
        def run() -> object:
            result, index = work(), began()
            ends_at = time.monotonic() + 30
            while began() < index + 200 and time.monotonic() < ends_at:
                time.sleep(0.01)
            time.sleep(5)
            done.append(slow)
            return result

        return run

    async def scenario() -> None:
        async with running(tmp_path) as nodes:
            former, lost = await left_behind(nodes)
            lag = nodes.groups[lost].status().last_index
            assert await nodes.groups[former].transfer_leadership()
            leader = await leader_of(nodes)  # it does not know what the lost one holds
            group = nodes.groups[leader]
            await until(lambda: group.status().first_index > lag + 1)
            workshop = nodes.snapshots[leader if slow == "make" else lost]._workshop
            applied = lambda: group.status().applied_index  # noqa: E731
            monkeypatch.setattr(workshop, slow, slowed(getattr(workshop, slow), applied))
            told: list[int] = []
            nodes.groups[lost].subscribe_status(lambda status: told.append(status.installed_index))
            async with busy(nodes, leader):
                nodes.heal(lost)
                await until(lambda: any(told))
                await until(lambda: nodes.groups[lost].status().applied_index > max(told) + 20)
            await group.propose(submit(session_id(999)))
            await converge(nodes, leader)
            assert done == [slow]

    asyncio.run(scenario())


def test_what_had_arrived_whole_is_used_after_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to be sent of it, and nobody else gives one."""
    monkeypatch.setattr(snapshots, "RETRY_S", 0.05)

    def fail() -> None:
        raise WorkFailed("no room for a copy")

    async def scenario() -> None:
        async with running(tmp_path) as nodes:
            leader, lost = await left_behind(nodes)
            other = next(node for node in IDS if node not in (leader, lost))
            monkeypatch.setattr(nodes.snapshots[other]._workshop, "make", fail)
            workshop = nodes.snapshots[lost]._workshop
            fill, tries = workshop.fill, []

            def fill_later() -> object:
                tries.append(workshop.received()[1])
                if len(tries) == 1:
                    raise DiskFull("no room yet")
                return fill()

            monkeypatch.setattr(workshop, "fill", fill_later)
            nodes.heal(lost)
            await converge(nodes, leader)
            assert tries[0] == tries[1]

    asyncio.run(scenario())


def test_a_part_that_is_damaged_on_its_way_is_noticed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as nodes:
            leader, lost = await left_behind(nodes)
            flips = 0

            async def flip(answer: bytes) -> bytes:
                nonlocal flips
                part = msgspec.msgpack.decode(answer, type=snapshots.Part)
                if part.data and not flips:
                    flips += 1
                    data = bytearray(part.data)
                    data[len(data) // 2] ^= 1
                    part = msgspec.structs.replace(part, data=bytes(data))
                return msgspec.msgpack.encode(part)

            nodes.wire = flip
            nodes.heal(lost)
            await converge(nodes, leader)
            assert flips == 1

    asyncio.run(scenario())


def change(nodes: Nodes, node: NodeId, table: str, key: bytes, value: bytes) -> None:
    with nodes.stores[node].write() as txn:
        txn.put(table, key, value)


def test_a_row_that_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as nodes:
            leader = await leader_of(nodes)
            await nodes.groups[leader].propose(submit(S1))
            damaged = next(node for node in IDS if node != leader)
            await converge(nodes, leader)
            key = uuid_key(S1)
            assert key is not None
            await asyncio.to_thread(change, nodes, damaged, SESSIONS, key, b"\xc1 is no MessagePack")
            group = nodes.groups[damaged]
            with pytest.raises(Unavailable, match="damaged"), group.read() as txn:
                queries.get_session(txn, S1)
            await until(lambda: group.status().is_quarantined)
            await until(lambda: nodes.groups[leader].status().withdrawn == (damaged,))
            await until(lambda: not group.status().is_quarantined)
            await converge(nodes, leader)
            with group.read() as txn:
                assert queries.get_session(txn, S1) is not None
            await until(lambda: nodes.groups[leader].status().withdrawn == ())

    asyncio.run(scenario())


def test_a_row_that_stops_a_command_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as nodes:
            leader = await leader_of(nodes)
            await nodes.groups[leader].propose(register(IDS[0], 1, at_ms=1))
            damaged = next(node for node in IDS if node != leader)
            await converge(nodes, leader)
            await asyncio.to_thread(change, nodes, damaged, MEMBERS, IDS[0].encode(), b"\xc1")
            reasons: list[str] = []
            nodes.groups[damaged].subscribe_status(lambda status: reasons.append(status.quarantine_reason))
            await nodes.groups[leader].propose(register(IDS[0], 2, at_ms=2))
            await until(lambda: any("cannot be applied" in reason for reason in reasons))
            await until(lambda: not nodes.groups[damaged].status().is_quarantined)
            await converge(nodes, leader)

    asyncio.run(scenario())


def test_who_cannot_make_one_says_so_and_another_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise WorkFailed("no room for a copy")

    async def scenario() -> None:
        async with running(tmp_path) as nodes:
            leader, lost = await left_behind(nodes)
            monkeypatch.setattr(nodes.snapshots[leader]._workshop, "make", fail)
            nodes.heal(lost)
            await converge(nodes, leader)
            ask = msgspec.msgpack.encode(snapshots.Ask(1, b"", 0))
            answer = msgspec.msgpack.decode(await nodes.snapshots[leader].on_request(lost, ask), type=snapshots.Part)
            assert answer.refusal == "it cannot make one: no room for a copy"

    asyncio.run(scenario())


def test_who_is_damaged_or_behind_gives_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as nodes:
            leader = await leader_of(nodes)
            await nodes.groups[leader].propose(submit(S1))
            ask = msgspec.msgpack.encode(snapshots.Ask(10_000, b"", 0))
            answer = msgspec.msgpack.decode(await nodes.snapshots[leader].on_request(IDS[0], ask), type=snapshots.Part)
            assert "no more than" in answer.refusal

    asyncio.run(scenario())


def test_what_nobody_asks_for_is_thrown_away_off_the_loop_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "KEEP_S", 0.2)

    async def scenario() -> None:
        async with running(tmp_path) as nodes:
            leader = await leader_of(nodes)
            await nodes.groups[leader].propose(submit(S1))
            end, ask = nodes.snapshots[leader], msgspec.msgpack.encode(snapshots.Ask(1, b"", 0))
            workshop, threads = end._workshop, []
            discard = workshop.discard

            def discarded() -> None:
                threads.append(threading.current_thread())
                discard()

            async def given() -> snapshots.Part:
                async with asyncio.timeout(60):
                    while True:
                        part = msgspec.msgpack.decode(await end.on_request(IDS[0], ask), type=snapshots.Part)
                        if not part.wait:
                            return part
                        await asyncio.sleep(0.01)

            for _ in range(2):
                assert (await given()).data
                monkeypatch.setattr(workshop, "discard", discarded)
                await until(lambda: bool(threads) and not workshop.read(0, 1))
                assert threading.main_thread() not in threads
                monkeypatch.setattr(workshop, "discard", discard)
                threads.clear()

    asyncio.run(scenario())
