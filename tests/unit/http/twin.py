"""A node for tests of its faces: the real service, routes and state machine over an in-memory store, with a group that
applies directly, so that every test knows at which index what happened."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from aiohttp.test_utils import TestClient, TestServer

from consensus.errors import ConsensusError, Unavailable
from consensus.membership import Configuration
from consensus.state import queries
from consensus.state.apply import apply
from consensus.state.commands import (
    Answer,
    AnyCommand,
    AssignBranches,
    Assignment,
    CompleteBranches,
    Outcome,
    RegisterMember,
)
from consensus.state.encoding import CommandError, encode_command
from consensus.state.events import Numbered
from consensus.state.rows import Failure, Knowledge, RitualOffer
from consensus.state.tables import TABLES
from consensus.steps import ReplicaStatus
from mesh.errors import PeerUnavailable
from mesh.keeper import TrustStatus
from node.disk import DiskWatch
from node.http.app import build_app
from node.http.guard import Guard
from node.rituals.registry import Registry
from node.service.errors import ServiceError
from node.service.ports import NodeFacts
from node.service.service import NodeService
from storage.dump import encode_dump, make_header
from storage.ids import InstanceId, NodeId, SessionId
from storage.memory import MemoryStore
from storage.transactions import StoreStatistics, Transaction

NODE = NodeId("a" * 26)
INSTANCE = InstanceId("1" * 16)
NOW_MS = 1_790_000_000_000


class Role(IntEnum):
    FOLLOWER = 0
    LEADER = 2


@dataclass
class TwinStatus:
    role: Role = Role.LEADER
    term: int = 1
    leader: NodeId | None = NODE
    commit_index: int = 0
    applied_index: int = 0
    last_index: int = 0
    voters: tuple[NodeId, ...] = (NODE,)
    match_index: dict[NodeId, int] = field(default_factory=dict)
    first_index: int = 1
    is_quarantined: bool = False
    quarantine_reason: str = ""
    withdrawn: tuple[NodeId, ...] = ()
    installed_index: int = 0
    node_id: NodeId = NODE
    configuration: Configuration = field(default_factory=lambda: Configuration((NODE,)))
    caught_up: tuple[NodeId, ...] = ()
    is_removed: bool = False
    dropped: dict[str, int] = field(default_factory=dict)


class TwinGroup:
    """Applies what is proposed at once; `fails` makes it refuse like a mesh without a leader."""

    def __init__(self) -> None:
        self.store = MemoryStore(TABLES)
        self.state = TwinStatus()
        self.fails: ConsensusError | None = None
        self.barriers = 0
        self.catch_ups = 0
        self.age: float | None = 0.0
        self._watchers: list[Callable[[list[Numbered]], None]] = []

    async def propose(self, command: AnyCommand, deadline_s: float = 10.0) -> Answer:
        if self.fails is not None:
            raise self.fails
        try:
            return self.apply(command)
        except CommandError as error:
            raise Unavailable(error.code, error.message) from error

    async def barrier(self, deadline_s: float = 10.0) -> int:
        if self.fails is not None:
            raise self.fails
        self.barriers += 1
        return self.state.applied_index

    async def catch_up(self, deadline_s: float = 10.0) -> int:
        if self.fails is not None:
            raise self.fails
        self.catch_ups += 1
        return self.state.applied_index

    def age_s(self) -> float | None:
        return self.age

    def apply(self, command: AnyCommand) -> Answer:
        index = self.state.applied_index + 1
        with self.store.write() as txn:
            answer, events = apply(txn, index, encode_command(command))
        self.state.applied_index = self.state.commit_index = self.state.last_index = index
        for watcher in self._watchers:
            watcher(events)
        return answer

    def read(self) -> AbstractContextManager[Transaction]:
        return self._read()

    @contextmanager
    def _read(self) -> Iterator[Transaction]:
        with self.store.read() as txn:
            yield txn

    def status(self) -> ReplicaStatus:
        return ReplicaStatus(connected=(), checkpoint=None, **vars(self.state))

    def subscribe_status(self, callback: Callable[[ReplicaStatus], None]) -> object:
        return None

    def subscribe_events(self, callback: Callable[[list[Numbered]], None]) -> object:
        self._watchers.append(callback)
        return None


class Peer(NamedTuple):
    node_id: str
    name: str
    state: str
    address: str
    software: str


class TwinMesh:
    founding_status = "alone, waiting for 2 more"
    mesh_id: str | None = None

    def __init__(self) -> None:
        self.linked = [Peer("b" * 26, "beta", "down", "10.0.0.2:50001", "0.2+commands.3")]

    def peers(self) -> list[Peer]:
        return self.linked

    def diary(self) -> list[Peer]:
        return []

    def counters(self) -> dict[str, int]:
        return {"wrong_secret": 1}

    def trust_status(self) -> TrustStatus:
        return TrustStatus(("0a1b2c3d",), None, None, 4e9, 3.9e9, ("the secret file is not taken over",))

    def lags(self) -> tuple[int, float]:
        return 0, 0.0

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        raise PeerUnavailable("no_link", f"no link to {peer}")


class Slots(NamedTuple):
    slots: int = 2
    slots_busy: int = 0


class TwinExecutor:
    def statistics(self) -> Slots:
        return Slots()


@dataclass
class Live:
    node_id: NodeId = NODE
    attempt: int = 1
    progress: float | None = 0.5
    message: str = "half"
    lines: list[str] = field(default_factory=lambda: ["line"])


class TwinLive:
    def __init__(self) -> None:
        self.states: dict[tuple[SessionId, int], Live] = {}

    def get(self, session_id: SessionId, branch_index: int, attempt: int) -> Live | None:
        found = self.states.get((session_id, branch_index))
        return found if found is not None and found.attempt == attempt else None


class TwinBackup:
    """Of the twin's store; `breaks_after` so many pieces."""

    def __init__(self, store: MemoryStore, breaks_after: int | None) -> None:
        with store.read() as txn:
            self.header = make_header(txn, TABLES, index=5, term=1, digest=b"", about={})
            self._pieces = list(encode_dump(txn, self.header))
        self._breaks_after = breaks_after

    async def pieces(self) -> AsyncIterator[bytes]:
        for number, piece in enumerate(self._pieces):
            if number == self._breaks_after:
                raise OSError("the copy is gone")
            yield piece


