"""What a node does in a founded mesh: it votes, leads if elected, executes its share of the work and reports it."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

import msgspec
import structlog

from consensus.autopilot import Policy
from consensus.changes import Changes
from consensus.engine import Role
from consensus.errors import ConsensusError
from consensus.group import Group
from consensus.machine import DomainMachine
from consensus.state import queries, versions
from consensus.state.commands import Applied, RegisterMember
from consensus.state.encoding import is_submission
from consensus.state.events import MemberRegistered, Numbered
from consensus.state.rows import Lease, Member
from consensus.steps import ReplicaStatus
from mesh.mesh import Mesh
from mesh.tiers import holds_replica, may_vote
from node.disk import DiskWatch
from node.executor.executor import Executor
from node.live import LiveBoard
from node.lookout import Lookout
from node.pulse import Pulse
from node.rituals.registry import Registry
from node.scheduler.dispatcher import Dispatcher
from node.service.ports import NodeFacts
from node.service.times import now_ms
from node.snapshots import Snapshots, Workshop
from node.steward import Steward
from node.uplinks import messages
from node.uplinks.parent import Parent
from node.work import Assignments, Places, Reporter
from storage.environment import Environment
from storage.errors import StorageError
from storage.ids import NodeId
from storage.space import Space
from storage.transactions import Transaction

REGISTER_DEADLINE_S = 10.0
REGISTER_PAUSE_S = 0.5

SAY_THE_REST_LOOK_S = 1.0

GIVE_WAY_LOOK_S = 1.0
GIVE_WAY_AGAIN_S = 60.0
"""When all disks are nearly full, leadership goes round this often and not more: each time costs some milliseconds."""

LONELY_S = 5.0
"""A node that has followed nobody, or whose disk has hung, for so long cannot do anything for its Leaf nodes: others
may be better off. Longer than any election."""

FAREWELL_S = 0.5
"""For telling the mesh that this node takes no more work."""

log = structlog.get_logger()


class Host(Protocol):
    """The daemon, as far as its share needs it."""

    node_id: NodeId
    facts: NodeFacts
    store: Environment
    mesh: Mesh
    registry: Registry
    executor: Executor
    live: LiveBoard
    disk: DiskWatch

    @property
    def workshop(self) -> Workshop: ...

    def own(self, name: str, work: Coroutine[Any, Any, None]) -> None: ...

    @property
    def lookout(self) -> Lookout: ...

    def on_replica_failure(self, error: Exception, is_final: bool) -> None: ...


class RegistrationRefused(Exception):
    """The mesh does not take this node as a member; the message says why."""


class Share:
    """Made when the mesh is founded. `tasks` are to be run by the host; `register` first makes the node a member."""

    def __init__(self, node: Host, voters: tuple[NodeId, ...], policy: Policy | None = None) -> None:
        """`voters` are those of the founding; a node that is none of them joins as a learner."""
        self.group = Group(
            node.node_id,
            voters if node.node_id in voters else (),
            node.store,
            DomainMachine(),
            node.mesh,
            on_failure=node.on_replica_failure,
            refuses=self._refuses,
        )
        self._node_id, self._instance_id = node.node_id, node.facts.instance_id
        self._disk, self._mesh, self._executor = node.disk, node.mesh, node.executor
        self._own = node.own
        self._is_cut = False
        """The registration lacks what older members do not know."""
        kinds = {name: ritual.kind for name, ritual in node.registry.items()}
        self._unlimited = {name for name, ritual in node.registry.items() if ritual.concurrency is None}
        self._bound: bool | None = None
        self.places = Places(node.node_id, node.facts.instance_id, kinds, node.executor, self._is_bound)
        self.reporter = Reporter(self.group, self.places, now_ms)
        self.dispatcher = Dispatcher(node.node_id, self.group, node.lookout.outlook, now_ms)
        self._live = node.live
        self._assignments = Assignments(self.group, node.own)
        self._assignments.serve(node.node_id, node.facts.instance_id, node.executor)
        self.parent = Parent(
            node.facts, node.mesh, self.group, self._assignments, self.reporter,
            lambda: self.group.status().leader, self._takes_no_leaf, now_ms,
        )  # fmt: skip
        node.mesh.uplinks = self.parent.capacity
        self._parents: dict[NodeId, NodeId | None] = {}
        node.live.parent_of = self._parent_of
        self.snapshots = Snapshots(node.node_id, self.group, node.mesh.request, node.workshop)
        self._lookout = node.lookout
        self.changes = Changes(self.group, node.mesh, self._may_join, lambda peer: peer not in self._unfit())
        self.steward = Steward(
            node.node_id,
            self.group,
            self.changes,
            node.lookout.linked,
            self._unfit,
            policy or Policy(),
            self.has_left,
            self._reserve,
        )
        self._pulse = Pulse(node.node_id, self.group, self._leads, now_ms)
        self._hello_of = node.mesh.hello_of
        self._leader: NodeId | None = None
        self._lonely_since: float | None = None
        # Each for itself: the fault of one is not that of the others.
        watchers = (self._live.on_events, self._assignments.on_events, self._on_members, self.parent.on_events)
        for watch in (*watchers, lambda events: self.dispatcher.wake()):
            self.group.subscribe_events(watch)
        for follow in (self._on_installed, self._on_role, self._on_leader):
            self.group.subscribe_status(follow)

    def tasks(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        yield "reporter", self.reporter.run()
        yield "dispatcher", self.dispatcher.run()
        yield "pulse", self._pulse.run()
        yield "live", self._live.run()
        yield "snapshots", self.snapshots.run()
        yield "check of rows", self.snapshots.check()
        yield "give way", self._give_way()
        yield "steward", self.steward.run()
        yield "uplinks", self.parent.run()

    async def register(self, command: Callable[[], RegisterMember]) -> None:
        """Becomes a member with this instance; what a former instance was doing is requeued by it. Raises
        RegistrationRefused if the mesh does not want it."""
        self._note_leases()
        told = ""
        while True:
            try:
                answer = await self.group.propose(self._sayable(command()), REGISTER_DEADLINE_S)
            except ConsensusError as error:
                if told != error.code:
                    told = error.code
                    log.warning("not_registered_yet", code=error.code, reason=str(error))
                await asyncio.sleep(REGISTER_PAUSE_S)
                continue
            if isinstance(answer, Applied):
                log.info("registered")
                if self._is_cut:
                    self._own("registration", self._say_the_rest(command))
                return
            if answer.code == "has_left":  # meanwhile; whoever looks at the status is told
                log.warning("not_registered", reason=answer.message)
                return
            if answer.code != "stale_registration":  # a newer one of ours is on its way: say it again with a fresh time
                raise RegistrationRefused(f"the mesh refused this node ({answer.code}): {answer.message}")

    def _sayable(self, command: RegisterMember) -> RegisterMember:
        """Without what older nodes of the mesh do not understand; it is said once they are upgraded."""
        with self.group.read() as txn:
            self._is_cut = self._goes_too_far(txn, versions.PLACEMENT_VERSION)
        return msgspec.structs.replace(command, labels={}, ritual_limits={}) if self._is_cut else command

    async def _say_the_rest(self, command: Callable[[], RegisterMember]) -> None:
        """Once nobody is left that does not understand it."""
        while self._is_cut:
            await asyncio.sleep(SAY_THE_REST_LOOK_S)
            with contextlib.suppress(ConsensusError, StorageError), self.group.read() as txn:
                self._is_cut = self._goes_too_far(txn, versions.PLACEMENT_VERSION)
        await self.register(command)

    def _goes_too_far(self, txn: Transaction, version: int) -> bool:
        """Whether a member does not know this command version, or a node that is about to be one."""
        return bool(versions.behind(queries.members(txn), version)) or self._waits_for_newcomer(txn, version)

    def _waits_for_newcomer(self, txn: Transaction, version: int) -> bool:
        """Whether one is linked that does not know this command version, as when a mesh has just been founded. What
        the mesh uses already waits for nobody."""
        if queries.version_used(txn) >= version:
            return False
        hellos = [hello for peer in self._lookout.linked() if (hello := self._hello_of(peer)) is not None]
        return any(holds_replica(hello.tier) and versions.known_to(hello.software) < version for hello in hellos)

    async def take_no_more(self, command: RegisterMember) -> None:
        """Tells the scheduler that this node has no places; without a majority nobody assigns anything anyway. Who has
        left says nothing: it would be taken for coming back."""
        if self.has_left():
            return
        with contextlib.suppress(ConsensusError):
            await self.group.propose(self._sayable(command), FAREWELL_S)

    def _refuses(self, command: bytes) -> str | None:
        """What this node does not take as the leader, whoever has taken it in."""
        if self._disk.space is not Space.OK and is_submission(command):
            return "disk_low"
        if command[:1] > b"\x01":
            with self.group.read() as txn:
                return "newer_command" if self._waits_for_newcomer(txn, command[0]) else None
        return None

    async def _give_way(self) -> None:
        """A leader without room would refuse new sessions for the whole mesh, and one that drains is to be stopped: let
        another one lead, if there is one."""
        not_before = 0.0
        while True:
            await asyncio.sleep(GIVE_WAY_LOOK_S)
            if not self._leads():
                continue
            if self.is_draining():
                await self.group.transfer_leadership()
            elif self._disk.space is not Space.OK and time.monotonic() >= not_before:
                await self.group.transfer_leadership()
                not_before = time.monotonic() + GIVE_WAY_AGAIN_S

    def _takes_no_leaf(self) -> str:
        """Why; empty if it does."""
        status = self.group.status()
        reasons = {
            "quarantined": status.is_quarantined,
            "removed": status.is_removed or self.has_left(),
            "draining": self.is_draining(),
            "disk_full": self._disk.space is Space.FULL,
            "disk_hangs": self.group.is_stalled(LONELY_S),
            "no_leader": self._lonely_since is not None and time.monotonic() - self._lonely_since >= LONELY_S,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _parent_of(self, node_id: NodeId) -> NodeId | None:
        """Asked with all news of running branches: read once for each registration."""
        if node_id not in self._parents and (member := self._member(node_id)) is not None:
            self._parents[node_id] = member.parent
        return self._parents.get(node_id)

    def _is_bound(self) -> bool:
        """Whether another member, which has another version of it perhaps, limits a ritual that this node offers and
        does not limit. Asked with every offer: read once for each registration."""
        if self._bound is None:
            with contextlib.suppress(ConsensusError, StorageError), self.group.read() as txn:
                limited = {ritual for member in queries.members(txn) for ritual in member.ritual_limits}
                self._bound = not self._unlimited.isdisjoint(limited)
        return self._bound is not False

    def _may_join(self, peer: NodeId) -> bool:
        hello = self._hello_of(peer)
        if hello is None or not holds_replica(hello.tier):
            return False
        member = self._member(peer)
        return member is None or member.status != "left" or member.instance_id != hello.instance_id

    def has_left(self) -> bool:
        """This very instance: it takes part no more, until it is started again."""
        member = self._member(self._node_id)
        return member is not None and member.status == "left" and member.instance_id == self._instance_id

    def is_draining(self) -> bool:
        member = self._member(self._node_id)
        return member is not None and member.is_draining and member.instance_id == self._instance_id

    def _member(self, node_id: NodeId) -> Member | None:
        with contextlib.suppress(ConsensusError, StorageError), self.group.read() as txn:
            return queries.get_member(txn, node_id)
        return None

    def _unfit(self) -> set[NodeId]:
        """Replicas that are known not to vote: they said so over their link, or when they registered."""
        tiers: dict[NodeId, str] = {}
        with contextlib.suppress(ConsensusError, StorageError), self.group.read() as txn:
            tiers = {member.node_id: member.tier for member in queries.members(txn)}
        for peer in self._lookout.linked():
            if (hello := self._hello_of(peer)) is not None:
                tiers[peer] = hello.tier
        return {node for node, tier in tiers.items() if not may_vote(tier)} - self._reserve()

    def _reserve(self) -> set[NodeId]:
        """Linked Edge nodes whose tier the mesh chooses."""
        hellos = [hello for peer in self._lookout.linked() if (hello := self._hello_of(peer)) is not None]
        return {hello.node_id for hello in hellos if hello.is_auto and not may_vote(hello.tier)}

    def _leads(self) -> bool:
        return self.group.status().role is Role.LEADER

    def _on_members(self, events: list[Numbered]) -> None:
        for numbered in events:
            if isinstance(numbered.event, MemberRegistered):
                self._parents.pop(numbered.event.node_id, None)
                self._bound = None
                if numbered.event.node_id == self._node_id:
                    self._look_for_copy()

    def _look_for_copy(self) -> None:
        """A daemon on a copy of our data directory that starts as we do may find nodes that are not linked to us: both
        would vote for one. Whoever registers later stays."""
        member = self._member(self._node_id)
        if member is not None and self._instance_id in member.former_instance_ids:
            self._own("end of a copy", self._end_as_copy())

    async def _end_as_copy(self) -> None:
        raise RegistrationRefused(
            "another daemon has registered as this node since this one did: one of the two data directories is a copy. "
            "Stop one of them for good; give that machine a data directory of its own, and it joins as a new node."
        )

    def _on_installed(self, status: ReplicaStatus) -> None:
        """After a snapshot, no event having told what happened meanwhile: what was assigned to this instance starts
        now, what was taken from it stops. Leaf nodes register again, which does the same for them."""
        if status.installed_index:
            self._parents.clear()
            self._bound = None
            self._look_for_copy()
            leases = self._note_leases()
            if leases is not None:
                self._assignments.compare(leases, self._executor)
            for leaf in self.parent.leaves():
                self._mesh.notify(NodeId(str(leaf["node_id"])), messages.AGAIN, b"")
            self.dispatcher.wake()

    def _note_leases(self) -> list[Lease] | None:
        try:
            with self.group.read() as txn:
                leases = queries.leases(txn)
        except ConsensusError as error:
            log.warning("leases_not_read", code=error.code, reason=str(error))
            return None
        for lease in leases:
            self._live.note_assigned(lease.session_id, lease.branch_index, lease.attempt, lease.node_id)
        return leases

    def _on_role(self, status: ReplicaStatus) -> None:
        self.dispatcher.set_leading(status.role is Role.LEADER)

    def _on_leader(self, status: ReplicaStatus) -> None:
        self._lookout.turn_to(status.leader)
        if status.leader != self._leader:
            self._leader = status.leader
            self._lonely_since = time.monotonic() if status.leader is None else None
            if status.leader is None:
                log.warning("no_leader", term=status.term)
            elif status.role is Role.LEADER:
                log.info("leading", term=status.term)
            else:
                hello = self._hello_of(status.leader)
                log.info("following", leader=hello.node_name if hello else status.leader, term=status.term)
