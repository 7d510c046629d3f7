"""The rows of the replicated tables.

Sessions, branches and insights carry the field names of the SQL tables they can be mirrored to
(`distributed_sessions`, `session_branches`, `consolidated_insights`). Times are UTC milliseconds since the epoch, set
by whoever proposed the command: nothing here reads a clock. Rows are encoded as arrays, so a later version may only
append fields, and only with a default.
"""

from typing import Any, Literal, TypeAlias

import msgspec

from storage.ids import BranchId, InstanceId, NodeId, SessionId

Json: TypeAlias = Any
"""None, bool, int, finite float, str, list or dict with str keys; checked where it enters (`storage.codec`)."""

SessionStatus: TypeAlias = Literal["pending", "processing", "completed", "failed", "cancelled"]
BranchStatus: TypeAlias = Literal["pending", "processing", "completed", "failed", "cancelled"]
BranchRole: TypeAlias = Literal["branch", "consolidation"]
AttemptStatus: TypeAlias = Literal["processing", "completed", "failed", "lost", "cancelled", "superseded"]
MemberStatus: TypeAlias = Literal["alive", "suspect", "dead", "left"]
"""`suspect` keeps the work it has and gets nothing new."""
Tier: TypeAlias = Literal["core", "edge", "leaf"]
RitualKind: TypeAlias = Literal["async", "cpu"]


class Row(msgspec.Struct, frozen=True, array_like=True):
    """Immutable; changed with `msgspec.structs.replace`."""


class RitualOffer(Row, frozen=True, kw_only=True):
    """A ritual that a member can execute."""

    version: str
    kind: RitualKind


class Member(Row, frozen=True, kw_only=True):
    """A node that has registered. `instance_id` changes at every start of its daemon."""

    node_id: NodeId
    instance_id: InstanceId
    name: str
    tier: Tier
    address: str
    """host:port of its link listener as it announced it; a hint, never an identity."""
    http_address: str
    """host:port of its status port; may be loopback."""
    slots: int
    """CPU rituals it executes at the same time."""
    async_slots: int
    """Async rituals it executes at the same time."""
    rituals: dict[str, RitualOffer]
    software: str
    """Version of meshnode it runs."""
    status: MemberStatus = "alive"
    joined_at_ms: int = 0
    status_changed_at_ms: int = 0
    registered_at_ms: int = 0
    """Time of the registration that this row shows; an older one of the same instance does not replace it."""
    former_instance_ids: list[InstanceId] = []
    """The latest instances before this one, newest last: a delayed registration of theirs is refused."""
    # since command version 2:
    parent: NodeId | None = None
    """Of a Leaf: the node it hangs on."""
    parent_instance: InstanceId | None = None
    """The very instance of the parent: one that has restarted does not hold the uplink any more."""
    is_draining: bool = False
    """Gets no new work, by order of a person; of this instance only."""
    is_leaving: bool = False
    """It leaves the mesh when it is drained."""
    hand_back_at_ms: int | None = None
    """Of a draining member: when what it still executes is given to others."""
    labels: dict[str, str] = {}
    """What placement may ask for, besides those that everybody has (`node.scheduler.matching`)."""
    ritual_limits: dict[str, int] = {}
    """Of rituals that it offers: how many branches of it may run at the same time in the whole mesh."""


class Condition(Row, frozen=True, kw_only=True):
    """On a label of a member. `in`, `not_in`: its value is (not) one of `values`; without the label there is none."""

    label: str
    operator: Literal["in", "not_in", "exists", "missing"]
    values: list[str] = []


class Placement(Row, frozen=True, kw_only=True):
    """Where a branch may execute (`require`, `node`, `version`) and where it rather should (`prefer`, `spread`)."""

    require: list[Condition] = []
    """All must hold."""
    prefer: list[Condition] = []
    """The more hold, the better."""
    node: str | None = None
    """Name or id of the only node."""
    version: str | None = None
    """Of the ritual: one version, or comparisons that must all hold, as `>=1.2, <2`."""
    spread: str | None = None
    """Label over whose values the branches of the session are spread evenly."""


class Failure(Row, frozen=True, kw_only=True):
    """Why something failed, for a person: `code` is stable, `message` says what happened and what to do."""

    code: str
    message: str


class Session(Row, frozen=True, kw_only=True):
    id: SessionId
    thought: str
    main_session_id: SessionId | None = None
    status: SessionStatus = "pending"
    total_branches: int
    consolidation: str
    """Name of the ritual that consolidates."""
    submit_index: int
    """Log index of its submission: orders sessions and the queue."""
    body_digest: bytes
    """Of the submitted body: the same id with the same body is answered, with another body refused."""
    submitted_by: NodeId
    rev: int
    """Log index of the last change."""
    pending: int = 0
    processing: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    total_patterns: int = 0
    total_connections: int = 0
    novelty_sum: float = 0.0
    duration_sum_ms: int = 0
    """Sum of the durations of completed branches; over the wall time it is the parallel efficiency."""
    parallel_efficiency: float | None = None
    failure: Failure | None = None
    created_at_ms: int = 0
    started_at_ms: int | None = None
    completed_at_ms: int | None = None
    """When it became completed, failed or cancelled."""
    # since command version 2:
    priority: int = 0
    """Sessions of a higher one are served first."""
    concurrency: int | None = None
    """So many of its branches may run at the same time."""
    speculation: bool = True
    """A branch that takes much longer than the others may get a second attempt beside the first."""
    ritual_concurrency: dict[str, int] = {}
    """So many of its branches of a ritual may run at the same time."""


