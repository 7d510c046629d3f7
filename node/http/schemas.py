"""JSON Schemas of what goes in and out, made from the rows where they are rows."""

from functools import cache
from typing import Any, get_args

import msgspec

from consensus.state.limits import ATTEMPTS_MAX, BRANCHES_PER_SESSION_MAX, PRIORITY_MAX
from consensus.state.rows import Attempt, Branch, Insight, Knowledge, Member, Session
from node.http.arguments import AGE_MS_MAX
from node.http.problems import FACE_CODES
from node.http.render import outside_names
from node.service import draining, voting
from node.service.errors import CODES
from node.service.paging import PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX
from node.service.readings import Level, Until
from node.service.submission import TIMEOUT_S_MAX

_FRESHNESS: dict[str, Any] = {
    "as_of_index": {"type": "integer", "description": "everything up to this index of the log is in the answer"},
    "level": {"enum": list(get_args(Level))},
    "age_ms": {
        "type": ["integer", "null"],
        "description": "for how long something may have been answered elsewhere that is not in this answer",
    },
    "leader": {"type": ["string", "null"], "description": "whom this node follows"},
}

QUERY: dict[str, dict[str, Any]] = {
    "level": {
        "schema": {"enum": list(get_args(Level)), "default": "stale"},
        "description": "stale: as this node knows; leader: with all that the leader knew when it was asked; "
        "linearizable: with all that was answered anywhere before the question",
    },
    "max_age_ms": {
        "schema": {"type": "integer", "minimum": 0, "maximum": AGE_MS_MAX},
        "description": "of a stale answer: an older one is refused with too_stale",
    },
    "limit": {"schema": {"type": "integer", "minimum": 1, "maximum": PAGE_ROWS_MAX, "default": PAGE_ROWS_DEFAULT}},
    "until": {"schema": {"enum": list(get_args(Until)), "default": "change"}},
    "rev": {"schema": {"type": "integer", "minimum": 0}},
}
"""Query parameters that are not just text."""


@cache
def schemas() -> dict[str, Any]:
    rows = {kind.__name__: _row(kind) for kind in (Session, Branch, Knowledge, Attempt, Insight, Member)}
    rows["Member"]["properties"]["secrets"] = {
        "type": ["array", "null"],
        "items": {"type": "string"},
        "description": "fingerprints of the mesh secrets it accepts, the one it presents first; null: not known here, "
        "see /v1/trust",
    }
    rows["Member"]["properties"]["address"]["description"] = (
        "where it takes links; of a node that takes them on all its addresses (auto), the one under which this node "
        "knows it"
    )
    rows["Member"]["properties"]["command_version"] = {"type": "integer", "description": "the newest command it knows"}
    rows["Member"]["properties"]["standing"] = {
        "type": ["string", "null"],
        "description": "voter, standby, learner (catching up), left, removed or none; null: not known here",
    }
    rows["Member"]["properties"]["running"] = {"type": "integer", "description": "attempts that it executes"}
    rows["Member"]["properties"]["draining"] = {"enum": ["draining", "drained", "leaving", None]}
    return {
        **rows,
        "SessionSubmission": _submission(),
        "MemberChange": _object(
            {
                "action": {
                    "type": "string",
                    "enum": [*voting.ACTIONS, *draining.ACTIONS],
                },
                "by": {"type": "string"},
                "dry_run": {"type": "boolean"},
                "grace_s": {"type": ["number", "null"]},
            }
        ),
        "Cancellation": _object({"reason": {"type": "string"}}),
        "Answer": {"type": "object"},
        "SessionAnswer": _object({"session": _ref("Session"), **_FRESHNESS}),
        "SessionPage": _page("sessions", "Session"),
        "BranchPage": _page("branches", "Branch"),
        "InsightPage": _page("insights", "Insight"),
        "MemberList": _object({"members": _list("Member"), **_FRESHNESS}),
        "TrustList": _object(
            {
                "nodes": {
                    "type": "array",
                    "items": _object(
                        {
                            "node_id": {"type": "string"},
                            "name": {"type": "string"},
                            "address": {"type": "string", "description": "as the node sees it to which it is linked"},
                            "accepts": {
                                "type": ["array", "null"],
                                "items": {"type": "string"},
                                "description": "fingerprints, the presented one first; null: not known",
                            },
                            "unknown": {"type": "string", "description": "why it is not known"},
                        }
                    ),
                },
                **_FRESHNESS,
            }
        ),
        "BranchAnswer": _object(
            {
                "branch": _ref("Branch"),
                "knowledge": {"anyOf": [_ref("Knowledge"), {"type": "null"}]},
                "attempts": _list("Attempt"),
                **_FRESHNESS,
            }
        ),
        "InsightAnswer": _object(
            {
                "insight": _ref("Insight"),
                "provenance": {"type": "array", "items": {"type": "object"}},
                "provenance_next": {"type": ["string", "null"]},
                **_FRESHNESS,
            }
        ),
        "Problem": {
            **_object(
                {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "code": {"enum": sorted({*CODES, *FACE_CODES})},
                    "detail": {"type": "string"},
                    "fix": {"type": "string"},
                }
            ),
            "required": ["type", "title", "status", "code", "detail", "fix"],
        },
    }


