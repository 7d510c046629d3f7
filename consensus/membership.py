"""Who votes, who learns, who was removed; which change of that is allowed, and what it does to the quorum. Pure.

One change adds, promotes, demotes or removes one node, so any majority before it and any majority after it share a
voter (Ongaro, Consensus: Bridging Theory and Practice, section 4.1). A configuration is a log entry of its own kind,
holds everything, and counts from the moment it is in a node's log, committed or not; cutting the log takes it back.

A change names what is wanted, not what is to be done: asked for twice it is done once. Who is removed never comes back
under its id; its machine joins again under a new identity, with an empty data directory. Who leaves may: it still has
its log and its votes, so it is added as any learner.
"""

from collections.abc import Sequence, Set
from typing import Final, Literal, TypeAlias

import msgspec

from storage.ids import NodeId

VOTERS_MAX: Final = 7
"""Every voter more makes each commitment wait for more disks; seven survive three failures."""

LEARNERS_MAX: Final = 32
"""The leader sends all of them every entry."""

REMOVED_MAX: Final = 64
"""Removed ids remembered, the latest: so that one that missed its removal is told. 3 KiB."""

CONFIGURATION_BYTES_MAX: Final = 16 << 10
"""Of one configuration in the log: ids of 52 bytes, as many as the caps above allow, with room."""

ChangeKind: TypeAlias = Literal["add", "promote", "demote", "remove", "leave"]


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """Sorted ids; nobody is in two of the first three lists. `removed` is in the order of removal."""

    voters: tuple[NodeId, ...] = ()
    learners: tuple[NodeId, ...] = ()
    removed: tuple[NodeId, ...] = ()
    resting: tuple[NodeId, ...] = ()
    """Learners that a person has demoted: autopilot leaves them alone."""

    @property
    def members(self) -> tuple[NodeId, ...]:
        return self.voters + self.learners

    @property
    def majority(self) -> int:
        return len(self.voters) // 2 + 1


class Change(msgspec.Struct, frozen=True):
    """`add`: as a learner. `promote`: a learner to a voter. `demote`: a voter to a learner. `remove`: either, for good.
    `leave`: either; it may be added again."""

    kind: ChangeKind
    node_id: NodeId
    is_resting: bool = False
    """Of a demotion: by a person, so that it lasts."""


class Refusal(msgspec.Struct, frozen=True):
    """Why a change is not made. `code` is stable; `is_passing`: the same may be allowed in a moment."""

    code: str
    message: str
    is_passing: bool = False


class Standing(msgspec.Struct, frozen=True):
    """What the leader knows when it is asked for a change."""

    leader: NodeId
    caught_up: Set[NodeId]
    """Peers that answer, and hold what this leader held a moment ago."""
    is_changing: bool = False
    """An earlier change is not applied yet (row 9)."""
    is_new: bool = False
    """The leader has not committed an entry of its own term, so it does not know what is committed (Ongaro, "bug in
    single-server membership changes", raft-dev 2015)."""


class Quorum(msgspec.Struct, frozen=True):
    voters: int
    majority: int
    healthy: int
    """Voters that answer and are caught up, the leader among them."""

    @property
    def is_safe(self) -> bool:
        return self.healthy >= self.majority

    @property
    def survives(self) -> int:
        """How many of the healthy voters may fail from now on."""
        return max(self.healthy - self.majority, 0)


class Plan(msgspec.Struct, frozen=True):
    """What a row of changes would do. With a refusal, `after` and `configuration` are those reached before it."""

    steps: tuple[Change, ...]
    before: Quorum
    after: Quorum
    configuration: Configuration
    refusal: Refusal | None


def quorum_of(configuration: Configuration, standing: Standing) -> Quorum:
    voters = configuration.voters
    healthy = sum(voter == standing.leader or voter in standing.caught_up for voter in voters)
    return Quorum(len(voters), configuration.majority, healthy)


