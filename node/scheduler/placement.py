"""Decides which member executes a branch, and says why another does not. Pure.

Rules:
- only members that are alive, heard by the leader (a Leaf: through its parent) and keep up get work, but not who drains
  or rests.
- what a branch requires must hold: node, ritual and its version, labels, and a free place.
- of those that are left: not where the last attempt ended, if there is another; a consolidation not on a Leaf, which
  has no results at hand, if there is another; then who fulfils most of what is preferred; then where least of the
  session runs, if it is to be spread; then the least loaded.
- while nobody waits for a slot, short branches may wait on a node for its next one (`ahead`).
- the same functions choose and explain (`Floor.survey`), so what is told is what is done.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple

from consensus.state.commands import Assignment
from consensus.state.rows import Lease, Member, Placement, QueueEntry, RitualKind
from node.scheduler import ahead
from node.scheduler.fairness import is_session_full
from node.scheduler.judgement import Evidence, LinkView, parent_of
from node.scheduler.matching import holds, labels_of, told, version_fits
from node.scheduler.testimony import Testimony
from storage.ids import NodeId, SessionId

REST_MS_MAX = 60_000
"""A branch whose attempt has failed rests no longer."""


def rests_ms(entry: QueueEntry, now_ms: int) -> int:
    """For how much longer. Until when, was told by the clock of the node that failed: if it is more than anybody rests,
    that clock is ahead of the leader's, and the branch goes at once rather than in an hour."""
    left_ms = entry.not_before_ms - now_ms
    return left_ms if 0 < left_ms <= REST_MS_MAX else 0


@dataclass(frozen=True)
class View:
    """What a decision is based on. `leases` is all of them."""

    node_id: NodeId
    leader_for_ms: int
    members: Sequence[Member]
    links: Mapping[NodeId, LinkView]
    leases: Sequence[Lease]
    overdue: Sequence[Lease] = ()
    """Those of `leases` that have run out, if that was looked at."""
    stuck: Collection[NodeId] = ()
    """Members whose replica has not kept up for a while."""
    testimonies: Mapping[NodeId, Testimony] = field(default_factory=dict)
    is_doubting: bool = False
    knows_suspects: bool = True
    """Whether every member's software does."""
    average_ms: Callable[[SessionId], float | None] = lambda session_id: None
    """See `ahead.average_ms`."""
    age_ms: Callable[[Lease], int] = lambda lease: 0
    """See `lease_clock`."""

    @cached_property
    def by_id(self) -> Mapping[NodeId, Member]:
        return {member.node_id: member for member in self.members}

    @cached_property
    def evidence(self) -> Evidence:
        return Evidence(
            self.node_id, self.leader_for_ms, self.links, self.testimonies, self.is_doubting, self.knows_suspects
        )


class Obstacle(NamedTuple):
    """Why not. `code` is stable; `detail` says what is the case, `fix` what would change it."""

    code: str
    detail: str
    fix: str


def standing(view: View, member: Member) -> Obstacle | None:
    """Why this member gets no work at all now; None: it does."""
    if member.status != "alive":
        return Obstacle("not_alive", f"is {member.status}", f"start {member.name} again, or connect it")
    if member.is_draining:
        return Obstacle("draining", "drains: it takes no new work", f"end the draining of {member.name}")
    through = member if member.parent is None else parent_of(member, view.by_id)
    if through is None:
        return Obstacle("no_link", "hangs on no parent", f"check the network of {member.name}")
    if not view.evidence.is_heard(through):
        who = "is" if through is member else f"hangs on {through.name}, which is"
        return Obstacle("no_link", f"{who} not heard by the leader", f"check the network of {through.name}")
    if through.node_id in view.stuck:
        who = "has" if through is member else f"hangs on {through.name}, which has"
        return Obstacle("replica_behind", f"{who} a replica that does not keep up", f"check the disk of {through.name}")
    link = view.links.get(member.node_id)
    if link is not None and link.rests_ms > 0:
        return Obstacle("resting", f"went up and down too often and rests for {link.rests_ms} ms", "wait")
    return None


