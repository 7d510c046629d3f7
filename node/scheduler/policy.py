"""Decides, on the leader, what should happen next to members, leases and the queue.

Pure: a view of the replicated state and of the links goes in, commands come out. Everything is derived from replicated
state, so a new leader carries on without a hand-over; a decision that has been overtaken is skipped when it is applied.

Rules:
- who is alive is decided in `judgement`; only those get work, and of them not who drains or rests.
- a lease past its deadline is requeued as lost: no branch waits for ever, whatever a node does. It is not booked as the
  ritual's failure, because a node that works enforces the timeout itself and says so first.
- a member whose replica does not keep up is alive but gets no work: it would not learn of it.
- the queue is served in order; an entry that fits nowhere now does not hold up those behind it.
- a node gets no more than its free slots; the least loaded comes first; where the last attempt failed comes last.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from consensus.state.commands import (
    AnyCommand,
    AssignBranches,
    Assignment,
    Requeue,
    RequeueBranches,
)
from consensus.state.rows import Failure, Lease, Member, QueueEntry, RitualKind
from node.scheduler.draining import departures, hand_back
from node.scheduler.judgement import Evidence, LinkView, judge_members, parent_of
from node.scheduler.testimony import Testimony
from storage.ids import NodeId

LEASE_GRACE_MS = 5_000
"""Added to the timeout that the executing node enforces itself: its own, better explained verdict comes first."""

BATCH_MAX = 512
"""Branches in one command; at most 80 KiB, far below the command cap."""


@dataclass(frozen=True, slots=True)
class View:
    """What a decision is based on. `queue` is the head of the queue, in order; `leases` is all of them."""

    node_id: NodeId
    leader_for_ms: int
    members: Sequence[Member]
    links: Mapping[NodeId, LinkView]
    queue: list[QueueEntry]
    leases: Sequence[Lease]
    stuck: Collection[NodeId] = ()
    """Members whose replica has not kept up for a while."""
    testimonies: Mapping[NodeId, Testimony] = field(default_factory=dict)
    is_doubting: bool = False
    knows_suspects: bool = True
    """Whether every member's software does."""

    @property
    def evidence(self) -> Evidence:
        return Evidence(
            self.node_id, self.leader_for_ms, self.links, self.testimonies, self.is_doubting, self.knows_suspects
        )

    def takes_work(self, member: Member) -> bool:
        """Whether the leader reaches the very instance that has registered, and nothing speaks against it. A Leaf is
        reached through its parent."""
        through = member if member.parent is None else parent_of(member, self.members)
        if through is None or through.node_id in self.stuck or not self.evidence.is_heard(through):
            return False
        link = self.links.get(member.node_id)
        return member.status == "alive" and not member.is_draining and (link is None or link.rests_ms == 0)


@dataclass(slots=True)
class _Capacity:
    """Free places of one member while a batch is being filled."""

    member: Member
    busy: dict[RitualKind, int] = field(default_factory=lambda: {"cpu": 0, "async": 0})

    def slots(self, kind: RitualKind) -> int:
        return self.member.slots if kind == "cpu" else self.member.async_slots

    def load(self, kind: RitualKind) -> float:
        return self.busy[kind] / self.slots(kind)

    def has_room(self, kind: RitualKind) -> bool:
        return self.busy[kind] < self.slots(kind)


def decide(view: View, now_ms: int) -> list[AnyCommand]:
    """The commands to propose now, in order. Empty when there is nothing to do."""
    verdicts = judge_members(view.members, view.evidence, now_ms)
    commands: list[AnyCommand] = [*verdicts, *departures(view.members, view.leases, view.node_id, now_ms)]
    requeues = overdue_leases(view.leases, now_ms) or hand_back(view.members, view.leases, now_ms)[:BATCH_MAX]
    if requeues:
        commands.append(RequeueBranches(requeues=requeues, at_ms=now_ms))
    assignments = place(view, {verdict.node_id for verdict in verdicts if verdict.status != "alive"}, now_ms)
    if assignments:
        commands.append(AssignBranches(assignments=assignments, at_ms=now_ms))
    return commands


def overdue_leases(leases: Sequence[Lease], now_ms: int) -> list[Requeue]:
    """Leases that have run out: the node has neither answered nor been given up."""
    failure = Failure(
        code="lease_expired",
        message="the node said nothing of this attempt until its lease ran out; it goes on elsewhere",
    )
    return [
        Requeue(
            session_id=lease.session_id,
            branch_index=lease.branch_index,
            attempt=lease.attempt,
            failure=failure,
            is_lost=True,
        )
        for lease in leases
        if lease.deadline_ms <= now_ms
    ][:BATCH_MAX]


def free_places(view: View) -> int:
    """How many more branches the members can take, of whatever kind; `view.queue` does not matter."""
    capacities = _capacities(view, set())
    return sum(
        max(0, capacity.slots(kind) - capacity.busy[kind]) for capacity in capacities.values() for kind in capacity.busy
    )


def _capacities(view: View, dead: set[NodeId]) -> dict[NodeId, _Capacity]:
    """Of the members that are alive, linked and keeping up."""
    capacities: dict[NodeId, _Capacity] = {}
    for member in view.members:
        if view.takes_work(member) and member.node_id not in dead:
            capacities[member.node_id] = _Capacity(member)
    for lease in view.leases:
        capacity = capacities.get(lease.node_id)
        if capacity is not None and lease.ritual in capacity.member.rituals:
            capacity.busy[capacity.member.rituals[lease.ritual].kind] += 1
    return capacities


def place(view: View, dead: set[NodeId], now_ms: int) -> list[Assignment]:
    """Fills the free places in queue order."""
    capacities = _capacities(view, dead)
    assignments: list[Assignment] = []
    for entry in view.queue:
        if len(assignments) == BATCH_MAX:
            break
        chosen = _choose(entry, capacities.values(), view.node_id)
        if chosen is None:
            continue
        chosen.busy[chosen.member.rituals[entry.ritual].kind] += 1
        assignments.append(
            Assignment(
                session_id=entry.session_id,
                branch_index=entry.branch_index,
                attempt=entry.attempt,
                node_id=chosen.member.node_id,
                instance_id=chosen.member.instance_id,
                deadline_ms=now_ms + entry.timeout_ms + LEASE_GRACE_MS,
            )
        )
    return assignments


def _choose(entry: QueueEntry, capacities: Iterable[_Capacity], leader: NodeId) -> _Capacity | None:
    """The least loaded member that offers the ritual and has room; `avoid` only if there is no other, and a Leaf, which
    has no results at hand, for a consolidation only then. Equal load: a
    consolidation and async work stay with the leader, which holds the results and is one hop nearer; CPU work goes
    elsewhere first, because the leader has the mesh to run."""
    best: _Capacity | None = None
    best_rank: tuple[bool, bool, float, bool, str] | None = None
    for capacity in capacities:
        offer = capacity.member.rituals.get(entry.ritual)
        if offer is None or not capacity.has_room(offer.kind):
            continue
        is_leader = capacity.member.node_id == leader
        rank = (
            capacity.member.node_id == entry.avoid,
            entry.role == "consolidation" and capacity.member.parent is not None,
            capacity.load(offer.kind),
            is_leader if offer.kind == "cpu" else not is_leader,
            capacity.member.node_id,
        )
        if best_rank is None or rank < best_rank:
            best, best_rank = capacity, rank
    return best
