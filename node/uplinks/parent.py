"""The Leaf nodes that hang on this node, and what it does for them in the replicated state.

Rules:
- what is assigned to a Leaf is pushed to it from applied events, so it is durable before it starts; and again from the
  leases whenever it registers, so nothing that was lost on the way matters.
- outcomes are recorded by this node's reporter and answered when the state machine has answered. Each report carries
  the proof of the Leaf that made it; a Leaf delivers what a former start of it left before it registers.
- a Leaf whose uplink is gone is said to be dead by its parent alone, and only as long as it is registered here.
- a parent that takes no Leaf any more (it drains, or its disk takes nothing) sends those that it has to others, and
  keeps who cannot go.
- a Leaf that is attached here and registered elsewhere, or dead, is told to register again: the last word is its own.
  One that has left is told too, and refused: so it hears of it. It stays attached, for its results and its clients.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from consensus.errors import ConsensusError
from consensus.state import queries
from consensus.state.commands import Answer, AnyCommand, Outcome, Refused, RegisterMember, SetMemberStatus
from consensus.state.events import MemberRegistered, MemberStatusChanged, Numbered
from consensus.state.rows import Lease, Member
from mesh.errors import MeshError
from mesh.handshake import Hello
from mesh.identity import is_proven
from mesh.parents import Alternative, Load, moves
from node.executor.work import AttemptKey
from node.service.ports import NodeFacts
from node.uplinks import messages
from node.uplinks.errors import UplinkError
from node.uplinks.limits import (
    ALTERNATIVES_MAX,
    ATTACH_S,
    BALANCE_PERIOD_S,
    GONE_MS,
    LOOK_S,
    OUTCOMES_PER_MESSAGE_MAX,
    PHRASES_MAX,
    RECORD_S,
    RECORDING_BYTES_MAX,
    TELL_PERIOD_S,
    UPLINKS_MAX,
)
from node.uplinks.line import Line
from node.uplinks.messages import Attach, Attached, Register, Registered, SignedOutcomes, Told, Verdict
from node.work import Assignments, Consensus, Reporter
from storage.errors import StorageError
from storage.ids import InstanceId, NodeId

REGISTER_S = 10.0
BURY_S = 1.0
"""For saying that a Leaf is dead; nothing else is looked at meanwhile."""

log = structlog.get_logger()


class MeshPort(Protocol):
    """What is needed of `mesh.mesh.Mesh`."""

    def notify(self, peer: NodeId, topic: str, payload: bytes) -> bool: ...
    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes: ...
    def serve(self, method: str, server: Callable[[NodeId, bytes], Coroutine[Any, Any, bytes]]) -> None: ...
    def hello_of(self, peer: NodeId) -> Hello | None: ...
    def addresses_for(self, peer: NodeId, listener: NodeId) -> tuple[str, ...]: ...
    def close_link(self, peer: NodeId, code: str, message: str) -> None: ...


@dataclass(slots=True)
class _Leaf:
    """One that is attached."""

    node_id: NodeId
    instance_id: InstanceId
    name: str
    line: Line
    since: float
    pushing: asyncio.Task[None] | None = None
    is_registered: bool = False
    told: Told | None = None


class Parent:
    """`leader()` is whom this node follows. `accepts()` answers why no Leaf is taken at the moment; empty: they are."""

    def __init__(
        self,
        facts: NodeFacts,
        mesh: MeshPort,
        consensus: Consensus,
        assignments: Assignments,
        reporter: Reporter,
        leader: Callable[[], NodeId | None],
        accepts: Callable[[], str],
        now_ms: Callable[[], int],
    ) -> None:
        self._facts = facts
        self._mesh = mesh
        self._consensus = consensus
        self._assignments = assignments
        self._reporter = reporter
        self._leader = leader
        self._accepts = accepts
        self._now_ms = now_ms
        self._knocking: dict[NodeId, float] = {}
        self._leaves: dict[NodeId, _Leaf] = {}
        self._gone: dict[NodeId, tuple[InstanceId, float]] = {}
        self._recording: dict[tuple[NodeId, AttemptKey], asyncio.Future[None]] = {}
        self._recording_bytes = 0
        self._settled_at = time.monotonic()
        mesh.serve(messages.ATTACH, self._attach)
        mesh.serve(messages.REPORT, self._report)
        mesh.serve(messages.REGISTER, self._register)
        mesh.serve(messages.SEEN, self._seen)

    def capacity(self) -> tuple[int, int] | None:
        """For the Hello: how many hang here, and how many may; None while none is taken."""
        return None if self._accepts() else (len(self._leaves), UPLINKS_MAX)

    def has(self, node_id: NodeId) -> bool:
        return node_id in self._leaves

    def leaves(self) -> list[dict[str, object]]:
        """For the status."""
        now = time.monotonic()
        return [
            {"node_id": leaf.node_id, "name": leaf.name, "registered": leaf.is_registered, "since_s": now - leaf.since}
            for leaf in self._leaves.values()
        ]

    # --- links come and go ---

    def link_up(self, hello: Hello) -> None:
        """Of a Leaf; it has to attach next."""
        self._drop(hello.node_id)
        self._knocking[hello.node_id] = time.monotonic()

    def link_down(self, node_id: NodeId) -> None:
        self._knocking.pop(node_id, None)
        self._drop(node_id)

    def _drop(self, node_id: NodeId) -> None:
        leaf = self._leaves.pop(node_id, None)
        if leaf is None:
            return
        self._assignments.leave(node_id)
        if leaf.pushing is not None:
            leaf.pushing.cancel()
        self._gone[node_id] = (leaf.instance_id, time.monotonic())
        log.info("leaf_detached", leaf=node_id, name=leaf.name)

    def stop(self) -> None:
        for leaf in self._leaves.values():
            if leaf.pushing is not None:
                leaf.pushing.cancel()

    def _send_away(self) -> None:
        members = self._members()
        for number, leaf in enumerate(self._leaves.values()):
            alternatives = self._alternatives(leaf.node_id, members)
            if alternatives:
                to = alternatives[number % len(alternatives)]
                self._mesh.notify(leaf.node_id, messages.MOVE, messages.encode(to))

    # --- what a Leaf asks ---

    async def _attach(self, peer: NodeId, payload: bytes) -> bytes:
        asked, hello = messages.decode(payload, Attach), self._mesh.hello_of(peer)
        if hello is None:
            raise UplinkError("not_attached", "the link is gone")
        self._knocking.pop(peer, None)
        told = self._told(peer, self._members())
        refusal, detail = self._accepts(), ""
        if refusal:
            detail = f"{self._facts.name} takes no Leaf at the moment ({refusal})"
        elif peer not in self._leaves and len(self._leaves) >= UPLINKS_MAX:
            refusal, detail = "full", f"{UPLINKS_MAX} Leaf nodes hang on {self._facts.name} already"
        if refusal:
            return messages.encode(Attached(told=told, refusal=refusal, detail=detail))
        self._drop(peer)
        self._gone.pop(peer, None)
        line = Line(
            lambda method, body, timeout_s: self._mesh.request(peer, method, body, timeout_s),
            lambda topic, body: self._mesh.notify(peer, topic, body),
        )
        leaf = _Leaf(peer, hello.instance_id, asked.name, line, time.monotonic(), told=told)
        leaf.pushing = asyncio.create_task(self._push(leaf), name=f"work of leaf {peer}")
        self._leaves[peer] = leaf
        self._settled_at = time.monotonic()
        log.info("leaf_attached", leaf=peer, name=asked.name, leaves=len(self._leaves))
        return messages.encode(Attached(told=told))

    async def _push(self, leaf: _Leaf) -> None:
        try:
            await leaf.line.run()
        except MeshError as error:
            if self._leaves.get(leaf.node_id) is leaf:
                log.warning("leaf_takes_no_work", leaf=leaf.node_id, name=leaf.name, reason=str(error))
                leaf.pushing = None
                self._mesh.close_link(leaf.node_id, "not_reading", "work that was pushed was not taken in time")

    async def _register(self, peer: NodeId, payload: bytes) -> bytes:
        leaf, offer = self._attached(peer), messages.decode(payload, Register)
        command = RegisterMember(
            node_id=peer,
            instance_id=leaf.instance_id,
            name=offer.name,
            tier="leaf",
            address="",
            http_address=offer.http_address,
            slots=offer.slots,
            async_slots=offer.async_slots,
            rituals=offer.rituals,
            software=offer.software,
            at_ms=offer.at_ms,
            parent=self._facts.node_id,
            parent_instance=self._facts.instance_id,
            labels=offer.labels,
            ritual_limits=offer.ritual_limits,
        )
        self._assignments.serve(peer, leaf.instance_id, leaf.line)
        answer = await self._propose(command, REGISTER_S)
        if isinstance(answer, Refused):
            raise UplinkError(answer.code, answer.message)
        if self._leaves.get(peer) is not leaf:
            raise UplinkError("not_attached", "the uplink has changed meanwhile")
        leaf.is_registered = True
        with self._consensus.read() as txn:
            leases = [lease for lease in queries.leases(txn) if lease.instance_id == leaf.instance_id]
        current = {AttemptKey(lease.session_id, lease.branch_index, lease.attempt) for lease in leases}
        working = set(offer.running)
        self._assignments.start_leased(lease for lease in leases if _key(lease) not in working)
        return messages.encode(Registered(stop=[key for key in offer.running if key not in current]))

    async def _report(self, peer: NodeId, payload: bytes) -> bytes:
        self._attached(peer)
        signed = messages.decode(payload, SignedOutcomes)
        is_its_own = is_proven(peer, signed.proof, messages.signable(self._facts.mesh_name, signed.contents))
        verdicts: list[Verdict] = []
        outcomes: list[tuple[Outcome, int]] = []
        for content in signed.contents[:OUTCOMES_PER_MESSAGE_MAX]:
            outcome = messages.outcome_of(content)
            if outcome is None:  # of another version, kept on the disk: it must not keep the Leaf from registering
                log.warning("outcome_not_read", leaf=peer, size_bytes=len(content))
            elif is_its_own and outcome.node_id == peer:
                outcomes.append((outcome, len(content)))
            else:
                log.warning("outcome_not_proven", leaf=peer, session=outcome.session_id, branch=outcome.branch_index)
                verdicts.append(Verdict(key=messages.key_of(outcome), result="refused"))
        try:
            async with asyncio.timeout(RECORD_S):
                await asyncio.gather(*[self._record(peer, outcome, size_bytes) for outcome, size_bytes in outcomes])
        except TimeoutError:
            raise UplinkError("not_recorded_yet", "no majority has answered: report again") from None
        with self._consensus.read() as txn:
            for outcome, _ in outcomes:
                branch = queries.get_branch(txn, outcome.session_id, outcome.branch_index)
                is_current = branch is not None and branch.attempt == outcome.attempt
                is_recorded = outcome.knowledge is None or (
                    is_current and branch is not None and branch.status in ("completed", "failed")
                )
                verdicts.append(
                    Verdict(key=messages.key_of(outcome), result="recorded" if is_recorded else "superseded")
                )
        return messages.encode(verdicts)

    def _record(self, peer: NodeId, outcome: Outcome, size_bytes: int) -> asyncio.Future[None]:
        """Once, however often the Leaf repeats it while it waits, also over another uplink."""
        key = (peer, messages.key_of(outcome))
        waiting = self._recording.get(key)
        if waiting is None:
            if self._recording and self._recording_bytes + size_bytes > RECORDING_BYTES_MAX:
                raise UplinkError("busy", "too many outcomes wait for a majority: report again later")
            waiting = self._recording[key] = asyncio.get_running_loop().create_future()
            self._recording_bytes += size_bytes

            def answered() -> None:
                if (future := self._recording.pop(key, None)) is not None:
                    self._recording_bytes -= size_bytes
                    future.set_result(None)

            self._reporter.add(outcome, answered)
        return asyncio.shield(waiting)

    async def _seen(self, peer: NodeId, payload: bytes) -> bytes:
        self._attached(peer)
        phrases = messages.decode(payload, list[str])[:PHRASES_MAX]
        with self._consensus.read() as txn:
            return messages.encode(queries.pattern_counts(txn, phrases))

    def _attached(self, peer: NodeId) -> _Leaf:
        leaf, hello = self._leaves.get(peer), self._mesh.hello_of(peer)
        if leaf is None or hello is None or hello.instance_id != leaf.instance_id:
            raise UplinkError("not_attached", "attach first")
        return leaf

    async def _propose(self, command: AnyCommand, deadline_s: float) -> Answer:
        try:
            return await self._consensus.propose(command, deadline_s)
        except ConsensusError as error:
            raise UplinkError("not_registered_yet", str(error)) from error

    # --- what the state tells ---

    def on_events(self, events: Iterable[Numbered]) -> None:
        """With every applied event, in order."""
        for numbered in events:
            match numbered.event:
                case MemberRegistered() | MemberStatusChanged() as event if event.node_id in self._leaves:
                    self._check(self._leaves[event.node_id])
                case MemberRegistered() as event:  # here perhaps, only after its uplink is gone: it was under way
                    self._gone[event.node_id] = (event.instance_id, time.monotonic())
                case _:
                    pass

    def _check(self, leaf: _Leaf) -> None:
        """Somebody has said of an attached Leaf what is not so any more."""
        member = self._member(leaf.node_id)
        if leaf.is_registered and not self._is_here(member, leaf.instance_id):
            self._mesh.notify(leaf.node_id, messages.AGAIN, b"")

    def _is_here(self, member: Member | None, instance_id: InstanceId) -> bool:
        return (
            member is not None
            and member.instance_id == instance_id
            and member.parent_instance == self._facts.instance_id
            and member.status not in ("dead", "left")
        )

    def _member(self, node_id: NodeId) -> Member | None:
        try:
            with self._consensus.read() as txn:
                return queries.get_member(txn, node_id)
        except (ConsensusError, StorageError):
            return None

    # --- what is done without being asked ---

    async def run(self) -> None:
        """Until cancelled."""
        told_at = balanced_at = time.monotonic()
        sent_away_at = float("-inf")
        while True:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            for node_id, since in list(self._knocking.items()):
                if now - since >= ATTACH_S:
                    del self._knocking[node_id]
                    self._mesh.close_link(node_id, "not_attached", f"no request to attach within {ATTACH_S:g} s")
            if self._gone:
                await self._bury(now)
            if self._leaves and now - told_at >= TELL_PERIOD_S:
                told_at = now
                self._tell()
            if self._leaves and now - sent_away_at >= BALANCE_PERIOD_S and self._accepts():
                sent_away_at = now
                self._send_away()
            if self._leaves and now - max(balanced_at, self._settled_at) >= BALANCE_PERIOD_S:
                balanced_at = now
                self._balance()

    async def _bury(self, now: float) -> None:
        """Says of Leaf nodes that are gone for too long that they are dead, unless they hang on another node by now."""
        for node_id, (instance_id, since) in list(self._gone.items()):
            if (now - since) * 1000 < GONE_MS:
                continue
            try:
                with self._consensus.read() as txn:
                    member = queries.get_member(txn, node_id)
            except (ConsensusError, StorageError):
                return  # the next look may see more
            if member is None or not self._is_here(member, instance_id):
                self._gone.pop(node_id, None)
                continue
            status = SetMemberStatus(
                node_id=node_id,
                instance_id=instance_id,
                status="dead",
                at_ms=self._now_ms(),
                registered_at_ms=member.registered_at_ms,
            )
            try:
                await self._consensus.propose(status, BURY_S)
            except ConsensusError:
                return  # no leader: the next look says it again, if it is still so

    def _tell(self) -> None:
        members = self._members()
        for leaf in self._leaves.values():
            told = self._told(leaf.node_id, members)
            if told != leaf.told:
                leaf.told = told
                self._mesh.notify(leaf.node_id, messages.TOLD, messages.encode(told))

    def _told(self, leaf: NodeId, members: Sequence[Member]) -> Told:
        leader = self._leader()
        row = next((member for member in members if member.node_id == leader), None)
        return Told(
            parent=self._facts.node_id,
            name=self._facts.name,
            tier=self._facts.tier,
            leader=leader,
            leader_name="" if row is None else row.name,
            alternatives=self._alternatives(leaf, members),
        )

    def _members(self) -> list[Member]:
        try:
            with self._consensus.read() as txn:
                return [row for row in queries.members(txn) if row.status == "alive"]
        except (ConsensusError, StorageError):
            return []

    def _loads(self, members: Sequence[Member]) -> list[Load]:
        taken: dict[NodeId, int] = {}
        for member in members:
            if member.parent is not None:
                taken[member.parent] = taken.get(member.parent, 0) + 1
        return [
            Load(row.node_id, row.tier, taken.get(row.node_id, 0))
            for row in members
            if row.tier != "leaf" and not row.is_draining
        ]

    def _alternatives(self, leaf: NodeId, members: Sequence[Member]) -> list[Alternative]:
        """In the order of their ids, so that what is told changes only when there is news."""
        rows = {row.node_id: row for row in members}
        found = []
        for load in sorted(self._loads(members), key=lambda load: load.burden):
            addresses = self._mesh.addresses_for(load.node_id, leaf)
            if load.node_id != self._facts.node_id and addresses:
                row = rows[load.node_id]
                found.append(Alternative(row.node_id, row.name, row.tier, addresses))
        return sorted(found[:ALTERNATIVES_MAX], key=lambda one: one.node_id)

    def _balance(self) -> None:
        members = self._members()
        for target, count in moves(self._facts.node_id, self._loads(members)).items():
            to = {one.node_id: one for one in self._alternatives(next(iter(self._leaves)), members)}.get(target)
            if to is None:
                continue
            latest = sorted(self._leaves.values(), key=lambda leaf: -leaf.since)
            for leaf in latest[:count]:
                self._mesh.notify(leaf.node_id, messages.MOVE, messages.encode(to))
            log.info("leaves_asked_to_move", to=to.name, leaves=count)


def _key(lease: Lease) -> AttemptKey:
    return AttemptKey(lease.session_id, lease.branch_index, lease.attempt)