def judge(configuration: Configuration, change: Change, standing: Standing) -> Configuration | Refusal:
    """The configuration after the change; the same one if it is done already."""
    node, voters, learners = change.node_id, configuration.voters, configuration.learners
    is_voter, is_learner = node in voters, node in learners
    after = configuration
    match change.kind:
        case "add":
            if is_voter or is_learner:
                return configuration
            if node in configuration.removed:
                return Refusal("removed", f"{node} was removed; empty its data directory, it then joins as a new node")
            if len(learners) >= LEARNERS_MAX:
                return Refusal("too_many_learners", f"{LEARNERS_MAX} nodes learn already, which is the most")
            after = _made(configuration, voters, (*learners, node))
        case "promote":
            if is_voter:
                return configuration
            if not is_learner:
                return _unknown(node)
            if len(voters) >= VOTERS_MAX:
                return Refusal("too_many_voters", f"{VOTERS_MAX} nodes vote already, which is the most; replace one")
            after = _made(configuration, (*voters, node), _without(learners, node))
        case "demote":
            if not is_voter and not is_learner:
                return _unknown(node)
            if is_learner and (not change.is_resting or node in configuration.resting):
                return configuration
            after = _made(configuration, _without(voters, node), (*_without(learners, node), node))
            if change.is_resting:
                after = msgspec.structs.replace(after, resting=tuple(sorted((*after.resting, node))))
        case "remove":
            if node in configuration.removed:
                return configuration
            if not is_voter and not is_learner:
                return _unknown(node)
            removed = (*configuration.removed, node)[-REMOVED_MAX:]
            after = _made(configuration, _without(voters, node), _without(learners, node), removed)
        case "leave":
            if not is_voter and not is_learner:
                return configuration
            after = _made(configuration, _without(voters, node), _without(learners, node))
    if not after.voters:
        return Refusal("last_voter", f"{node} is the only voter: promote another node first")
    if standing.is_changing:
        return Refusal("change_pending", "an earlier change is not committed yet; try again in a moment", True)
    if standing.is_new:
        return Refusal("leader_is_new", "the leader was elected this moment; try again", True)
    if change.kind == "promote" and node not in standing.caught_up:
        return Refusal("not_caught_up", f"{node} has not caught up with the log yet, or does not answer", True)
    quorum = quorum_of(after, standing)
    if len(after.voters) != len(voters) and not quorum.is_safe:
        return Refusal(
            "quorum_lost",
            f"of the {quorum.voters} voters after it only {quorum.healthy} answer and are caught up, and "
            f"{quorum.majority} are needed: bring the others back, or replace them one by one, first",
        )
    return after


def plan(configuration: Configuration, changes: Sequence[Change], standing: Standing) -> Plan:
    """As if each change were committed before the next. Steps that are done already are left out."""
    before = quorum_of(configuration, standing)
    steps: list[Change] = []
    refusal: Refusal | None = None
    for change in changes:
        verdict = judge(configuration, change, standing)
        if isinstance(verdict, Refusal):
            refusal = verdict
            break
        if verdict != configuration:
            steps.append(change)
            configuration = verdict
    return Plan(tuple(steps), before, quorum_of(configuration, standing), configuration, refusal)


def encode_configuration(configuration: Configuration) -> bytes:
    return msgspec.msgpack.encode(configuration)


def decode_configuration(data: bytes) -> Configuration | None:
    """Any bytes; None if they are not a configuration of a mesh that exists."""
    if len(data) > CONFIGURATION_BYTES_MAX:
        return None
    try:
        found = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    everyone = found.voters + found.learners + found.removed
    is_sane = (
        1 <= len(found.voters) <= VOTERS_MAX
        and len(found.learners) <= LEARNERS_MAX
        and len(found.removed) <= REMOVED_MAX
        and len(set(everyone)) == len(everyone)
        and len(set(found.resting)) == len(found.resting)
        and set(found.resting) <= set(found.learners)
    )
    return found if is_sane else None


def _made(
    old: Configuration,
    voters: tuple[NodeId, ...],
    learners: tuple[NodeId, ...],
    removed: tuple[NodeId, ...] | None = None,
) -> Configuration:
    return Configuration(
        tuple(sorted(voters)),
        tuple(sorted(learners)),
        old.removed if removed is None else removed,
        tuple(node for node in old.resting if node in learners),
    )


def _without(nodes: tuple[NodeId, ...], node: NodeId) -> tuple[NodeId, ...]:
    return tuple(one for one in nodes if one != node)


def _unknown(node: NodeId) -> Refusal:
    return Refusal("unknown_node", f"{node} neither votes nor learns; see meshnode nodes")


_decoder = msgspec.msgpack.Decoder(Configuration)
