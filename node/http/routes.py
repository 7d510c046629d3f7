"""The table of routes: method, path, what it is for, what it takes. The index page and the OpenAPI document are made
from it."""

from dataclasses import dataclass
from typing import Final

from node.http.arguments import FRESHNESS


@dataclass(frozen=True, slots=True)
class Route:
    name: str
    method: str
    path: str
    summary: str
    query: tuple[str, ...] = ()
    body: str | None = None
    """Schema of the request body."""
    answer: str = "Answer"
    """Schema of the answer."""


ROUTES: Final = (
    Route("index", "GET", "/", "this list"),
    Route("openapi", "GET", "/openapi.json", "this interface as an OpenAPI 3.1 document"),
    Route("status", "GET", "/status", "who this node is and how it sees the mesh", FRESHNESS),
    Route("health", "GET", "/healthz", "200 while this process works"),
    Route("readiness", "GET", "/readyz", "200 while the mesh makes progress, as seen from here"),
    Route("submit_session", "POST", "/v1/sessions",
          "submit a session; durable when answered. With dry_run=1: where would its branches go now",
          ("dry_run",), body="SessionSubmission", answer="SessionAnswer"),
    Route("list_sessions", "GET", "/v1/sessions", "sessions, newest first", ("after", "limit", "status", *FRESHNESS),
          answer="SessionPage"),
    Route("get_session", "GET", "/v1/sessions/{session_id}",
          "a session; waits for a change, or for its end with until=terminal", ("wait", "until", "rev", *FRESHNESS),
          answer="SessionAnswer"),
    Route("cancel_session", "POST", "/v1/sessions/{session_id}/cancel", "cancel what is not finished",
          body="Cancellation", answer="SessionAnswer"),
    Route("list_branches", "GET", "/v1/sessions/{session_id}/branches", "branches of a session, by index",
          ("after", "limit", "status", *FRESHNESS), answer="BranchPage"),
    Route("get_branch_at", "GET", "/v1/sessions/{session_id}/branches/{index}",
          "a branch by index, with knowledge, attempts and live progress", FRESHNESS, answer="BranchAnswer"),
    Route("get_insight", "GET", "/v1/sessions/{session_id}/insight", "the insight of a session, with provenance",
          ("after", "limit", *FRESHNESS), answer="InsightAnswer"),
    Route("get_branch", "GET", "/v1/branches/{branch_id}", "a branch by id", FRESHNESS, answer="BranchAnswer"),
    Route("why_branch", "GET", "/v1/branches/{branch_id}/why",
          "why a branch (or the next branch of a session) is where it is, and what would change it", FRESHNESS),
    Route("list_insights", "GET", "/v1/insights", "insights, newest first", ("after", "limit", *FRESHNESS),
          answer="InsightPage"),
    Route("list_members", "GET", "/v1/members", "nodes that have registered", FRESHNESS, answer="MemberList"),
    Route("get_trust", "GET", "/v1/trust", "fingerprints of the mesh secrets that every node accepts, asked for now",
          FRESHNESS, answer="TrustList"),
    Route("change_member", "POST", "/v1/members/{member}/change",
          "remove, replace, promote, demote, drain, undrain a member, or let it leave, by name or id; with dry_run say "
          "what it would do",
          body="MemberChange"),
    Route("list_rituals", "GET", "/v1/rituals", "rituals that this node or any other offers", FRESHNESS),
    Route("get_ritual", "GET", "/v1/rituals/{name}", "a ritual with its parameters", FRESHNESS),
    Route("watch_events", "GET", "/v1/events", "server-sent events; resumes with Last-Event-ID or after=",
          ("after", "session")),
    Route("get_backup", "GET", "/v1/backup", "all replicated tables as one checked file; see docs/operations.md"),
)  # fmt: skip
