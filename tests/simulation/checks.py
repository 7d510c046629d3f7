"""What must hold whatever goes wrong. Raises Violation."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from consensus.engine import Role
from consensus.messages import AnyMessage, NextIndex
from consensus.steps import Output
from storage.ids import NodeId
from storage.memory import MemoryStore
from tests.simulation.machine import APPLIED_TABLE, table_digest

NEVER_DROPPED = ("second_leader", "conflict_below_commit", "impossible_index", "malformed_frame", "malformed_entries")
"""Reasons for which a guard drops only what no honest peer says."""

REJECTIONS_MAX = 40
"""Times a follower may send a leader back in one term. Honest ones need one for each conflicting term and each link
that is made anew: 7 was the most in 120 seeds."""


class Violation(Exception):
    """What must never happen, or did not happen in time."""


class Checks:
    """What has been seen of all nodes so far, and what contradicts it."""

    def __init__(self) -> None:
        self.agreed: dict[int, bytes] = {}
        """Index -> the command that was applied there first."""
        self.leaders: dict[int, NodeId] = {}
        """Term -> who led it."""
        self.acked: dict[int, bytes] = {}
        """Token -> command whose success was told to its proposer."""
        self._applied: dict[NodeId, int] = {}
        self._rejections: Counter[tuple[NodeId, NodeId, int]] = Counter()
        self._eventful: list[int] = []
        """Indexes whose commands yield events, in order."""
        self._told: dict[NodeId, int] = {}
        """How many of them each node has told its watchers in this life, or had applied before it."""

    def applies(self, i: NodeId, applied: Iterable[tuple[int, bytes]]) -> None:
        """State machine safety (Ongaro and Ousterhout, section 5.4.3)."""
        for index, command in applied:
            known = self.agreed.get(index)
            if known is None:
                self.agreed[index] = command
            elif known != command:
                raise Violation(f"index {index}: {i} applies {command!r}, another replica {known!r}")

    def told(self, i: NodeId, indexes: list[int]) -> None:
        """At these indexes watchers on this node get events: the same on every node, without gap and without repeat."""
        for index in indexes:
            if not self._eventful or index > self._eventful[-1]:
                self._eventful.append(index)
        start = self._told[i]
        expected = self._eventful[start : start + len(indexes)]
        if indexes != expected:
            raise Violation(f"{i}: watchers are told of {indexes}, not of {expected}")
        self._told[i] = start + len(indexes)

    def said(self, source: NodeId, target: NodeId, messages: Sequence[AnyMessage]) -> None:
        """A follower sends a leader back a few times in a term, not once an entry or once a batch."""
        for message in messages:
            if isinstance(message, NextIndex) and message.is_reset and not message.is_success:
                key = (source, target, message.sender_term)
                self._rejections[key] += 1
                if self._rejections[key] > REJECTIONS_MAX:
                    raise Violation(f"{source} sends {target} back for the {self._rejections[key]}th time in a term")

    def starts(self, i: NodeId, applied_index: int) -> None:
        before = self._applied.get(i, 0)
        if applied_index < before:
            raise Violation(f"{i}: applied {before} before its restart and {applied_index} after")
        self._told[i] = bisect_right(self._eventful, applied_index)

    def output(self, i: NodeId, output: Output) -> None:
        """One leader a term; applied indexes never go back; honest peers are believed."""
        status = output.status
        if status.role is Role.LEADER:
            first = self.leaders.setdefault(status.term, i)
            if first != i:
                raise Violation(f"term {status.term} has two leaders, {first} and {i}")
        before = self._applied.get(i, 0)
        if status.applied_index < before:
            raise Violation(f"{i}: applied index went back from {before} to {status.applied_index}")
        if status.is_quarantined:
            raise Violation(f"{i}: its tables differ from those of a majority")
        for reason in NEVER_DROPPED:
            if status.dropped.get(reason):
                raise Violation(f"{i}: an honest peer's message was dropped: {reason}")
        self._applied[i] = status.applied_index

    def acknowledged(self, i: NodeId, token: int, index: int, command: bytes, answer: object) -> None:
        if answer != (index, command):
            raise Violation(f"{i}: proposal {token} was answered with another's answer")
        self.acked[token] = command

    def tables(self, stores: Mapping[NodeId, MemoryStore]) -> None:
        """At the end, when all have applied the same: nothing acknowledged is lost, and all hold the same."""
        digests = {}
        for i, store in stores.items():
            with store.read() as txn:
                digests[i] = table_digest(txn)
                held = {value for _, value in txn.scan(APPLIED_TABLE)}
            lost = set(self.acked.values()) - held
            if lost:
                raise Violation(f"{i}: {len(lost)} acknowledged commands are lost, such as {min(lost)!r}")
        if len(set(digests.values())) != 1:
            raise Violation(f"tables differ: {digests}")