@dataclass(slots=True)
class Candidate:
    """A member while places are being filled."""

    member: Member
    labels: Mapping[str, str]
    busy: dict[RitualKind, int] = field(default_factory=lambda: {"cpu": 0, "async": 0})
    blocked: set[RitualKind] = field(default_factory=set)
    """Where something executes that is not known to be short, or a branch has found no slot: nothing goes ahead."""

    def slots(self, kind: RitualKind) -> int:
        return self.member.slots if kind == "cpu" else self.member.async_slots

    def load(self, kind: RitualKind) -> float:
        return self.busy[kind] / self.slots(kind)

    def allowance(self, kind: RitualKind, average: float | None) -> int:
        """Branches of this duration that may wait here for a slot."""
        return 0 if average is None or kind in self.blocked else ahead.allowance(self.slots(kind), average)

    def obstacle(self, entry: QueueEntry) -> Obstacle | None:
        """Why this branch cannot go there now; None: it can."""
        member, placement = self.member, entry.placement
        if placement is not None and placement.node not in (None, member.name, member.node_id):
            return Obstacle("another_node", f"is not {placement.node}", f"start the node {placement.node}")
        offer = member.rituals.get(entry.ritual)
        if offer is None:
            return Obstacle(
                "ritual_not_offered", f"does not offer {entry.ritual}", f"install the ritual {entry.ritual} on a node"
            )
        if placement is not None:
            if placement.version is not None and not version_fits(offer.version, placement.version):
                return Obstacle(
                    "ritual_version",
                    f"offers {entry.ritual} {offer.version}, not {placement.version}",
                    f"install {entry.ritual} {placement.version} on a node",
                )
            for condition in placement.require:
                if not holds(condition, self.labels):
                    found = self.labels.get(condition.label)
                    has = f"has {condition.label} = {found}" if found is not None else f"has no label {condition.label}"
                    return Obstacle(
                        "label_mismatch",
                        f"{has}; required is {told(condition)}",
                        f"start a node with {told(condition)}",
                    )
        if self.busy[offer.kind] >= self.slots(offer.kind):
            return _NO_ROOM[offer.kind] if self.slots(offer.kind) else _NO_SLOTS[offer.kind]
        return None


_KINDS: tuple[RitualKind, ...] = ("cpu", "async")
_NO_ROOM = {
    kind: Obstacle("no_room", f"has no free {kind} slot", "wait for a free slot, or add nodes") for kind in _KINDS
}
_NO_SLOTS = {kind: Obstacle("no_slots", f"gives no {kind} slots", "add nodes") for kind in _KINDS}


def assignment(entry: QueueEntry, member: Member, deadline_ms: int) -> Assignment:
    return Assignment(
        session_id=entry.session_id,
        branch_index=entry.branch_index,
        attempt=entry.attempt,
        node_id=member.node_id,
        instance_id=member.instance_id,
        deadline_ms=deadline_ms,
    )


