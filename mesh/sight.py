"""What a node sees of the others: who could found a mesh with it, and since when that has not changed. Pure.

Two groups that are about to meet must not found a mesh each, so nobody proposes before nobody new has come for a while.
How long that is depends on links, announcements and hints; hints come from strangers, so they never restart it. The
same book tells when a proposer or a member counts as long gone. Rules 1, 4 and 6 of `bootstrap.py`.
"""

from mesh.limits import FOUNDING_CROWD_S, FOUNDING_SETTLE_S, PROMISE_UNREACHABLE_S
from mesh.proposals import FLOOR_JUMP_MAX, Announce, FoundingRecord, floor_of
from mesh.tiers import may_vote
from storage.ids import MeshId, NodeId


class Sight:
    """Links, announcements and hints as of the last input. `floor` is always the own one; `now` monotonic seconds."""

    def __init__(self, own: NodeId, expect: int, now: float) -> None:
        self.own = own
        self.expect = expect
        self.linked: set[NodeId] = set()
        self.views: dict[NodeId, Announce] = {}
        """Linked peers that announced themselves."""
        self.unlinked_count = 0
        """Nodes that are hinted at and not linked. From strangers too."""
        self._down_at: dict[NodeId, float] = {}
        self._started_at = now
        self._stands: dict[NodeId, MeshId | None] = {}  # each Core node ever seen: the proposal it had promised
        self._stands_since = now  # when that last changed

    # --- what happens ---

    def link_up(self, peer: NodeId) -> None:
        self.linked.add(peer)
        self._down_at.pop(peer, None)

    def link_down(self, peer: NodeId, now: float) -> None:
        self.linked.discard(peer)
        self.views.pop(peer, None)
        self._down_at[peer] = now

    def announced(self, peer: NodeId, view: Announce, now: float) -> None:
        """Comings and goings of the same peer do not count as news, so that one bad cable delays nobody."""
        self.views[peer] = view
        stand = view.record.mesh_id if view.record is not None and view.record.state == "promised" else None
        if may_vote(view.tier) and (peer not in self._stands or self._stands[peer] != stand):
            self._stands[peer] = stand
            self._stands_since = now

    # --- who is there ---

    def gone_s(self, peer: NodeId, now: float) -> float:
        """How long it has been out of reach; 0 if it is linked, since the start if it never was."""
        return 0.0 if peer in self.linked else now - self._down_at.get(peer, self._started_at)

    def fresh_peers(self, floor: int) -> list[NodeId]:
        """Core nodes that could found with this one."""
        return [
            peer
            for peer, view in self.views.items()
            if may_vote(view.tier)
            and view.expect == self.expect
            and (view.record is None or view.record.state == "fresh")
            and abs(floor_of(view.record) - floor) < FLOOR_JUMP_MAX
        ]

    def promised_peers(self) -> list[NodeId]:
        """Core nodes that may be founding a mesh at this moment."""
        return sorted(
            peer
            for peer, view in self.views.items()
            if may_vote(view.tier) and view.record is not None and view.record.state == "promised"
        )

    def founded(self) -> list[FoundingRecord]:
        """Of founded peers."""
        return [view.record for view in self.views.values() if view.record and view.record.state == "founded"]

    # --- what may be proposed, and when ---

    def voters(self, floor: int) -> tuple[NodeId, ...]:
        """Of a mesh that this node and its fresh peers would found now; the first proposes. Empty: too few are here."""
        candidates = sorted([self.own, *self.fresh_peers(floor)])
        return () if len(candidates) < self.expect else tuple(candidates[: self.expect])

    def settled_at(self, floor: int) -> float:
        """When the sight has settled, if nobody new comes until then."""
        return self._stands_since + self._settling_s(floor)

    def next_number(self, voters: tuple[NodeId, ...], floor: int) -> int:
        """Above the floors of all voters, of which this node is the first. May exceed NUMBER_MAX: then none is left."""
        floors = [floor, *(floor_of(self.views[voter].record) for voter in voters[1:])]
        # All are near the own floor, but perhaps not near each other: no voter may take the number for a jump.
        return max(known for known in floors if known < min(floors) + FLOOR_JUMP_MAX) + 1

    def _settling_s(self, floor: int) -> float:
        """How long nobody new may have been seen before this node proposes.

        A promise seen elsewhere is about to become a mesh; if members of it are lost for good, it must not block for
        ever.
        """
        if self.expect == 1:
            return 0.0  # the operator said that this node is the whole mesh
        if self.promised_peers():
            return 2 * PROMISE_UNREACHABLE_S
        unclear = self.unlinked_count + len(self.linked - self.views.keys())
        is_crowd = unclear > 0 or 1 + len(self.fresh_peers(floor)) > self.expect
        return FOUNDING_CROWD_S if is_crowd else FOUNDING_SETTLE_S
