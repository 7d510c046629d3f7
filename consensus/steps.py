"""What a step of a replica takes and what comes out of it, and the machine that it steps."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from consensus.engine import Role
from consensus.membership import Change, Configuration, Standing
from consensus.snapshot import AboutSnapshots, Tables
from storage.ids import NodeId
from storage.transactions import Transaction


class StateMachine(Tables, Protocol):
    """What the log is applied to. Total and deterministic: it answers every bytes, and never raises anything but
    StorageError; what it raises kills the replica."""

    def apply(self, txn: Transaction, index: int, command: bytes) -> tuple[Any, Sequence[Any]]:
        """Its answer to the proposer and its events for watchers."""

    def checkpoint(self, txn: Transaction, index: int, command: bytes) -> bytes | None:
        """Digest of the tables after `command` was applied, at the commands chosen to compare replicas; else None."""


class PeerMessage(msgspec.Struct, frozen=True):
    """A frame from an authenticated peer, in the order in which it was sent."""

    peer: NodeId
    frame: bytes


class LinkUp(msgspec.Struct, frozen=True):
    peer: NodeId


class LinkDown(msgspec.Struct, frozen=True):
    """`closed_by_peer`: with EOF or a reset, so its process is gone; not by silence."""

    peer: NodeId
    closed_by_peer: bool


class Propose(msgspec.Struct, frozen=True):
    """`token` comes back in `Resolved`; the caller chooses it and never uses it twice."""

    token: int
    command: bytes


class ReadIndex(msgspec.Struct, frozen=True):
    """Up to which index must a read see that begins now? `token` comes back in `Resolved`, as that of a proposal."""

    token: int


class ProposeChange(msgspec.Struct, frozen=True):
    """Of voters and learners. `token` comes back in `Resolved`; the answer is the new Configuration. A leader that is
    to vote no more hands over instead: `not_leader`."""

    token: int
    change: Change


class TransferLeadership(msgspec.Struct, frozen=True):
    """Hand over to the most caught-up peer, if this replica leads; given up after an election timeout."""


SpeakEarly: TypeAlias = Callable[[list[tuple[NodeId, bytes]]], None]
"""Takes frames for peers, in order, before those of the step's output."""

Asked: TypeAlias = Propose | ReadIndex | ProposeChange
"""Somebody waits for its `Resolved`."""

Input: TypeAlias = PeerMessage | LinkUp | LinkDown | Asked | TransferLeadership | AboutSnapshots


class Resolved(msgspec.Struct, frozen=True):
    """The end of a proposal. Errors: `not_leader` (never entered the log), `discarded` (leadership was lost; it may yet
    be applied), `too_large`, `quarantined`, `refused` (a change; the answer is a Refusal). Without an error it was
    applied at `index` and `answer` is durable.

    Also the end of a `ReadIndex`. Errors: `not_leader` (or no more), `overloaded`. Without an error whoever has applied
    `index` sees all that was acknowledged anywhere before the read was asked."""

    token: int
    index: int
    answer: Any
    error: str | None


class ReplicaStatus(msgspec.Struct, frozen=True):
    node_id: NodeId
    role: Role
    term: int
    leader: NodeId | None
    commit_index: int
    applied_index: int
    last_index: int
    first_index: int
    voters: tuple[NodeId, ...]
    """By the latest configuration in the log."""
    connected: tuple[NodeId, ...]
    """Voters and learners to whom there is a link."""
    match_index: dict[NodeId, int]
    """Of each peer, while leader: what it holds durably."""
    is_quarantined: bool
    """Its tables are damaged: this replica must not be asked."""
    checkpoint: tuple[int, bytes] | None
    """Index and table digest after the newest checkpoint applied since the start."""
    dropped: dict[str, int]
    """Messages of peers that were not believed, by reason."""
    fresh_at: float = float("-inf")
    """See `consensus.reads.Reads`; in the time that is given to `step`."""
    quarantine_reason: str = ""
    needs_snapshot: bool = False
    """To go on it needs one: its tables are damaged, or the leader's log no longer holds what it lacks."""
    withdrawn: tuple[NodeId, ...] = ()
    """Of a leader: peers that are in quarantine."""
    installed_index: int = 0
    """In one status only: a snapshot of this index has replaced the tables, and no events tell what led to it."""
    configuration: Configuration = Configuration()
    """The latest in the log."""
    is_changing: bool = False
    """It is not applied yet."""
    is_removed: bool = False
    """By the latest configuration, or as a member says: this node takes part no more."""
    heard: tuple[NodeId, ...] = ()
    """Of a leader: members that answer."""
    caught_up: tuple[NodeId, ...] = ()
    """Of a leader: members that answer and hold what this leader held a moment ago."""
    is_new: bool = False
    """A leader that has not committed an entry of its own term."""

    @property
    def standing(self) -> Standing:
        """What a leader judges changes by."""
        return Standing(self.node_id, frozenset(self.caught_up), self.is_changing, self.is_new)


class Output(msgspec.Struct, frozen=True):
    """Everything in it is durable and may be told."""

    messages: list[tuple[NodeId, bytes]]
    resolved: list[Resolved]
    events: list[Any]
    status: ReplicaStatus
    next_deadline: float
    """Step again at this time if nothing arrives before; the current time if there is more to do at once."""
