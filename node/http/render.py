"""Rows to JSON: the field names of the rows, times as ISO 8601 UTC with milliseconds, bytes as hex, and what only the
state machine needs left out. Pure."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import msgspec

from consensus.state.events import Numbered
from consensus.state.rows import Branch, Insight, Session
from consensus.state.versions import known_to
from node.service.ports import LiveView
from node.service.readings import BranchDetail, InsightDetail, Reading, Submitted
from node.service.times import iso

_COMMANDS: Final = re.compile(r"[+.]commands\.[0-9]+$")
_SCALARS: Final = frozenset({str, int, float, bool})
_HIDDEN: Final = {"Session": {"body_digest", "novelty_sum"}}
_TIMES: Final = {"at_ms": "at", "deadline_ms": "deadline"}


def to_json(value: Any) -> Any:
    """Any row, or lists and maps of them."""
    if value is None or type(value) in _SCALARS:  # most values: asked first
        return value
    if isinstance(value, msgspec.Struct):
        document = {}
        for name, out, is_time in outside_names(type(value)):
            field = getattr(value, name)
            if is_time:
                field = iso(field)
            elif field is not None and type(field) not in _SCALARS:
                field = to_json(field)
            document[out] = field
        return document
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


@cache
def outside_names(kind: type[msgspec.Struct]) -> tuple[tuple[str, str, bool], ...]:
    """Of a row type: field, its name outside, whether it is a point in time."""
    plan = []
    for name in kind.__struct_fields__:
        if name in _HIDDEN.get(kind.__name__, ()):
            continue
        is_time = name in _TIMES or name.endswith("_at_ms")
        plan.append((name, _TIMES.get(name, name.removesuffix("_ms")) if is_time else name, is_time))
    return tuple(plan)


def session(row: Session) -> dict[str, Any]:
    done = row.completed
    return {**to_json(row), "average_novelty": row.novelty_sum / done if done else 0.0}


def branch(row: Branch, live: LiveView | None) -> dict[str, Any]:
    return {**to_json(row), "live": live_of(live)}


def live_of(live: LiveView | None) -> dict[str, Any] | None:
    if live is None:
        return None
    return {
        "node_id": live.node_id, "attempt": live.attempt, "progress": live.progress, "message": live.message,
        "lines": list(live.lines),
    }  # fmt: skip


def branch_detail(detail: BranchDetail) -> dict[str, Any]:
    return {
        "branch": branch(detail.branch, detail.live),
        "knowledge": to_json(detail.knowledge),
        "attempts": to_json(detail.attempts),
    }


def insight(row: Insight) -> dict[str, Any]:
    return dict(to_json(row))


def insight_detail(detail: InsightDetail) -> dict[str, Any]:
    return {
        "insight": {**insight(detail.insight), "parallel_efficiency": detail.session.parallel_efficiency},
        "provenance": [
            {
                "branch_index": row.branch_index, "branch_id": row.id, "node_id": row.node_id, "attempt": row.attempt,
                "ritual": row.ritual, "ritual_version": row.ritual_version, "duration_ms": row.duration_ms,
            }
            for row in detail.provenance.rows
        ],
        "provenance_next": detail.provenance.next,
    }  # fmt: skip


def submitted(result: Submitted) -> dict[str, Any]:
    """Also where the local replica has not applied the submission yet: then as it was accepted."""
    command = result.command
    shown = session(result.session) if result.session is not None else {
        "id": command.session_id, "thought": command.thought, "main_session_id": command.main_session_id,
        "status": "pending", "total_branches": len(command.branches), "submit_index": result.index,
        "submitted_by": command.submitted_by, "rev": result.index, "pending": len(command.branches),
        "processing": 0, "completed": 0, "failed": 0, "cancelled": 0, "created_at": iso(command.at_ms),
    }  # fmt: skip
    return {
        "session": shown, "id": command.session_id, "index": result.index, "created": result.created,
        "as_of_index": result.as_of_index, "level": "linearizable", "age_ms": 0, "leader": result.leader,
    }  # fmt: skip


def freshness(reading: Reading[Any]) -> dict[str, Any]:
    return {
        "as_of_index": reading.as_of_index, "level": reading.level, "age_ms": reading.age_ms, "leader": reading.leader,
    }  # fmt: skip


def software(label: str) -> dict[str, Any]:
    """What a node registers with: its version, and apart from it the newest command it knows."""
    return {"software": _COMMANDS.sub("", label), "command_version": known_to(label)}


def event(numbered: Numbered) -> dict[str, Any]:
    kind = str(numbered.event.__struct_config__.tag)
    return {
        "id": event_id(numbered), "index": numbered.index, "position": numbered.position, "event": kind,
        **to_json(numbered.event),
    }  # fmt: skip


def event_id(numbered: Numbered) -> str:
    return f"{numbered.index}.{numbered.position}"


def rows(items: Sequence[Any]) -> list[Any]:
    return [to_json(item) for item in items]
