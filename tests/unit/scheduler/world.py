"""A small world for the scheduler: members, links, leases and a queue in memory."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from consensus.state.commands import AnyCommand
from consensus.state.rows import Lease, Member, MemberStatus, QueueEntry, RitualOffer
from node.scheduler import policy
from node.scheduler.fairness import Turns
from node.scheduler.judgement import LinkView
from node.scheduler.placement import Floor, View
from storage.ids import InstanceId, NodeId, SessionId

NOW_MS = 1_000_000
SESSION = SessionId("2df18a12-f01b-4fb3-91b1-b52a88d742cf")
RITUALS = {"cpu": RitualOffer(version="1", kind="cpu"), "async": RitualOffer(version="1", kind="async")}


def up(name: str, number: int = 1) -> LinkView:
    return LinkView(is_up=True, since_ms=60_000, instance_id=InstanceId(f"{name}-{number}"))


def member(name: str, slots: int = 2, async_slots: int = 4, status: MemberStatus = "alive", **more: Any) -> Member:
    return Member(
        node_id=NodeId(name),
        instance_id=InstanceId(f"{name}-1"),
        name=name,
        tier="core",
        address="",
        http_address="",
        slots=slots,
        async_slots=async_slots,
        software="0",
        status=status,
        **{"rituals": RITUALS, **more},
    )


def session(number: int) -> SessionId:
    return SessionId(str(uuid.UUID(int=number)))


def entry(
    index: int,
    ritual: str = "cpu",
    avoid: str | None = None,
    attempt: int = 1,
    *,
    session_id: SessionId = SESSION,
    **more: Any,
) -> QueueEntry:
    return QueueEntry(
        session_id=session_id,
        branch_index=index,
        ritual=ritual,
        attempt=attempt,
        timeout_ms=60_000,
        avoid=NodeId(avoid) if avoid else None,
        **more,
    )


def lease(
    index: int, node: str, ritual: str = "cpu", deadline_ms: int = NOW_MS + 1, session_id: SessionId = SESSION
) -> Lease:
    return Lease(
        session_id=session_id,
        branch_index=index,
        ritual=ritual,
        attempt=1,
        node_id=NodeId(node),
        instance_id=InstanceId(f"{node}-1"),
        deadline_ms=deadline_ms,
    )


class ListQueue:
    """Lists of entries by priority and session. Counts what is read."""

    def __init__(self, sessions: Sequence[tuple[int, Sequence[QueueEntry]]]) -> None:
        """(priority, entries) in order of submission."""
        self._sessions = {number.to_bytes(4, "big"): session for number, session in enumerate(sessions, 1)}
        self.reads = 0

    def priorities(self) -> list[int]:
        return sorted({priority for priority, entries in self._sessions.values() if entries}, reverse=True)

    def sessions(self, priority: int, start: bytes) -> Iterator[bytes]:
        for key, (other, entries) in self._sessions.items():
            if other == priority and entries and key >= start:
                self.reads += 1
                yield key

    def entries(self, session: bytes, start: bytes, limit: int) -> list[tuple[bytes, QueueEntry]]:
        self.reads += limit
        rows = [(session + entry.branch_index.to_bytes(4, "big"), entry) for entry in self._sessions[session][1]]
        return [row for row in rows if row[0] >= start][:limit]


@dataclass(frozen=True)
class World(View):
    """With the queue of one session beside it."""

    queue: Sequence[QueueEntry] = ()


def view(members: list[Member], queue: Sequence[QueueEntry] = (), leases: Sequence[Lease] = (), **more: Any) -> World:
    more = {"links": {m.node_id: up(m.node_id) for m in members if m.node_id != "a"}, "leader_for_ms": 60_000, **more}
    return World(node_id=NodeId("a"), members=members, queue=queue, leases=leases, **more)


def decide(world: World, now_ms: int) -> list[AnyCommand]:
    return policy.decide(world, ListQueue([(0, world.queue)]), Turns(), now_ms)[0]


def placed(world: World) -> dict[int, str]:
    """Branch index -> node."""
    floor = Floor(world, NOW_MS)
    assignments, _ = policy.place(floor, ListQueue([(0, world.queue)]), Turns(), NOW_MS)
    return {item.branch_index: item.node_id for item in assignments}
