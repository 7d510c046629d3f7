"""How a use-case is refused: one exception, a stable code, what happened and what to do.

`CODES` is the closed set: faces (HTTP, CLI) map each code to their own status, and a test holds every code raised
anywhere to be in it.
"""

from typing import Final

from consensus.errors import ConsensusError
from consensus.state.commands import Refused
from consensus.state.rows import Session

CODES: Final[dict[str, str]] = {
    "ambiguous_node": "Several nodes have this name",
    "change_refused": "The change of members was refused",
    "disk_full": "The disk is full",
    "disk_low": "The disk is nearly full",
    "events_gone": "The events asked for are no longer kept",
    "forming": "This node does not belong to a mesh yet",
    "internal": "Unexpected failure",
    "invalid_argument": "An argument is not valid",
    "invalid_parameters": "The ritual does not accept these parameters",
    "invalid_session": "The session as submitted is not valid",
    "malformed_json": "The body is not JSON",
    "newer_command": "Not before every node is upgraded",
    "no_insight": "The session has no insight",
    "no_leader": "The mesh has no leader at the moment",
    "overloaded": "Too much is asked at once",
    "quarantined": "This replica has withdrawn itself",
    "refused": "The mesh refused the command",
    "replica_stopped": "The replica of this node has stopped",
    "session_exists": "The session id is taken by another submission",
    "stopping": "This node is stopping",
    "timeout": "Not done in time",
    "too_large": "Too large",
    "too_stale": "This node's state is older than the request allows",
    "too_many_sessions": "Too many sessions are open",
    "unavailable": "This node cannot answer at the moment",
    "unknown_branch": "No such branch",
    "unknown_key": "Unknown key",
    "unknown_node": "No such node",
    "unknown_ritual": "No such ritual",
    "unknown_session": "No such session",
}
"""Code -> title for a person."""


class ServiceError(Exception):
    """A use-case was refused. `detail` says what happened, `fix` what to do about it; `values` are further facts."""

    def __init__(self, code: str, detail: str, fix: str = "", **values: object) -> None:
        assert code in CODES, f"code {code!r} is not in CODES"
        super().__init__(f"{detail} {fix}".strip())
        self.code = code
        self.detail = detail
        self.fix = fix
        self.values = values


def too_stale(age_ms: int | None, max_age_ms: int) -> ServiceError:
    known = "it is not known how old its state is" if age_ms is None else f"its state may be {age_ms:,} ms old"
    return ServiceError(
        "too_stale", f"This node has not heard of the leader lately: {known}, allowed are {max_age_ms:,} ms.",
        "Ask another node, allow more with max_age_ms, or ask with level=linearizable.", age_ms=age_ms,
    )  # fmt: skip


def no_insight(session: Session) -> ServiceError:
    if session.status in ("failed", "cancelled"):
        why = f": {session.failure.message}" if session.failure is not None else ""
        return ServiceError(
            "no_insight", f"Session {session.id} is {session.status}{why}.", "It will have none; submit it anew.",
            session_status=session.status,
        )  # fmt: skip
    return ServiceError(
        "no_insight", f"Session {session.id} is {session.status}: its insight is not recorded yet.",
        f"Wait with GET /v1/sessions/{session.id}?wait=30s&until=terminal.", session_status=session.status,
    )  # fmt: skip


def of_consensus(error: ConsensusError) -> ServiceError:
    fixes = {
        "no_leader": "Most Core nodes must be running and reach each other; see /status. Repeating is safe with an id.",
        "timeout": "It may still take effect: repeat with the same id or Idempotency-Key, which changes nothing twice.",
        "disk_low": "Make room on the leader's machine (see /status), or wait until another node leads.",
        "replica_stopped": "Ask another node; this one must be looked at by a person, see /status.",
        "forming": "See /status for what it waits for.",
        "newer_command": "Upgrade the nodes that are named, or remove them from the mesh.",
        "quarantined": "Ask another node; this one repairs itself, see /status.",
    }
    code = {"stopped": "stopping"}.get(error.code, error.code if error.code in CODES else "unavailable")
    return ServiceError(code, str(error), fixes.get(code, "Try again, or ask another node."))


def of_refusal(answer: Refused) -> ServiceError:
    fixes = {
        "session_exists": "Use a new id for another session, or send exactly the same body to have the first answered.",
        "too_many_sessions": "Wait for running sessions to finish or cancel some.",
        "too_large": "Split the branches over several sessions with the same main_session_id.",
        "unknown_session": "See GET /v1/sessions.",
    }
    code = answer.code if answer.code in CODES else "refused"
    return ServiceError(code, answer.message, fixes.get(code, ""), reason=answer.code, index=answer.index)
