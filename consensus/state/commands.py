"""The commands that change the replicated state.

Every command is idempotent by the ids in it, and carries everything that is not a function of the state: time, ids,
seeds, placement. The first byte of an encoded command is the format version; a struct may only gain fields, at its end
and with a default (see `DESIGN.md` of this package).
"""

from typing import TypeAlias

import msgspec

from consensus.state.rows import Failure, Knowledge, MemberStatus, Placement, RitualOffer, Row, Tier
from storage.ids import InstanceId, NodeId, SessionId


class Command(Row, frozen=True, kw_only=True, tag_field="command"):
    """Base of all commands."""


class RegisterMember(Command, frozen=True, kw_only=True, tag="register_member"):
    """A daemon has started, or what it offers has changed. A new `instance_id` for a known node means that the work
    of the former instance is lost: its leases are requeued in the same command. A Leaf is registered by its parent,
    with the Leaf's own time in `at_ms`, so that of two parents the later one counts; its leases stay."""

    node_id: NodeId
    instance_id: InstanceId
    name: str
    tier: Tier
    address: str
    http_address: str
    slots: int
    async_slots: int
    rituals: dict[str, RitualOffer]
    software: str
    at_ms: int
    parent: NodeId | None = None
    parent_instance: InstanceId | None = None
    labels: dict[str, str] = {}
    ritual_limits: dict[str, int] = {}


class SetMemberStatus(Command, frozen=True, kw_only=True, tag="set_member_status"):
    """Only for the instance it was decided about; a later registration wins. `dead` and `left` requeue its leases."""

    node_id: NodeId
    instance_id: InstanceId
    status: MemberStatus
    at_ms: int
    registered_at_ms: int | None = None
    """If given, only while this is its registration: a Leaf that hangs on another parent by now is passed over."""


class DrainMember(Command, frozen=True, kw_only=True, tag="drain_member"):
    """By a person: no new work for this instance, or that this ends. A new instance begins without it."""

    node_id: NodeId
    instance_id: InstanceId
    is_draining: bool
    at_ms: int
    is_leaving: bool = False
    hand_back_at_ms: int | None = None


class BranchSpec(Row, frozen=True, kw_only=True):
    """A branch as submitted."""

    ritual: str
    task: str
    parameters: dict[str, object]
    seed: int
    timeout_ms: int
    attempts_max: int
    placement: Placement | None = None


class Offer(Row, frozen=True, kw_only=True):
    """One free place of the proposing node, for a branch that its command makes ready: that branch is assigned by the
    same command, a commitment and a hop sooner than by the scheduler. A first branch overtakes nothing that waits; a
    consolidation may, so that what has begun ends. An offer that does not fit (other instance, not alive, ritual not
    offered) is passed over: the branch is queued. So is a branch with a placement, or whose ritual has a limit there,
    which are for the scheduler to judge."""

    node_id: NodeId
    instance_id: InstanceId
    lease_grace_ms: int
    """Added to the branch's timeout: the lease."""


class SubmitSession(Command, frozen=True, kw_only=True, tag="submit_session"):
    session_id: SessionId
    thought: str
    branches: list[BranchSpec]
    consolidation: BranchSpec
    submitted_by: NodeId
    at_ms: int
    main_session_id: SessionId | None = None
    offer: Offer | None = None
    """For the first branch, if no other session has work waiting."""
    priority: int = 0
    concurrency: int | None = None
    speculation: bool = True
    ritual_concurrency: dict[str, int] = {}


class CancelSession(Command, frozen=True, kw_only=True, tag="cancel_session"):
    """Cancels what is not terminal. Cancelling a finished session changes nothing and is answered as it stands."""

    session_id: SessionId
    reason: str
    at_ms: int


class Assignment(Row, frozen=True, kw_only=True):
    session_id: SessionId
    branch_index: int
    attempt: int
    """Must be the branch's last attempt + 1, so that a repeated command changes nothing."""
    node_id: NodeId
    instance_id: InstanceId
    deadline_ms: int


class AssignBranches(Command, frozen=True, kw_only=True, tag="assign_branches"):
    """Those that no longer fit (not pending, wrong attempt, node gone) are skipped and counted in the result."""

    assignments: list[Assignment]
    at_ms: int
    speculative: list[Assignment] = []
    """Of branches that are processing: a second attempt on another node, once beside each attempt."""


class Outcome(Row, frozen=True, kw_only=True):
    """How an attempt ended: exactly one of `knowledge` and `failure` is set."""

    session_id: SessionId
    branch_index: int
    attempt: int
    node_id: NodeId
    duration_ms: int
    ritual_version: str
    knowledge: Knowledge | None = None
    failure: Failure | None = None
    is_lost: bool = False
    """The worker was lost through no fault of the ritual (drain, worker killed by another ritual): a loss."""
    retry_at_ms: int = 0
    """The next attempt, if there is one, begins no earlier."""


class CompleteBranches(Command, frozen=True, kw_only=True, tag="complete_branches"):
    """Records outcomes. A repeated one is a no-op; one of a superseded attempt is refused and kept as evidence."""

    outcomes: list[Outcome]
    at_ms: int
    offer: Offer | None = None
    """For the consolidation of the first session that these outcomes make ready for it."""


class Requeue(Row, frozen=True, kw_only=True):
    session_id: SessionId
    branch_index: int
    attempt: int
    failure: Failure
    is_lost: bool
    """True: the node is gone. False: the lease ran out."""


class RequeueBranches(Command, frozen=True, kw_only=True, tag="requeue_branches"):
    """Ends attempts from outside: the node is gone or the lease ran out. Skips those that have moved on."""

    requeues: list[Requeue]
    at_ms: int


class Canary(Command, frozen=True, kw_only=True, tag="canary"):
    """Changes nothing but the row that says when a command last went all the way. Serves readiness, and as the index at
    which replicas compare table digests."""

    node_id: NodeId
    payload: bytes
    at_ms: int


ChangingCommand: TypeAlias = (
    RegisterMember
    | SetMemberStatus
    | DrainMember
    | SubmitSession
    | CancelSession
    | AssignBranches
    | CompleteBranches
    | RequeueBranches
)
AnyCommand: TypeAlias = ChangingCommand | Canary


class Applied(Row, frozen=True, kw_only=True, tag_field="answer", tag="applied"):
    """The answer of a command that was accepted. Meaning of the fields by command: `changed` counts what it changed
    (branches assigned, outcomes recorded, ...), `skipped` what no longer fitted."""

    index: int
    changed: int = 0
    skipped: int = 0


class Refused(Row, frozen=True, kw_only=True, tag_field="answer", tag="refused"):
    """The answer of a command that was refused; the state is untouched. `code` is stable."""

    index: int
    code: str
    message: str


Answer: TypeAlias = Applied | Refused

msgspec.msgpack.Decoder(AnyCommand)  # fails at import if two commands could be confused
