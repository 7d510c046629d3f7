"""The life of a session: submitted, started by its first assignment, consolidated when every branch has ended.

Rules a reader must not break:
- The consolidation is a branch at index `total_branches`, made with the session. It is queued only when every other
  branch is terminal and at least one has completed; until then it is pending and neither queued nor leased. It is not
  in the counters, and it is no branch of the lists.
- All branches failed: the session fails and nothing is consolidated. The consolidation failed: the session fails.
- Finished is final: no command changes a session that is completed, failed or cancelled.
"""

from typing import TypeGuard

from msgspec.structs import replace

from consensus.state.attempts import announce, end, first_of
from consensus.state.commands import Answer, Applied, BranchSpec, CancelSession, Refused, SubmitSession
from consensus.state.encoding import body_digest, clipped_reason
from consensus.state.events import BranchCancelled, SessionCancelled, SessionCompleted, SessionFailed, SessionSubmitted
from consensus.state.limits import OPEN_SESSIONS_MAX
from consensus.state.patterns import note_patterns
from consensus.state.rows import (
    Branch,
    BranchRole,
    Failure,
    Insight,
    Json,
    Knowledge,
    QueueEntry,
    Session,
    SessionStatus,
)
from consensus.state.tables import (
    BRANCH_IDS,
    BRANCHES,
    INSIGHTS,
    INSIGHTS_BY_NUMBER,
    QUEUE,
    SESSIONS,
    SESSIONS_BY_INDEX,
    SessionEdit,
    Workspace,
    branch_id,
    decode_branch,
    encode,
    encode_row,
    queue_prefix,
    u32,
    uuid_key,
)
from storage.keys import prefix_end, u64


def submit(work: Workspace, command: SubmitSession) -> Answer:
    session_key = uuid_key(command.session_id)
    assert session_key is not None, "checked when it was decoded"
    body = body_digest(command)
    existing = work.session(command.session_id)
    if existing is not None:
        if existing.row.body_digest == body:
            return Applied(index=work.index)
        return Refused(
            index=work.index,
            code="session_exists",
            message=f"session {command.session_id} exists with another body; choose a new id",
        )
    if work.counters.open_sessions >= OPEN_SESSIONS_MAX:
        return Refused(
            index=work.index,
            code="too_many_sessions",
            message=f"{OPEN_SESSIONS_MAX} sessions are open; wait until some have finished, or cancel some",
        )
    total = len(command.branches)
    session = Session(
        id=command.session_id,
        thought=command.thought,
        main_session_id=command.main_session_id,
        total_branches=total,
        consolidation=command.consolidation.ritual,
        submit_index=work.index,
        body_digest=body,
        submitted_by=command.submitted_by,
        rev=work.index,
        pending=total,
        created_at_ms=command.at_ms,
        priority=command.priority,
        concurrency=command.concurrency,
        ritual_concurrency=command.ritual_concurrency,
        speculation=command.speculation,
    )
    work.insert(SESSIONS, session_key, encode_row(session))
    work.insert(SESSIONS_BY_INDEX, u64(work.index), session_key)
    prefix = queue_prefix(command.priority, work.index)
    for branch_index, spec in enumerate(command.branches):
        branch = _insert_branch(work, session, session_key, branch_index, spec, "branch")
        work.insert(QUEUE, prefix + u32(branch_index), encode_row(queue_entry(branch, session)))
    _insert_branch(work, session, session_key, total, command.consolidation, "consolidation")
    _count_open(work, 1)
    work.events.append(SessionSubmitted(at_ms=work.at_ms, session_id=session.id, total_branches=total))
    return Applied(index=work.index, changed=1)


def _insert_branch(
    work: Workspace, session: Session, session_key: bytes, branch_index: int, spec: BranchSpec, role: BranchRole
) -> Branch:
    key = session_key + u32(branch_index)
    branch = Branch(
        id=branch_id(session_key, branch_index),
        session_id=session.id,
        branch_index=branch_index,
        role=role,
        ritual=spec.ritual,
        task=spec.task,
        parameters=spec.parameters,
        seed=spec.seed,
        timeout_ms=spec.timeout_ms,
        attempts_max=spec.attempts_max,
        rev=work.index,
        created_at_ms=work.at_ms,
        placement=spec.placement,
    )
    work.insert(BRANCHES, key, encode_row(branch))
    id_key = uuid_key(branch.id)
    assert id_key is not None, "we have just made it"
    work.insert(BRANCH_IDS, id_key, key)
    return branch


def cancel(work: Workspace, command: CancelSession) -> Answer:
    edit = work.session(command.session_id)
    if edit is None:
        return Refused(index=work.index, code="unknown_session", message=f"there is no session {command.session_id}")
    if not edit.is_open:
        return Applied(index=work.index)
    reason = clipped_reason(command.reason)
    changed = 0
    for key, stored in work.txn.scan(BRANCHES, edit.key, prefix_end(edit.key)):
        branch = decode_branch(stored)
        if branch.status == "pending":
            queue_key = edit.queue_key(branch.branch_index)
            queued = work.txn.get(QUEUE, queue_key)
            if queued is not None:
                work.remove(QUEUE, queue_key, queued)
        elif branch.status == "processing":
            _cancel_attempts(work, key, branch, reason)
        else:
            continue
        changed += branch.role == "branch"
        ended = replace(
            branch,
            rev=work.index,
            status="cancelled",
            deadline_ms=None,
            completed_at_ms=work.at_ms,
            speculative=None,
        )
        work.replace(BRANCHES, key, stored, encode_row(ended))
    edit.pending = 0
    edit.processing = 0
    edit.cancelled += changed
    failure = Failure(code="cancelled", message=reason)
    _finish(work, edit, "cancelled", failure)
    work.events.append(SessionCancelled(at_ms=work.at_ms, session_id=edit.row.id, reason=reason))
    return Applied(index=work.index, changed=1)


