"""The replicated domain, and what must hold of sessions, branches and attempts whatever is applied."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consensus.machine import DomainMachine
from consensus.state import queries
from consensus.state.events import (
    AttemptEnded,
    BranchAssigned,
    BranchCancelled,
    BranchCompleted,
    BranchFailed,
    BranchRequeued,
    Numbered,
)
from mesh.proposals import FoundingRecord
from node.executor.work import AttemptKey
from storage.ids import NodeId
from storage.transactions import Transaction
from tests.simulation.checks import Checks, Violation
from tests.simulation.executor import proof

if TYPE_CHECKING:
    from consensus.state.rows import Branch


@dataclass(frozen=True, slots=True)
class Applied:
    """One command on one replica."""

    index: int
    command: bytes
    events: Sequence[Numbered]
    branches: list["Branch | None"]
    """As it stands after the event, for each event of an assignment or a completion; else None."""
    results: list[object]
    """The recorded result, for each event of a completion."""


class ObservedDomain(DomainMachine):
    """Notes what it applies; it counts when the commit has succeeded."""

    def __init__(self, checks: "MeshChecks") -> None:
        self._checks = checks
        self.applied: list[Applied] = []

    def apply(self, txn: Transaction, index: int, command: bytes) -> tuple[Any, list[Numbered]]:
        answer, events = super().apply(txn, index, command)
        branches: list[Branch | None] = [None] * len(events)
        results: list[object] = [None] * len(events)
        if index > self._checks.followed_to:
            for position, numbered in enumerate(events):
                event = numbered.event
                if isinstance(event, BranchAssigned | BranchCompleted):
                    branches[position] = queries.get_branch(txn, event.session_id, event.branch_index)
                if isinstance(event, BranchCompleted):
                    knowledge = queries.get_result(txn, event.session_id, event.branch_index)
                    results[position] = None if knowledge is None else knowledge.result
        self.applied.append(Applied(index, command, events, branches, results))
        return answer, events


_OF_BRANCHES = BranchAssigned | BranchCompleted | BranchRequeued | BranchFailed | BranchCancelled | AttemptEnded


class _Course:
    """Of a branch, as its events tell it."""

    def __init__(self) -> None:
        self.attempts = 0
        self.holders: dict[int, tuple[NodeId, str]] = {}
        """Who executes which attempt: two at most, on different nodes."""
        self.leased_until: dict[int, float] = {}
        """By the clock of the world."""
        self.end: str | None = None


class MeshChecks(Checks):
    """Also: one founding; attempts follow each other, two at a time at most and never on one node; a branch ends once,
    by an attempt under way, with what that attempt produced; a lease is not taken back before it has lasted as long as
    it was to, whatever wall clocks say."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self.followed_to = 0
        self.mesh_ids: dict[NodeId, str] = {}
        self.attempts_started: dict[AttemptKey, str] = {}
        self.branches_ended = 0
        self.speculative = 0
        """Second attempts that were begun beside a first."""
        self._courses: dict[tuple[str, int], _Course] = {}

    def founded(self, i: NodeId, record: FoundingRecord) -> None:
        self.mesh_ids[i] = record.mesh_id
        if len(set(self.mesh_ids.values())) > 1:
            raise Violation(f"two meshes: {self.mesh_ids}")

    def started(self, key: AttemptKey, instance_id: str) -> None:
        first = self.attempts_started.setdefault(key, instance_id)
        if first != instance_id:
            raise Violation(f"{key} is executed by {first} and by {instance_id}")

    def follow(self, i: NodeId, applied: list[Applied]) -> None:
        self.applies(i, ((one.index, one.command) for one in applied))
        self.told(i, [one.index for one in applied if one.events])
        for one in applied:
            if one.index > self.followed_to:
                self.followed_to = one.index
                for numbered, branch, result in zip(one.events, one.branches, one.results, strict=True):
                    self._follow(numbered.event, branch, result)

    def _follow(self, event: Any, branch: "Branch | None", result: object) -> None:
        if not isinstance(event, _OF_BRANCHES):
            return
        course = self._courses.setdefault((event.session_id, event.branch_index), _Course())
        if course.end is not None:
            raise Violation(f"it ended by {course.end}, and then came {event}")
        if isinstance(event, BranchAssigned):
            assert branch is not None
            beside = branch.speculative
            is_beside = beside is not None and beside.attempt == event.attempt
            nodes = [node_id for node_id, _ in course.holders.values()]
            if event.attempt != course.attempts + 1 or len(nodes) != is_beside or event.node_id in nodes:
                raise Violation(f"attempts are held by {course.holders}, and then came {event}")
            self.speculative += is_beside
            course.attempts = event.attempt
            course.holders[event.attempt] = (event.node_id, event.instance_id)
            deadline_ms = beside.deadline_ms if is_beside and beside is not None else branch.deadline_ms or 0
            course.leased_until[event.attempt] = self._now() + (deadline_ms - event.at_ms) / 1000
            if deadline_ms < event.at_ms + branch.timeout_ms:
                raise Violation(f"the lease ends before the attempt may: {event}")
            return
        if event.attempt not in course.holders:
            raise Violation(f"attempts are held by {course.holders}, and then came {event}")
        node_id, instance_id = course.holders.pop(event.attempt)
        if not isinstance(event, BranchFailed) and event.node_id != node_id:
            raise Violation(f"{node_id} holds the lease, and then came {event}")
        if isinstance(event, AttemptEnded):
            return
        if course.holders:
            raise Violation(f"attempts are held by {course.holders}, and then came {event}")
        if isinstance(event, BranchRequeued):
            left_s = course.leased_until[event.attempt] - self._now()
            if event.failure.code == "lease_expired" and left_s > 1e-6:
                raise Violation(f"the lease would last {left_s} s more, and then came {event}")
            return
        course.end = type(event).__name__
        self.branches_ended += 1
        if isinstance(event, BranchCompleted):
            assert branch is not None
            key = AttemptKey(event.session_id, event.branch_index, event.attempt)
            if branch.role == "branch" and result != proof(key, instance_id):
                raise Violation(f"{key} on {instance_id} did not produce {result!r}")