class Running(Row, frozen=True, kw_only=True):
    """An attempt under way."""

    attempt: int
    node_id: NodeId
    instance_id: InstanceId
    deadline_ms: int
    started_at_ms: int


class Branch(Row, frozen=True, kw_only=True):
    """One parallel part of a session. The consolidation is a branch too: index `total_branches`, role
    `consolidation`; it is assigned, leased and recorded like any other and left out of lists of branches."""

    id: BranchId
    session_id: SessionId
    branch_index: int
    role: BranchRole = "branch"
    ritual: str
    task: str
    parameters: dict[str, Json]
    seed: int
    """64-bit; the ritual's source of randomness, so that a repeated attempt repeats."""
    timeout_ms: int
    """A single attempt may take this long."""
    attempts_max: int
    """Failed attempts before the branch fails."""
    rev: int
    status: BranchStatus = "pending"
    attempt: int = 0
    """Number of the current or last attempt; 0 before the first. Given to the ritual as its fencing token."""
    node_id: NodeId | None = None
    """Where the current or last attempt executes."""
    instance_id: InstanceId | None = None
    deadline_ms: int | None = None
    """End of the lease while processing."""
    failures: int = 0
    losses: int = 0
    """Attempts lost with their node; counted apart, because the ritual is hardly to blame."""
    created_at_ms: int = 0
    started_at_ms: int | None = None
    """Of the current or last attempt."""
    completed_at_ms: int | None = None
    duration_ms: int | None = None
    ritual_version: str | None = None
    patterns_found: int = 0
    connections_found: int = 0
    novelty_score: float = 0.0
    failure: Failure | None = None
    # since command version 2:
    placement: Placement | None = None
    speculative: Running | None = None
    """A second attempt under way, on another node; the first valid result of the two counts."""


class Knowledge(Row, frozen=True, kw_only=True):
    """What a ritual returns. Stored apart from the branch, because lists of branches do not need it."""

    patterns: list[str] = []
    connections: list[tuple[str, str]] = []
    novelty: float = 0.0
    """0 to 1."""
    score: float | None = None
    """Ranks outcomes of the same session; higher is better."""
    summary: str = ""
    """One line for a person."""
    result: Json = None


class Attempt(Row, frozen=True, kw_only=True):
    """One execution of a branch on one node; kept as evidence."""

    session_id: SessionId
    branch_index: int
    attempt: int
    node_id: NodeId
    instance_id: InstanceId
    status: AttemptStatus = "processing"
    started_at_ms: int = 0
    ended_at_ms: int | None = None
    duration_ms: int | None = None
    failure: Failure | None = None
    late_result_digest: bytes | None = None
    """Digest of a result that was refused: it arrived after the attempt had ended, or it was too large or invalid."""


class Insight(Row, frozen=True, kw_only=True):
    """The consolidated knowledge of a session. Totals are counted by the state machine, the rest is written by the
    consolidation ritual. Provenance is not stored: it is read from the branches that fed it."""

    id: str
    session_id: SessionId
    total_patterns: int
    total_connections: int
    average_novelty: float
    synthesis: str
    emergent_patterns: list[str]
    next_steps: list[str]
    ranking: list[Json]
    """Best first; each a map with at least `branch_index`, `task` and `score`."""
    details: Json
    """Whatever else the consolidation ritual returned."""
    branches_used: int
    branches_failed: int
    ritual: str
    ritual_version: str
    created_at_ms: int
    number: int = 0
    """Insights are numbered from 1 in the order in which they were recorded."""


class PatternCount(Row, frozen=True, kw_only=True):
    """A pattern that the mesh has seen, in its normal form (`consensus.state.patterns`)."""

    pattern: str
    count: int
    """Results and insights in which it was found."""
    first_session_id: SessionId


class LastCanary(Row, frozen=True, kw_only=True):
    """When a command last went all the way."""

    index: int
    node_id: NodeId
    payload: bytes
    at_ms: int


class QueueEntry(Row, frozen=True, kw_only=True):
    """A pending branch, in the order in which it will be assigned."""

    session_id: SessionId
    branch_index: int
    ritual: str
    attempt: int
    """Number that the next attempt will have."""
    timeout_ms: int
    role: BranchRole = "branch"
    avoid: NodeId | None = None
    """Where the last attempt failed or was lost; another node is preferred."""
    # since command version 2:
    placement: Placement | None = None
    concurrency: int | None = None
    """Of its session."""
    not_before_ms: int = 0
    """It rests until then after a failure."""
    ritual_concurrency: int | None = None
    """Of its session, for its ritual."""


class Lease(Row, frozen=True, kw_only=True):
    """A processing branch: who executes it and until when."""

    session_id: SessionId
    branch_index: int
    ritual: str
    attempt: int
    node_id: NodeId
    instance_id: InstanceId
    deadline_ms: int