def _cancel_attempts(work: Workspace, key: bytes, branch: Branch, reason: str) -> None:
    failure = Failure(code="cancelled", message=reason)
    if branch.speculative is not None:
        end(work, key, branch, branch.speculative, "cancelled", failure=failure)
        announce(work, branch, branch.speculative, "cancelled")
    first = first_of(branch)
    end(work, key, branch, first, "cancelled", failure=failure)
    work.events.append(
        BranchCancelled(
            at_ms=work.at_ms,
            session_id=branch.session_id,
            branch_index=branch.branch_index,
            attempt=first.attempt,
            node_id=first.node_id,
        )
    )


def settle(work: Workspace) -> list[SessionEdit]:
    """Once, after a command has ended branches: queue the consolidation of each session that has none left, and answer
    those sessions."""
    ready = []
    for edit in work.sessions():
        if not edit.has_ended_branch or edit.pending or edit.processing or not edit.is_open:
            continue
        edit.has_ended_branch = False
        if edit.completed:
            key = edit.key + u32(edit.row.total_branches)
            stored = work.txn.get(BRANCHES, key)
            assert stored is not None, "it was made with the session"
            entry = queue_entry(decode_branch(stored), edit.row)
            work.insert(QUEUE, edit.queue_key(edit.row.total_branches), encode_row(entry))
            edit.has_changed = True
            ready.append(edit)
        else:
            message = f"All {edit.failed} branches failed; see the failure of each branch."
            fail_session(work, edit, Failure(code="all_branches_failed", message=message))
    return ready


def conclude(work: Workspace, edit: SessionEdit, branch: Branch, knowledge: Knowledge) -> None:
    """The consolidation has completed: record the insight. What the ritual left out is taken from its knowledge, and
    fields of an unexpected type stay where nothing is lost, in the details."""
    details: Json = knowledge.result
    synthesis, next_steps, ranking = knowledge.summary, list[str](), list[Json]()
    emergent_patterns = knowledge.patterns
    if isinstance(knowledge.result, dict):
        details = dict(knowledge.result)
        if isinstance(details.get("synthesis"), str):
            synthesis = details.pop("synthesis")
        if _is_texts(details.get("emergent_patterns")):
            emergent_patterns = details.pop("emergent_patterns")
        if _is_texts(details.get("next_steps")):
            next_steps = details.pop("next_steps")
        if _is_maps(details.get("ranking")):
            ranking = details.pop("ranking")
    number = work.counters.insights + 1
    insight = Insight(
        id=branch.id,
        session_id=branch.session_id,
        total_patterns=edit.total_patterns,
        total_connections=edit.total_connections,
        average_novelty=edit.novelty_sum / edit.completed if edit.completed else 0.0,
        synthesis=synthesis,
        emergent_patterns=emergent_patterns,
        next_steps=next_steps,
        ranking=ranking,
        details=details,
        branches_used=edit.completed,
        branches_failed=edit.failed,
        ritual=branch.ritual,
        ritual_version=branch.ritual_version or "",
        created_at_ms=work.at_ms,
        number=number,
    )
    work.insert(INSIGHTS, edit.key, encode(insight))
    work.insert(INSIGHTS_BY_NUMBER, u64(number), edit.key)
    work.counters = replace(work.counters, insights=number)
    note_patterns(work, branch.session_id, emergent_patterns)
    wall_ms = max(work.at_ms - (edit.started_at_ms or 0), 1)
    edit.parallel_efficiency = edit.duration_sum_ms / wall_ms
    _finish(work, edit, "completed", None)
    work.events.append(SessionCompleted(at_ms=work.at_ms, session_id=branch.session_id))


def fail_session(work: Workspace, edit: SessionEdit, failure: Failure) -> None:
    """A consolidation that will never be queued ends with its session, without an event: nobody has seen it."""
    key = edit.key + u32(edit.row.total_branches)
    stored = work.txn.get(BRANCHES, key)
    assert stored is not None, "it was made with the session"
    consolidation = decode_branch(stored)
    if consolidation.status == "pending":
        ended = replace(consolidation, rev=work.index, status="cancelled", completed_at_ms=work.at_ms)
        work.replace(BRANCHES, key, stored, encode_row(ended))
    _finish(work, edit, "failed", failure)
    work.events.append(SessionFailed(at_ms=work.at_ms, session_id=edit.row.id, failure=failure))


def queue_entry(branch: Branch, session: Session, not_before_ms: int = 0) -> QueueEntry:
    return QueueEntry(
        session_id=branch.session_id,
        branch_index=branch.branch_index,
        ritual=branch.ritual,
        timeout_ms=branch.timeout_ms,
        attempt=branch.attempt + 1,
        role=branch.role,
        avoid=branch.node_id,
        placement=branch.placement,
        concurrency=session.concurrency,
        ritual_concurrency=session.ritual_concurrency.get(branch.ritual),
        not_before_ms=not_before_ms,
    )


def _finish(work: Workspace, edit: SessionEdit, status: SessionStatus, failure: Failure | None) -> None:
    edit.has_changed = True
    edit.status = status
    edit.failure = failure
    edit.completed_at_ms = work.at_ms
    _count_open(work, -1)


def _count_open(work: Workspace, change: int) -> None:
    work.counters = replace(work.counters, open_sessions=work.counters.open_sessions + change)


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_maps(value: object) -> TypeGuard[list[dict[str, object]]]:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