class TwinBackups:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.refusal: ServiceError | None = None
        self.breaks_after: int | None = None

    @asynccontextmanager
    async def take(self) -> AsyncIterator[TwinBackup]:
        if self.refusal is not None:
            raise self.refusal
        yield TwinBackup(self._store, self.breaks_after)


class TwinStore:
    """The group's store on a disk with as much room as the test says."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.disk_free_bytes = 1 << 40

    def statistics(self) -> StoreStatistics:
        return self._store.statistics()._replace(disk_free_bytes=self.disk_free_bytes)


class TwinNode:
    def __init__(self) -> None:
        self.group = TwinGroup()
        self.live = TwinLive()
        self.store = TwinStore(self.group.store)
        self._looks = itertools.count()
        self.backups = TwinBackups(self.group.store)
        facts = NodeFacts(
            node_id=NODE,
            instance_id=INSTANCE,
            name="alpha",
            tier="core",
            mesh_name="home",
            data_dir="/data",
        )
        self.service = NodeService(
            facts,
            mesh=TwinMesh(),
            registry=REGISTRY,
            live=self.live,
            store=self.store,
            disk=DiskWatch(self.store, "/data", clock=lambda: float(next(self._looks))),
            backups=self.backups,
            now_ms=lambda: NOW_MS + self.group.state.applied_index,
        )

    def attach(self) -> None:
        self.service.attach(self.group, TwinExecutor())
        self.group.apply(
            RegisterMember(
                node_id=NODE,
                instance_id=INSTANCE,
                name="alpha",
                tier="core",
                address="127.0.0.1:1",
                http_address="127.0.0.1:2",
                slots=2,
                async_slots=10,
                rituals={name: RitualOffer(version="1", kind="cpu") for name in ("echo", "wait", "consolidate")},
                software="0",
                at_ms=NOW_MS,
            )
        )

    def assign(self, session_id: str, index: int, attempt: int = 1) -> None:
        assignment = Assignment(
            session_id=SessionId(session_id),
            branch_index=index,
            attempt=attempt,
            node_id=NODE,
            instance_id=INSTANCE,
            deadline_ms=NOW_MS + 60_000,
        )
        self.group.apply(AssignBranches(assignments=[assignment], at_ms=NOW_MS + 1))

    def finish(self, session_id: str, index: int, *, fails: bool = False, knowledge: Knowledge | None = None) -> None:
        outcome = Outcome(
            session_id=SessionId(session_id),
            branch_index=index,
            attempt=1,
            node_id=NODE,
            duration_ms=7,
            ritual_version="1",
            knowledge=None if fails else knowledge or Knowledge(patterns=["p"], novelty=0.5, result={"n": index}),
            failure=Failure(code="boom", message="it broke") if fails else None,
        )
        self.group.apply(CompleteBranches(outcomes=[outcome], at_ms=NOW_MS + 9))

    def run_to_end(self, session_id: str) -> None:
        with self.group.store.read() as txn:
            session = queries.get_session(txn, session_id)
        assert session is not None
        for index in range(session.total_branches + 1):
            self.assign(session_id, index)
            self.finish(session_id, index)


REGISTRY = Registry.load(entry_points=False)


@asynccontextmanager
async def client_of(
    node: TwinNode, *, token: str | None = None, bind: str = "127.0.0.1", attached: bool = True
) -> AsyncIterator[TestClient[Any, Any]]:
    if attached:
        node.attach()
    app = build_app(node.service, Guard(bind, token, allow_unauthenticated=True))
    try:
        async with TestClient(TestServer(app)) as client:
            yield client
            await node.service.stop()
    finally:
        await node.service.stop()


def run(test: Callable[[TestClient[Any, Any], TwinNode], Awaitable[None]], **settings: Any) -> None:
    """Runs a test against a fresh node, with a deadline."""

    async def main() -> None:
        node = TwinNode()
        async with asyncio.timeout(20), client_of(node, **settings) as client:
            await test(client, node)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop turn until the condition holds; the test's own deadline bounds it."""
    while not condition():
        await asyncio.sleep(0)


def body(count: int = 1, **fields: Any) -> dict[str, Any]:
    branches = [{"ritual": "echo", "task": f"task {index}"} for index in range(count)]
    return {"thought": "why?", "branches": branches, **fields}
