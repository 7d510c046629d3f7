"""Decides, on the leader, who is alive, suspect or dead. Pure.

- Who is linked with the leader and heard is alive, whatever others say. A link counts for a member only if it leads to
  the instance that has registered.
- Dead is who has no link for a while (CLOSED_MS when its end was closed: its process is gone; at once when the link was
  ended for its silence, which took long enough), and of whom more nodes say that they lost it than that they hear it.
  So the leader's own broken link is not a death: the member is suspect, keeps what it has and gets nothing new. It
  hears of nothing without its leader, so it could not be given work, nor record any; what it runs is given to others
  when its lease runs out.
- A leader that doubts itself judges nobody, and the accusations of a witness that does count for nothing; that it hears
  somebody counts.
- A Leaf is dead when its parent says so. If the parent itself is gone, the Leaf has some time to come back under
  another one (ORPHAN_MS).
- The leader never judges itself, and a new leader waits the full time first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from consensus.state.commands import SetMemberStatus
from consensus.state.rows import Member, MemberStatus
from node.scheduler.testimony import Testimony
from storage.ids import InstanceId, NodeId

SILENCE_MS = 4_000
"""Without a link this long: dead. Longer than a re-dial with back-off, shorter than a person's patience."""

CLOSED_MS = 1_500
"""The same when the peer's side closed the link: the process has ended, and a quick restart still gets in first."""

SUSPECT_MS = 500
"""Without a link this long: suspect. A link that is made anew at once changes nothing."""


ORPHAN_MS = 3_000
"""For a Leaf to hang on another parent once its own has been missed: it takes two seconds at most."""


@dataclass(frozen=True, slots=True)
class LinkView:
    """What the leader knows of its link to a member. `since_ms`: for how long it has been so."""

    is_up: bool
    since_ms: int
    is_closed_by_peer: bool = False
    instance_id: InstanceId | None = None
    """Of the peer; the last one, if the link is down."""
    is_suspect: bool = False
    """Up, and nothing was heard for a while."""
    is_silent: bool = False
    """Ended because nothing was heard for longer."""
    rests_ms: int = 0
    """It went up and down too often, and gets no new work for so long."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a node knows of its links, and is told by others of theirs (by node)."""

    links: Mapping[NodeId, LinkView] = field(default_factory=dict)
    testimonies: Mapping[NodeId, Testimony] = field(default_factory=dict)
    is_doubting: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What members are judged by."""

    node_id: NodeId
    leader_for_ms: int
    links: Mapping[NodeId, LinkView]
    testimonies: Mapping[NodeId, Testimony] = field(default_factory=dict)
    is_doubting: bool = False
    knows_suspects: bool = True
    """Whether every member's software does."""

    def is_linked(self, member: Member) -> bool:
        """Whether the leader reaches the very instance that has registered."""
        if member.node_id == self.node_id:
            return True
        link = self.links.get(member.node_id)
        return link is not None and link.is_up and link.instance_id == member.instance_id

    def is_heard(self, member: Member) -> bool:
        link = self.links.get(member.node_id)
        return self.is_linked(member) and (link is None or not link.is_suspect)

    def hearers(self, member: Member) -> list[NodeId]:
        """Other nodes that hear this instance."""
        return [
            witness
            for witness, testimony in self._witnesses(member)
            if testimony.heard.get(member.node_id) == member.instance_id
        ]

    def accusers(self, member: Member) -> list[NodeId]:
        """Other nodes that have lost this instance, and are sure that it is not their own fault."""
        return [
            witness
            for witness, testimony in self._witnesses(member)
            if testimony.lost.get(member.node_id) == member.instance_id and not testimony.is_doubting
        ]

    def _witnesses(self, member: Member) -> list[tuple[NodeId, Testimony]]:
        """Those that the leader hears itself; what the others said may be old."""
        return [
            (witness, testimony)
            for witness, testimony in self.testimonies.items()
            if witness != member.node_id and (link := self.links.get(witness)) and link.is_up and not link.is_suspect
        ]


def judge_members(members: Sequence[Member], evidence: Evidence, now_ms: int) -> list[SetMemberStatus]:
    """Only changes are answered."""
    verdicts = []
    by_id = {member.node_id: member for member in members}
    for member in members:
        if member.status == "left":
            continue
        if member.parent is None:
            verdict = judge(member, evidence)
        else:
            verdict = judge_leaf(member, parent_of(member, by_id), evidence)
        if verdict == member.status or (verdict == "suspect" and not evidence.knows_suspects):
            continue
        verdicts.append(
            SetMemberStatus(
                node_id=member.node_id,
                instance_id=member.instance_id,
                status=verdict,
                at_ms=now_ms,
                registered_at_ms=None if member.parent is None else member.registered_at_ms,
            )
        )
    return verdicts


def parent_of(leaf: Member, by_id: Mapping[NodeId, Member]) -> Member | None:
    """The very instance that a Leaf hangs on; None if it is gone."""
    found = None if leaf.parent is None else by_id.get(leaf.parent)
    return found if found is not None and found.instance_id == leaf.parent_instance and not found.parent else None


def judge_leaf(leaf: Member, parent: Member | None, evidence: Evidence) -> MemberStatus:
    if evidence.is_doubting or leaf.status == "dead":
        return leaf.status
    if parent is not None and (evidence.is_linked(parent) or judge(parent, evidence) not in ("dead", "left")):
        return leaf.status
    link = None if leaf.parent is None else evidence.links.get(leaf.parent)
    gone_ms = evidence.leader_for_ms if link is None else min(link.since_ms, evidence.leader_for_ms)
    return "dead" if gone_ms >= _patience_ms(link) + ORPHAN_MS else leaf.status


def judge(member: Member, evidence: Evidence) -> MemberStatus:
    if evidence.is_heard(member):
        return "alive"
    if evidence.is_doubting or member.status in ("dead", "left"):
        return member.status
    if evidence.is_linked(member):
        return "suspect"
    link = evidence.links.get(member.node_id)
    gone_ms = evidence.leader_for_ms if link is None else min(link.since_ms, evidence.leader_for_ms)
    patience_ms = _patience_ms(link)
    if gone_ms >= patience_ms and len(evidence.accusers(member)) + 1 > len(evidence.hearers(member)):
        return "dead"
    return "suspect" if gone_ms >= min(SUSPECT_MS, patience_ms) else member.status


def _patience_ms(link: LinkView | None) -> int:
    if link is None or link.is_up:  # to another instance: the one that has registered is not there
        return SILENCE_MS
    return 0 if link.is_silent else CLOSED_MS if link.is_closed_by_peer else SILENCE_MS