def _row(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The fields under their names outside; a type where it is plain."""
    plain = {int: "integer", float: "number", str: "string", bool: "boolean"}
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    properties: dict[str, Any] = {}
    for name, outside, is_time in outside_names(kind):
        if is_time:
            properties[outside] = {"type": ["string", "null"], "format": "date-time"}
        else:
            known = plain.get(types[name])
            properties[outside] = {"type": known} if known else {}
    return _object(properties)


def _submission() -> dict[str, Any]:
    timeout = {"type": "number", "minimum": 0.001, "maximum": TIMEOUT_S_MAX}
    attempts = {"type": "integer", "minimum": 1, "maximum": ATTEMPTS_MAX}
    branch = _object(
        {
            "ritual": {"type": "string"},
            "task": {"type": "string", "minLength": 1},
            "parameters": {"type": "object"},
            "seed": {"type": "integer", "minimum": 0},
            "timeout_s": timeout,
            "attempts_max": attempts,
            **_placement(),
        }
    )
    return {
        **_object(
            {
                "id": {"type": "string", "format": "uuid"},
                "thought": {"type": "string", "minLength": 1},
                "main_session_id": {"type": ["string", "null"], "format": "uuid"},
                "branches": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": BRANCHES_PER_SESSION_MAX,
                    "items": {**branch, "required": ["task"], "additionalProperties": False},
                },
                "consolidation": {**branch, "additionalProperties": False},
                "ritual": {"type": "string", "description": "of branches that name none"},
                "timeout_s": {**timeout, "description": "of branches that name none"},
                "attempts_max": {**attempts, "description": "of branches that name none"},
                "priority": {"type": "integer", "minimum": -PRIORITY_MAX, "maximum": PRIORITY_MAX, "default": 0},
                "concurrency": {"type": "integer", "minimum": 1, "description": "branches at the same time, at most"},
                "ritual_concurrency": {
                    "type": "object",
                    "additionalProperties": {"type": "integer", "minimum": 1},
                    "description": "of a ritual: branches of it at the same time, at most",
                },
                "speculation": {
                    "type": "boolean",
                    "default": True,
                    "description": "a branch that is much slower than the others may get a second attempt meanwhile",
                },
                **_placement(),
            }
        ),
        "required": ["thought", "branches"],
        "additionalProperties": False,
    }


def _placement() -> dict[str, Any]:
    """Where branches may execute; what a session says counts for branches that do not say it."""
    texts = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    condition = {"anyOf": [{"type": "string"}, {"type": "boolean"}, texts, _object({"in": texts, "not_in": texts})]}
    labels = {"type": "object", "additionalProperties": condition}
    return {
        "require": {**labels, "description": "labels that a node must have; true: any value, false: not there"},
        "prefer": {**labels, "description": "labels that a node should have, if one is free"},
        "node": {"type": "string", "description": "name or id of the only node"},
        "tier": {"anyOf": [{"enum": ["core", "edge", "leaf"]}, texts]},
        "spread": {"type": "string", "description": "label over whose values branches are spread, as name or rack"},
        "ritual_version": {"type": "string", "description": "1.2, or comparisons as >=1.2, <2"},
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _ref(name)}


def _page(key: str, name: str) -> dict[str, Any]:
    return _object({key: _list(name), "next": {"type": ["string", "null"]}, **_FRESHNESS})
