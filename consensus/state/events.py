"""What happened, as told to watchers. An event's number is the log index of the command that caused it and its place
among that command's events; both are the same on every replica, so a stream can be resumed on another node."""

from typing import TypeAlias

from consensus.state.rows import AttemptStatus, Failure, MemberStatus, Row
from storage.ids import InstanceId, NodeId, SessionId


class Event(Row, frozen=True, kw_only=True, tag_field="event"):
    at_ms: int


class MemberRegistered(Event, frozen=True, kw_only=True, tag="member_registered"):
    node_id: NodeId
    instance_id: InstanceId
    name: str


class MemberStatusChanged(Event, frozen=True, kw_only=True, tag="member_status_changed"):
    node_id: NodeId
    status: MemberStatus


class MemberDraining(Event, frozen=True, kw_only=True, tag="member_draining"):
    """Begun or ended by a person."""

    node_id: NodeId
    is_draining: bool
    is_leaving: bool


class SessionSubmitted(Event, frozen=True, kw_only=True, tag="session_submitted"):
    session_id: SessionId
    total_branches: int


class SessionCompleted(Event, frozen=True, kw_only=True, tag="session_completed"):
    """Its insight is recorded."""

    session_id: SessionId


class SessionFailed(Event, frozen=True, kw_only=True, tag="session_failed"):
    session_id: SessionId
    failure: Failure


class SessionCancelled(Event, frozen=True, kw_only=True, tag="session_cancelled"):
    session_id: SessionId
    reason: str


class BranchAssigned(Event, frozen=True, kw_only=True, tag="branch_assigned"):
    session_id: SessionId
    branch_index: int
    attempt: int
    node_id: NodeId
    instance_id: InstanceId


class BranchCompleted(Event, frozen=True, kw_only=True, tag="branch_completed"):
    session_id: SessionId
    branch_index: int
    attempt: int
    node_id: NodeId
    duration_ms: int


class BranchFailed(Event, frozen=True, kw_only=True, tag="branch_failed"):
    """Terminal: no attempt is left."""

    session_id: SessionId
    branch_index: int
    attempt: int
    failure: Failure


class BranchRequeued(Event, frozen=True, kw_only=True, tag="branch_requeued"):
    """The attempt is over, another will follow."""

    session_id: SessionId
    branch_index: int
    attempt: int
    node_id: NodeId
    failure: Failure


class AttemptEnded(Event, frozen=True, kw_only=True, tag="attempt_ended"):
    """One of two attempts of a branch: the other goes on, or has brought the result (`superseded`), or the session was
    cancelled."""

    session_id: SessionId
    branch_index: int
    attempt: int
    node_id: NodeId
    status: AttemptStatus


class BranchCancelled(Event, frozen=True, kw_only=True, tag="branch_cancelled"):
    """`node_id` and `attempt` say what to stop, if it was processing."""

    session_id: SessionId
    branch_index: int
    attempt: int
    node_id: NodeId | None


AnyEvent: TypeAlias = (
    MemberRegistered
    | MemberStatusChanged
    | MemberDraining
    | SessionSubmitted
    | SessionCompleted
    | SessionFailed
    | SessionCancelled
    | BranchAssigned
    | BranchCompleted
    | BranchFailed
    | BranchRequeued
    | BranchCancelled
    | AttemptEnded
)


class Numbered(Row, frozen=True, kw_only=True):
    """An event with its number `index.position`."""

    index: int
    position: int
    event: AnyEvent
