"""The use-cases of a node, free of any face: submit, cancel, read, wait, watch. HTTP is thin over it.

Rules:
- what `submit` and `cancel` answer is committed by a majority and applied; an exception means "not known", never "no".
- a read is one LMDB snapshot, bounded by a page, and says as of which index it is, and how old it may be. It is as
  fresh as was wanted (`Wanted`), on any node, or refused.
- what was submitted or cancelled through this node is seen by later reads on this node (`Group.propose` sees to it).
- nothing here polls: waiting wakes on events.
"""

import asyncio
import difflib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from math import ceil
from typing import Any, Final, TypeVar

import msgspec

from consensus.errors import ConsensusError
from consensus.state import queries
from consensus.state.commands import AnyCommand, Applied, CancelSession, Offer, Refused
from consensus.state.events import Numbered
from consensus.state.limits import REASON_CHARACTERS_MAX
from consensus.state.rows import Branch, BranchStatus, Insight, Member, Session, SessionStatus
from node.service.backlog import Waits
from node.service.errors import ServiceError, no_insight, of_consensus, of_refusal, too_stale
from node.service.paging import branches_page, check_cursor, full_page, number_cursor, scan, submit_index
from node.service.ports import (
    BackupPort,
    BackupsPort,
    ChangesPort,
    DiskPort,
    ExecutorPort,
    GroupPort,
    GroupStatus,
    LivePort,
    LiveView,
    LookoutPort,
    MeshPort,
    NodeFacts,
    RegistryPort,
    RitualPort,
    SnapshotsPort,
    StewardPort,
    StorePort,
)
from node.service.progress import ProgressClock
from node.service.readings import (
    STALE,
    BranchDetail,
    InsightDetail,
    Page,
    Reading,
    RitualView,
    Submitted,
    Until,
    Wanted,
)
from node.service.sight import Sights
from node.service.submission import Submission, decode_body, parse_submission
from node.service.watching import WHOLE_INDEX, Cursor, EventHub, EventPage, cursor_of
from storage.errors import StorageError
from storage.ids import BranchId, NodeId, SessionId
from storage.transactions import Transaction

INLINE_ROWS_MAX: Final = 100
"""Pages up to this size are read on the loop thread (well under a millisecond), larger ones on another."""
INLINE_BODY_BYTES_MAX: Final = 32 << 10
"""Submissions up to this size are parsed on the loop thread (about a millisecond), larger ones on another."""
WAIT_S_MAX: Final = 60.0
"""Of a long-poll: proxies and clients cut idle requests at about this."""
PROPOSE_S: Final = 10.0
FRESH_S: Final = 5.0
"""For hearing how far to read, and reading so far."""

TERMINAL: Final = ("completed", "failed", "cancelled")

T = TypeVar("T")


