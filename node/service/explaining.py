"""Why a branch is where it is: its state in a sentence, what rules out each node, what would change it, what is next.

What is told of nodes is what the scheduler decides by (`node.scheduler.placement`). Of links it is what the leader
sees, who is asked for it; if it does not answer, what this node sees (`seen_from`).
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from consensus.state import queries
from consensus.state.commands import BranchSpec, SubmitSession
from consensus.state.rows import Branch, Member, QueueEntry, Session
from node.scheduler.matching import labels_of
from node.scheduler.placement import Floor, Obstacle, rests_ms
from node.service.errors import ServiceError
from node.service.readings import Reading, Wanted
from node.service.service import NodeService
from node.service.sight import Sight
from node.service.submission import Submission
from node.service.times import iso
from storage.transactions import Transaction

DRY_RUN_MAX: Final = 1_000
"""Branches of a dry run: each looks at all members."""

RULED_OUT_MAX: Final = 20
"""Branches of a dry run of which every node is told: of a thousand, with a thousand members, it would be 100 MB."""

_NO_LEADER: Final = Obstacle(
    "no_leader",
    "this node knows of no leader, and only a leader gives out work",
    "bring back so many Core nodes that a majority is there, or connect this node with them",
)


async def why(service: NodeService, id_text: str, wanted: Wanted) -> Reading[dict[str, Any]]:
    """Of a branch, or of the branch of a session that is served next. Raises `unknown_branch`."""
    sight = await _look(service)
    age_ms = await service.fresh(wanted)
    status = service.status

    def read(txn: Transaction) -> dict[str, Any]:
        branch = queries.find_branch(txn, id_text)
        session = queries.get_session(txn, id_text if branch is None else branch.session_id)
        if session is None:
            raise ServiceError(
                "unknown_branch", f"No branch and no session has the id {id_text[:80]!r}.",
                "See GET /v1/sessions and the branches of a session.",
            )  # fmt: skip
        if branch is None:
            branch = _next_of(txn, session)
        return {**_document(service, sight, txn, session, branch), "seen_from": _seen_from(txn, sight)}

    return Reading(service.read(read), status.applied_index, wanted.level, age_ms, status.leader)


async def dry_run(service: NodeService, submission: Submission) -> dict[str, Any]:
    """Where each branch would go, if only this session were served with the places that are free now."""
    command, sight = submission.command, await _look(service)

    def read(txn: Transaction) -> dict[str, Any]:
        floor = Floor(sight.view(txn), service.now_ms())
        placements: list[dict[str, Any]] = []
        told = 0
        for index, spec in enumerate(command.branches[:DRY_RUN_MAX]):
            entry = _entry_of(spec, command, index)
            member = floor.choose(entry)
            held = floor.waits(entry) if member is None else None
            ruled_out = () if member is not None or told == RULED_OUT_MAX else floor.survey(entry)
            told += member is None and told < RULED_OUT_MAX
            placements.append(
                {
                    "branch_index": index,
                    "ritual": spec.ritual,
                    "node_id": None if member is None else member.node_id,
                    "name": None if member is None else member.name,
                    "waits": _told(held),
                    "ruled_out": [_candidate(row, obstacle) for row, obstacle in ruled_out],
                }
            )
            if member is not None:
                floor.take(entry, member)
        return {
            "placements": placements,
            "placed": sum(row["node_id"] is not None for row in placements),
            "total_branches": len(command.branches),
            "seen_from": _seen_from(txn, sight),
        }

    return await asyncio.to_thread(service.read, read)


def _next_of(txn: Transaction, session: Session) -> Branch:
    """The branch that says most of its session: one that waits, else one that runs, else the consolidation."""
    for status in ("pending", "processing"):
        found = queries.list_branches(txn, session.id, limit=1, status=status) if getattr(session, status) else []
        if found:
            return found[0]
    consolidation = queries.get_branch(txn, session.id, session.total_branches)
    assert consolidation is not None, "it was made with the session"
    return consolidation


def _document(service: NodeService, sight: Sight, txn: Transaction, session: Session, branch: Branch) -> dict[str, Any]:
    now_ms = service.now_ms()
    names = {member.node_id: member.name for member in queries.members(txn)}
    entry = queries.queue_entry(txn, session, branch.branch_index) if branch.status == "pending" else None
    held: Obstacle | None = None
    candidates: list[tuple[Member, Obstacle | None]] = []
    deadline: dict[str, Any] | None = None
    unknown: list[str] = []
    if entry is not None:
        view = sight.view(txn)
        floor = Floor(view, now_ms)
        held = _NO_LEADER if service.status.leader is None else floor.waits(entry)
        candidates = list(floor.survey(entry))
        unknown = _unknown_labels(entry, view.members)
        if rests_ms(entry, now_ms):
            deadline = {"at": iso(entry.not_before_ms), "what": "it may be tried again"}
    elif branch.status == "processing":
        deadline = {"at": iso(branch.deadline_ms), "what": "its lease ends, and it goes on elsewhere"}
    where = names.get(branch.node_id, branch.node_id) if branch.node_id is not None else None
    beside = ""
    if branch.speculative is not None:
        second = branch.speculative
        other = names.get(second.node_id, second.node_id)
        beside = f", which is slow, and beside it on {other} in attempt {second.attempt}"
        deadline = {
            "at": iso(branch.deadline_ms),
            "what": f"its lease ends, and attempt {second.attempt} goes on alone",
        }
    elif branch.status == "processing" and _has_stock(txn, branch):
        beside = ", or waits there for the next slot"
    return {
        "branch": {
            "id": branch.id, "session_id": branch.session_id, "branch_index": branch.branch_index, "role": branch.role,
            "ritual": branch.ritual, "status": branch.status, "attempt": branch.attempt, "priority": session.priority,
        },
        "sentence": _sentence(session, branch, entry, held, candidates, unknown, where, beside),
        "waits": _told(held),
        "candidates": [_candidate(row, obstacle) for row, obstacle in candidates],
        "unblock": _fixes(held, candidates),
        "next_deadline": deadline,
    }  # fmt: skip


def _has_stock(txn: Transaction, branch: Branch) -> bool:
    """Whether the node of the branch has more than it has slots."""
    member = queries.get_member(txn, branch.node_id or "")
    offer = None if member is None else member.rituals.get(branch.ritual)
    if member is None or offer is None:
        return False
    of_kind = {ritual for ritual, other in member.rituals.items() if other.kind == offer.kind}
    held = sum(lease.node_id == member.node_id and lease.ritual in of_kind for lease in queries.leases(txn))
    return held > (member.slots if offer.kind == "cpu" else member.async_slots)


def _sentence(
    session: Session, branch: Branch, entry: QueueEntry | None, held: Obstacle | None,
    candidates: list[tuple[Member, Obstacle | None]], unknown: list[str], where: str | None, beside: str,
) -> str:  # fmt: skip
    what = "The consolidation" if branch.role == "consolidation" else f"Branch {branch.branch_index}"
    match branch.status:
        case "completed":
            return f"{what} was completed by {where} in attempt {branch.attempt}."
        case "failed":
            reason = branch.failure.message if branch.failure is not None else "no reason is known"
            return f"{what} failed for good in attempt {branch.attempt}: {reason}"
        case "cancelled":
            return f"{what} was cancelled with its session."
        case "processing":
            return f"{what} executes on {where} in attempt {branch.attempt}{beside}."
        case "pending":
            pass
    if entry is None:
        return f"{what} waits until the other branches have ended: {session.pending + session.processing} have not."
    if held is not None:
        return f"{what} waits: {held.detail}."
    if not candidates:
        return f"{what} waits: the mesh has no nodes."
    if all(obstacle is not None for _, obstacle in candidates):
        none_has = f"; no node has the label {' or '.join(unknown)}" if unknown else ""
        return f"{what} waits: it fits on none of {len(candidates)} nodes now{none_has}."
    return (
        f"{what} waits for its turn: free places go to sessions of a higher priority first, and among equals to those "
        "that execute less."
    )


def _unknown_labels(entry: QueueEntry, members: Iterable[Member]) -> list[str]:
    known = {label for member in members for label in labels_of(member)}
    required = entry.placement.require if entry.placement is not None else []
    return sorted({condition.label for condition in required if condition.operator in ("in", "exists")} - known)


def _fixes(held: Obstacle | None, candidates: list[tuple[Member, Obstacle | None]]) -> list[str]:
    """What rules out single nodes need not change as long as another one fits."""
    obstacles = [obstacle for _, obstacle in candidates]
    ruled_out = [] if None in obstacles else obstacles
    return list(dict.fromkeys(obstacle.fix for obstacle in (held, *ruled_out) if obstacle is not None))


def _told(obstacle: Obstacle | None) -> dict[str, str] | None:
    return None if obstacle is None else obstacle._asdict()


def _candidate(member: Member, obstacle: Obstacle | None) -> dict[str, Any]:
    return {
        "node_id": member.node_id,
        "name": member.name,
        "fits": obstacle is None,
        "code": None if obstacle is None else obstacle.code,
        "detail": "has a free place" if obstacle is None else obstacle.detail,
    }


async def _look(service: NodeService) -> Sight:
    is_leader = service.status.leader == service.facts.node_id
    return (
        Sight(node_id=service.facts.node_id, is_leader=is_leader)
        if service.sights is None
        else await service.sights.look()
    )


def _seen_from(txn: Transaction, sight: Sight) -> dict[str, Any]:
    member = queries.get_member(txn, sight.node_id)
    return {"name": sight.node_id if member is None else member.name, "is_leader": sight.is_leader}


def _entry_of(spec: BranchSpec, command: SubmitSession, index: int) -> QueueEntry:
    return QueueEntry(
        session_id=command.session_id,
        branch_index=index,
        ritual=spec.ritual,
        attempt=1,
        timeout_ms=spec.timeout_ms,
        placement=spec.placement,
        concurrency=command.concurrency,
        ritual_concurrency=command.ritual_concurrency.get(spec.ritual),
    )