class Floor:
    """All places of the mesh, while they are being filled."""

    def __init__(self, view: View, now_ms: int, gone: Collection[NodeId] = ()) -> None:
        """`gone` are members that are being given up."""
        self._leader = view.node_id
        self._view = view
        self._now_ms = now_ms
        self._candidates: dict[NodeId, Candidate] = {}
        self._others: list[tuple[Candidate, Obstacle]] = []
        self.running: Counter[SessionId] = Counter()
        self._of_ritual: Counter[str] = Counter()
        self._of_both: Counter[tuple[SessionId, str]] = Counter()
        self._spread: dict[SessionId, Counter[NodeId]] = {}
        self._limits: dict[str, int] = {}
        self._full: set[str] = set()
        """Rituals for which no place was left: places are only taken here."""
        self._averages: dict[SessionId, float | None] = {}
        self._ranked: dict[str, list[tuple[float, bool, NodeId]]] = {}
        """Of a ritual: a heap of those that offer it, the least loaded first, with the load they had."""
        for member in view.members:
            if member.status == "left":
                continue
            candidate = Candidate(member, labels_of(member))
            obstacle = standing(view, member)
            if obstacle is None and member.node_id in gone:
                obstacle = Obstacle("not_alive", "is being given up", f"connect {member.name}")
            if obstacle is None:
                self._candidates[member.node_id] = candidate
            else:
                self._others.append((candidate, obstacle))
            for ritual, limit in member.ritual_limits.items():
                self._limits[ritual] = min(limit, self._limits.get(ritual, limit))
        for lease in view.leases:
            self.running[lease.session_id] += 1
            self._of_ritual[lease.ritual] += 1
            self._of_both[lease.session_id, lease.ritual] += 1
            holder = self._candidates.get(lease.node_id)
            if holder is not None and (offer := holder.member.rituals.get(lease.ritual)) is not None:
                holder.busy[offer.kind] += 1
                if self._average(lease.session_id) is None:
                    holder.blocked.add(offer.kind)
        self.slots = sum(candidate.slots(kind) for candidate in self._candidates.values() for kind in _KINDS)
        shortest = min((average for average in self._averages.values() if average is not None), default=None)
        self.free = sum(
            max(0, candidate.slots(kind) + candidate.allowance(kind, shortest) - candidate.busy[kind])
            for candidate in self._candidates.values()
            for kind in candidate.busy
        )
        """How many more branches fit at most, of whatever kind."""

    def waits(self, entry: QueueEntry) -> Obstacle | None:
        """Why this branch cannot go anywhere now, whatever is free."""
        left_ms = rests_ms(entry, self._now_ms)
        if left_ms:
            return Obstacle("resting", f"it rests for {left_ms / 1000:.1f} s after a failed attempt", "wait")
        if is_session_full(entry, self.running[entry.session_id]):
            return Obstacle(
                "session_limit", f"its session runs {entry.concurrency} branches, its limit", "wait for one of them"
            )
        limit = entry.ritual_concurrency
        if limit is not None and self._of_both[entry.session_id, entry.ritual] >= limit:
            return Obstacle(
                "session_ritual_limit",
                f"its session runs {limit} branches of {entry.ritual}, its limit",
                "wait for one of them",
            )
        limit = self._limits.get(entry.ritual)
        if limit is not None and self._of_ritual[entry.ritual] >= limit:
            return Obstacle("ritual_limit", f"{entry.ritual} runs {limit} times in the mesh, its limit", "wait")
        return None

    def survey(self, entry: QueueEntry) -> Iterator[tuple[Member, Obstacle | None]]:
        """Every member, and why not there; None: it could go there now, if nothing else holds it back."""
        for candidate in self._candidates.values():
            yield candidate.member, candidate.obstacle(entry)
        for candidate, obstacle in self._others:
            unfit = candidate.obstacle(entry)
            yield candidate.member, obstacle if unfit is None or unfit.code in ("no_room", "no_slots") else unfit

    def choose(self, entry: QueueEntry) -> Member | None:
        """Equal otherwise: a consolidation and async work stay with the leader, which holds the results and is one hop
        nearer; CPU work goes elsewhere first, because the leader has the mesh to run."""
        if entry.placement is None and entry.ritual in self._full:
            return None
        if self.waits(entry) is not None:
            return None
        is_plain = entry.placement is None and entry.avoid is None and entry.role == "branch"
        best = self._least_loaded(entry) if is_plain else self._best(entry)
        if best is None:
            for candidate in self._candidates.values():
                candidate.blocked |= {kind for kind in _KINDS if candidate.obstacle(entry) is _NO_ROOM[kind]}
            if entry.placement is None:
                self._full.add(entry.ritual)
            return None
        return best.member

    def _has_place(self, candidate: Candidate, kind: RitualKind, entry: QueueEntry) -> bool:
        """A slot, or what it may be given ahead."""
        busy, slots = candidate.busy[kind], candidate.slots(kind)
        if busy < slots:
            return True
        return ahead.is_apt(entry) and busy < slots + candidate.allowance(kind, self._average(entry.session_id))

    def _least_loaded(self, entry: QueueEntry) -> Candidate | None:
        """The same as `_best` for an entry that wants nothing in particular, in less than a look at everybody."""
        heap = self._ranked.get(entry.ritual)
        if heap is None:
            heap = self._ranked[entry.ritual] = []
            for node_id, candidate in self._candidates.items():
                offer = candidate.member.rituals.get(entry.ritual)
                if offer is not None and candidate.slots(offer.kind):
                    is_second = (node_id == self._leader) == (offer.kind == "cpu")
                    heap.append((candidate.load(offer.kind), is_second, node_id))
            heapify(heap)
        unfit = []
        best: Candidate | None = None
        while heap and best is None:
            load, is_second, node_id = heap[0]
            candidate = self._candidates[node_id]
            kind = candidate.member.rituals[entry.ritual].kind
            if load != candidate.load(kind):
                heapreplace(heap, (candidate.load(kind), is_second, node_id))
            elif self._has_place(candidate, kind, entry):
                best = candidate
            else:
                unfit.append(heappop(heap))
        for ranked in unfit:
            heappush(heap, ranked)
        return best

    def _best(self, entry: QueueEntry) -> Candidate | None:
        best: Candidate | None = None
        best_rank: tuple[bool, bool, bool, int, int, float, bool, str] | None = None
        for candidate in self._candidates.values():
            obstacle = candidate.obstacle(entry)
            if obstacle is not None and obstacle.code != "no_room":
                continue
            kind = candidate.member.rituals[entry.ritual].kind
            if obstacle is not None and not self._has_place(candidate, kind, entry):
                continue
            is_leader = candidate.member.node_id == self._leader
            rank = (
                obstacle is not None,
                candidate.member.node_id == entry.avoid,
                entry.role == "consolidation" and candidate.member.parent is not None,
                0 if entry.placement is None else -self._wishes(entry.placement, candidate),
                0 if entry.placement is None else self._neighbours(entry, entry.placement, candidate),
                candidate.load(kind),
                is_leader if kind == "cpu" else not is_leader,
                candidate.member.node_id,
            )
            if best_rank is None or rank < best_rank:
                best, best_rank = candidate, rank
        return best

    def take(self, entry: QueueEntry, member: Member) -> None:
        """The branch goes there."""
        candidate, kind = self._candidates[member.node_id], member.rituals[entry.ritual].kind
        candidate.busy[kind] += 1
        if self._average(entry.session_id) is None:
            candidate.blocked.add(kind)
        self.free -= 1
        self.running[entry.session_id] += 1
        self._of_ritual[entry.ritual] += 1
        self._of_both[entry.session_id, entry.ritual] += 1
        if entry.session_id in self._spread:
            self._spread[entry.session_id][member.node_id] += 1

    def _average(self, session_id: SessionId) -> float | None:
        if session_id not in self._averages:
            self._averages[session_id] = self._view.average_ms(session_id)
        return self._averages[session_id]

    def _wishes(self, placement: Placement, candidate: Candidate) -> int:
        return sum(holds(condition, candidate.labels) for condition in placement.prefer)

    def _neighbours(self, entry: QueueEntry, placement: Placement, candidate: Candidate) -> int:
        """Branches of its session where it should not be with them."""
        if placement.spread is None:
            return 0
        held = self._spread.get(entry.session_id)
        if held is None:
            leases = (lease for lease in self._view.leases if lease.session_id == entry.session_id)
            held = self._spread[entry.session_id] = Counter(lease.node_id for lease in leases)
        label = placement.spread
        value = candidate.labels.get(label)
        return sum(
            held[other.member.node_id] for other in self._candidates.values() if other.labels.get(label) == value
        )