class NodeService:
    """One per daemon, on the loop thread. It serves before the mesh is founded too: then only the status says anything,
    and the rest is refused with `forming`; `attach` gives it the mesh."""

    def __init__(
        self,
        facts: NodeFacts,
        *,
        mesh: MeshPort,
        registry: RegistryPort,
        live: LivePort,
        store: StorePort,
        backups: BackupsPort,
        disk: DiskPort,
        now_ms: Callable[[], int],
    ) -> None:
        self.facts = facts
        self.mesh = mesh
        self.executor: ExecutorPort | None = None
        self.registry, self.store, self.disk = registry, store, disk
        self._backups = backups
        self.now_ms = now_ms
        self.started_at = time.monotonic()
        self.progress: ProgressClock | None = None
        self.replica_failure: str | None = None
        self.hub = EventHub(self._events_page)
        self._live = live
        self._group: GroupPort | None = None
        self._offer: Callable[[str], Offer | None] = lambda ritual: None
        self.snapshots: SnapshotsPort | None = None
        self.changes: ChangesPort | None = None
        self.steward: StewardPort | None = None
        self.lookout: LookoutPort | None = None
        self.sights: Sights | None = None
        self.waits: Waits | None = None

    def attach(
        self,
        group: GroupPort,
        executor: ExecutorPort,
        offer: Callable[[str], Offer | None] = lambda ritual: None,
        snapshots: SnapshotsPort | None = None,
        changes: ChangesPort | None = None,
        steward: StewardPort | None = None,
    ) -> None:
        """The node takes part in a mesh from now on. Call it before the node registers, so that its first command
        counts as progress. `offer` answers with a free place of this node for a ritual."""
        assert self._group is None, "attached twice"
        self._group, self._offer = group, offer
        self.snapshots, self.changes, self.steward = snapshots, changes, steward
        self.executor = executor
        self.progress = ProgressClock(lambda: group.status().applied_index)
        self.progress.start()
        group.subscribe_events(self._on_events)
        group.subscribe_status(self._on_status)

    async def stop(self) -> None:
        """Ends every watcher and waiter; further requests are refused with `stopping`."""
        self.hub.close()
        if self.progress is not None:
            await self.progress.stop()

    def _on_events(self, events: list[Numbered]) -> None:
        if self.progress is not None:
            self.progress.note()
        self.hub.publish(events)

    def _on_status(self, status: GroupStatus) -> None:
        """Nobody is told by events what a snapshot has brought; watchers read on where they are, waiters look again."""
        if status.installed_index:
            self.hub.wake_all()

    def note_replica_failure(self, reason: str) -> None:
        """The replica has failed for good: health says so until the process ends. Reads go on, of what it had applied;
        watchers are sent to other nodes."""
        self.replica_failure = reason
        self.hub.end_watchers()

    @property
    def is_founded(self) -> bool:
        return self._group is not None

    @property
    def status_or_none(self) -> GroupStatus | None:
        """None until the node takes part."""
        return None if self._group is None else self._group.status()

    @property
    def status(self) -> GroupStatus:
        """Raises `ServiceError`: `forming`, `stopping`."""
        return self._attached().status()

    def _attached(self) -> GroupPort:
        if self.hub.is_closed:
            raise ServiceError("stopping", "This node is stopping.", "Ask another node.")
        if self._group is None:
            raise ServiceError(
                "forming",
                f"This node does not take part in a mesh yet: {self.mesh.founding_status}.",
                "See /status for what it waits for.",
            )
        return self._group

    # -- writing ----------------------------------------------------------------------------------------------------

    async def submit(self, body: bytes, key: str | None = None) -> Submitted:
        """Accepts a session from its JSON body; durable when answered. A repeat of the same submission (same id or
        key, same body) is answered with the session as it stands."""
        self.disk.check_new_work()
        command = (await self.parse(body, key)).command
        command = msgspec.structs.replace(command, offer=self._offer(command.branches[0].ritual))
        answer = await self.propose(command)
        status = self.status
        session = self.read(lambda txn: queries.get_session(txn, command.session_id))
        is_new = session.submit_index == answer.index if session is not None else answer.changed > 0
        index = session.submit_index if session is not None else answer.index
        return Submitted(session, index, max(index, status.applied_index), status.leader, command, is_new)

    async def parse(self, body: bytes, key: str | None = None) -> Submission:
        def parse() -> Submission:
            return parse_submission(
                decode_body(body),
                key=key,
                fresh_id=SessionId(str(uuid.uuid4())),
                find_ritual=self._find_ritual,
                offered=self._offered_names,
                submitted_by=self.facts.node_id,
                now_ms=self.now_ms(),
                earlier=lambda session_id: self.read(lambda txn: queries.branches_by_index(txn, session_id)),
            )

        return parse() if len(body) <= INLINE_BODY_BYTES_MAX else await asyncio.to_thread(parse)

    async def cancel(self, session_id: SessionId, reason: str) -> Reading[Session]:
        """Cancels what is not terminal; a finished session is answered as it stands."""
        command = CancelSession(session_id=session_id, reason=reason[:REASON_CHARACTERS_MAX], at_ms=self.now_ms())
        await self.propose(command)
        return await self.get_session(session_id)

    # -- reading ----------------------------------------------------------------------------------------------------

    async def get_session(self, session_id: SessionId, wanted: Wanted = STALE) -> Reading[Session]:
        return await self._reading(lambda txn: self._session(txn, session_id), wanted)

    async def wait_session(
        self, session_id: SessionId, wait_s: float, until: Until = "change", rev: int | None = None,
        wanted: Wanted = STALE,
    ) -> Reading[Session]:  # fmt: skip
        """Answers when the session is terminal, or (`until="change"`) has changed after `rev` (without it: after now),
        or `wait_s` is over: then as it stands."""
        with self.hub.waiting(session_id, only_terminal=until == "terminal") as waiter:
            reading = await self.get_session(session_id, wanted)
            since = reading.value.rev if rev is None else rev
            if _is_reached(reading.value, until, since):
                return reading
            with suppress(TimeoutError):
                async with asyncio.timeout(min(wait_s, WAIT_S_MAX)):
                    while not _is_reached((await self.get_session(session_id)).value, until, since):
                        await waiter.woken.wait()
                        waiter.woken.clear()
            return await self.get_session(session_id, wanted)

    async def list_sessions(
        self, *, after: str | None, limit: int, status: SessionStatus | None, wanted: Wanted = STALE
    ) -> Reading[Page[Session]]:
        """Newest first."""
        cursor = number_cursor(after, "after")

        def read(txn: Transaction) -> Page[Session]:
            def fetch(start: int | None, count: int) -> list[Session]:
                return queries.list_sessions(txn, after=start, limit=count)

            if status is None:
                return full_page(fetch(cursor, limit), limit, submit_index)
            return scan(fetch, cursor, limit, submit_index, lambda row: row.status == status)

        return await self._reading(read, wanted, limit, is_scan=status is not None)

    async def list_branches(
        self, session_id: SessionId, *, after: str | None, limit: int, status: BranchStatus | None,
        wanted: Wanted = STALE,
    ) -> Reading[Page[tuple[Branch, LiveView | None]]]:  # fmt: skip
        """By index; the consolidation is not among them."""
        cursor = number_cursor(after, "after")

        def read(txn: Transaction) -> Page[Branch]:
            self._session(txn, session_id)
            return branches_page(txn, session_id, cursor, limit, status)

        reading = await self._reading(read, wanted, limit, is_scan=status is not None)
        page = reading.value
        return reading.of(Page([(row, self._live_of(row)) for row in page.rows], page.next))

    async def get_branch(self, branch_id: BranchId, wanted: Wanted = STALE) -> Reading[BranchDetail]:
        def read(txn: Transaction) -> BranchDetail:
            branch = queries.find_branch(txn, branch_id)
            if branch is None:
                raise ServiceError(
                    "unknown_branch", f"No branch has the id {branch_id!r}.", "See the session's branches."
                )
            return self._branch_detail(txn, branch)

        return await self._reading(read, wanted)

    async def get_branch_at(self, session_id: SessionId, index: int, wanted: Wanted = STALE) -> Reading[BranchDetail]:
        """By session and index; the index after the last branch is the consolidation."""

        def read(txn: Transaction) -> BranchDetail:
            session = self._session(txn, session_id)
            branch = queries.get_branch(txn, session_id, index) if 0 <= index <= session.total_branches else None
            if branch is None:
                raise ServiceError(
                    "unknown_branch", f"Session {session_id} has no branch {index}.",
                    f"Its branches are 0 to {session.total_branches - 1}.",
                )  # fmt: skip
            return self._branch_detail(txn, branch)

        return await self._reading(read, wanted)

    async def get_insight(
        self, session_id: SessionId, *, after: str | None, limit: int, wanted: Wanted = STALE
    ) -> Reading[InsightDetail]:
        cursor = number_cursor(after, "after")

        def read(txn: Transaction) -> InsightDetail:
            session = self._session(txn, session_id)
            insight = queries.get_insight(txn, session_id)
            if insight is None:
                raise no_insight(session)
            return InsightDetail(insight, session, branches_page(txn, session_id, cursor, limit, "completed"))

        return await self._reading(read, wanted, limit, is_scan=True)

    async def list_insights(self, *, after: str | None, limit: int, wanted: Wanted = STALE) -> Reading[Page[Insight]]:
        """Newest first."""
        cursor = number_cursor(after, "after")

        def read(txn: Transaction) -> Page[Insight]:
            return full_page(queries.list_insights(txn, after=cursor, limit=limit), limit, lambda row: row.number)

        return await self._reading(read, wanted, limit)

    def names(self) -> dict[NodeId, str]:
        """Of every node that is known here, by id: registered, linked, or this one."""
        try:
            known = {member.node_id: member.name for member in self.read(queries.members)}
        except ServiceError:
            known = {}
        known.update({peer.node_id: peer.name for peer in self.mesh.peers() if peer.name})
        known[self.facts.node_id] = self.facts.name
        return known

    async def members(self, wanted: Wanted = STALE) -> Reading[list[Member]]:
        return await self._reading(queries.members, wanted)

    async def rituals(self, wanted: Wanted = STALE) -> Reading[list[RitualView]]:
        """What this node or any member offers, by name."""
        reading = await self.members(wanted)
        names = sorted(set(self.registry).union(*(member.rituals for member in reading.value)))
        return reading.of([self._ritual_view(name, reading.value) for name in names])

    async def ritual(self, name: str, wanted: Wanted = STALE) -> Reading[RitualView]:
        reading = await self.rituals(wanted)
        for view in reading.value:
            if view.name == name:
                return reading.of(view)
        near = difflib.get_close_matches(name, [view.name for view in reading.value], n=1)
        raise ServiceError(
            "unknown_ritual", f"No member of the mesh offers the ritual {name[:80]!r}.",
            f"Did you mean {near[0]!r}?" if near else "See GET /v1/rituals.", nearest=near[0] if near else None,
        )  # fmt: skip

    def ritual_problems(self) -> list[dict[str, Any]]:
        """Rituals that this node was told of and cannot offer."""
        return [dict(problem._asdict()) for problem in self.registry.problems]

    def _ritual_view(self, name: str, members: list[Member]) -> RitualView:
        own = self.registry.get(name)
        offers = [
            {
                "node_id": member.node_id,
                "name": member.name,
                "status": member.status,
                "version": offer.version,
                "kind": offer.kind,
            }
            for member in members
            if (offer := member.rituals.get(name)) is not None
        ]
        return RitualView(name, own, offers)

    @asynccontextmanager
    async def backup(self) -> AsyncIterator[BackupPort]:
        """Of everything this node's replica has applied by now. Raises `overloaded`, `disk_low`, `quarantined`..."""
        self.read(lambda txn: None)
        async with self._backups.take() as backup:
            yield backup

    # -- watching ---------------------------------------------------------------------------------------------------

    def newest_cursor(self) -> Cursor:
        """Everything up to here has happened; a watcher from here sees what comes."""
        return (self.status.applied_index, WHOLE_INDEX)

    def watch(self, after: Cursor, idle_s: float) -> AsyncGenerator[EventPage, None]:
        """See `EventHub.watch`."""
        return self.hub.watch(after, idle_s)

    def check_cursor(self, cursor: Cursor) -> None:
        """Raises `events_gone` if events after `cursor` are no longer kept, `overloaded` if there is no room,
        `replica_stopped` if none will come."""
        if self.replica_failure is not None:
            raise ServiceError("replica_stopped", self.replica_failure, "Watch on another node.")
        self.hub.check_room()
        applied_index = self.status.applied_index
        self.read(lambda txn: check_cursor(txn, cursor, applied_index))

    def _events_page(self, cursor: Cursor, limit: int) -> tuple[list[Numbered], Cursor]:
        applied_index = self.status.applied_index  # before the snapshot: it holds at least that

        def read(txn: Transaction) -> tuple[list[Numbered], Cursor]:
            check_cursor(txn, cursor, applied_index)
            events = queries.events_since(txn, cursor[0], cursor[1], limit)
            if events:
                return events, cursor_of(events[-1])
            # nothing up to here: move on, so that an idle watcher's place is never pruned
            return [], max(cursor, (applied_index, WHOLE_INDEX))

        return self.read(read)

    # -- inside -----------------------------------------------------------------------------------------------------

    async def propose(self, command: AnyCommand) -> Applied:
        self.disk.check_writing()
        try:
            answer = await self._attached().propose(command, PROPOSE_S)
        except ConsensusError as error:
            raise of_consensus(error) from error
        if isinstance(answer, Refused):
            raise of_refusal(answer)
        return answer

    async def fresh(self, wanted: Wanted) -> int | None:
        """When this returns, this node's replica is as fresh as is wanted: its age in ms; None: not known."""
        group = self._attached()
        try:
            match wanted.level:
                case "linearizable":
                    await group.barrier(FRESH_S)
                    return 0
                case "leader":
                    await group.catch_up(FRESH_S)
                case "stale":
                    pass
        except ConsensusError as error:
            raise of_consensus(error) from error
        age_ms = self.age_ms()
        if wanted.max_age_ms is not None and (age_ms is None or age_ms > wanted.max_age_ms):
            raise too_stale(age_ms, wanted.max_age_ms)
        return age_ms

    def age_ms(self) -> int | None:
        """Of this node's replica; None: not known. See `Group.age_s`."""
        age_s = None if self._group is None else self._group.age_s()
        return None if age_s is None else ceil(age_s * 1000)

    def read(self, query: Callable[[Transaction], T]) -> T:
        """On one snapshot of this node's replica. Raises `ServiceError`: `quarantined`, `unavailable`."""
        try:
            with self._attached().read() as txn:
                return query(txn)
        except ConsensusError as error:  # quarantined
            raise of_consensus(error) from error
        except StorageError as error:
            raise ServiceError("unavailable", f"The store cannot be read: {error}", "Ask another node.") from error

    async def _reading(
        self, query: Callable[[Transaction], T], wanted: Wanted, rows: int = 1, *, is_scan: bool = False
    ) -> Reading[T]:
        """`rows`: how many are read at most; many are read on another thread."""
        age_ms = await self.fresh(wanted)
        status = self.status  # before the snapshot, which then holds at least that
        if rows <= INLINE_ROWS_MAX and not is_scan:
            value = self.read(query)
        else:
            value = await asyncio.to_thread(self.read, query)
        return Reading(value, status.applied_index, wanted.level, age_ms, status.leader)

    def _session(self, txn: Transaction, session_id: SessionId) -> Session:
        session = queries.get_session(txn, session_id)
        if session is None:
            raise ServiceError(
                "unknown_session", f"No session has the id {session_id!r} here.",
                "See GET /v1/sessions; a session submitted through another node a moment ago is found with "
                "level=linearizable.",
            )  # fmt: skip
        return session

    def _branch_detail(self, txn: Transaction, branch: Branch) -> BranchDetail:
        knowledge = queries.get_result(txn, branch.session_id, branch.branch_index)
        attempts = list(queries.list_attempts(txn, branch.session_id, branch.branch_index))
        return BranchDetail(branch, knowledge, attempts, self._live_of(branch))

    def _live_of(self, branch: Branch) -> LiveView | None:
        return self._live.get(branch.session_id, branch.branch_index, branch.attempt)

    def _find_ritual(self, name: str) -> RitualPort | None:
        return self.registry.get(name)

    def _offered_names(self) -> frozenset[str]:
        """Names of rituals that this node or a living member offers."""
        own = frozenset(self.registry)
        return own.union(*(member.rituals for member in self.read(queries.members) if member.status == "alive"))


def _is_reached(session: Session, until: Until, since: int) -> bool:
    return session.status in TERMINAL or (until == "change" and session.rev > since)
