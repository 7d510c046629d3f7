"""The life of a branch: `pending -> processing -> completed | failed | cancelled`, assigned, recorded, requeued.

Rules a reader must not break:
- A branch of an open session that is not terminal is in the queue (pending) or has a lease (processing), never both;
  the only exception is a consolidation whose turn has not come (see `sessions`). A lease is of an attempt: while a
  speculative one runs beside the first there are two (see `attempts`).
- Only the outcome of an attempt under way, from the node it was given to, is recorded, and of two results the first
  only. Anything else changes nothing, but a result of an attempt that had ended leaves its digest as evidence.
- An attempt row is written when an attempt ends without a recorded result; those under way, and the one that has
  completed, are in the branch row (`queries.list_attempts` shows them all).
"""

from msgspec.structs import replace

from consensus.state.attempts import end, first_of, highest, leave_only, takes_second, under_way, verdict
from consensus.state.commands import (
    AssignBranches,
    Assignment,
    CompleteBranches,
    Offer,
    Outcome,
    RequeueBranches,
    SubmitSession,
)
from consensus.state.encoding import clipped, encode_knowledge
from consensus.state.events import BranchAssigned, BranchCompleted, BranchFailed, BranchRequeued
from consensus.state.limits import (
    CONSOLIDATION_KNOWLEDGE_BYTES_MAX,
    DURATION_MS_MAX,
    KNOWLEDGE_BYTES_MAX,
    TEXT_BYTES_MAX,
    TIME_MS_MAX,
)
from consensus.state.patterns import note_patterns, store_patterns
from consensus.state.rows import AttemptStatus, Branch, Failure, Knowledge, Lease, Member, Running
from consensus.state.sessions import conclude, fail_session, queue_entry, settle
from consensus.state.tables import (
    ATTEMPTS,
    BRANCHES,
    LEASES,
    MEMBERS,
    QUEUE,
    RESULTS,
    SessionEdit,
    Workspace,
    decode_attempt,
    decode_branch,
    decode_lease,
    decode_member,
    encode,
    encode_row,
    queue_prefix,
    u32,
)
from storage.codec import digest
from storage.ids import InstanceId, NodeId


def assign(work: Workspace, command: AssignBranches) -> tuple[int, int]:
    """(assigned, skipped)"""
    members: dict[NodeId, Member | None] = {}
    assigned = 0
    for item in command.assignments:
        node_id = item.node_id
        if node_id not in members:
            stored = work.txn.get(MEMBERS, node_id.encode()) if 0 < len(node_id) <= 64 else None
            members[node_id] = None if stored is None else decode_member(stored)
        member = members[node_id]
        if member is not None and _takes_work(member, item.instance_id):
            assigned += _assign_one(work, item, member)
    for item in command.speculative:
        assigned += _assign_beside(work, item)
    return assigned, len(command.assignments) + len(command.speculative) - assigned


def _takes_work(member: Member, instance_id: InstanceId) -> bool:
    return member.status == "alive" and not member.is_draining and member.instance_id == instance_id


def _assign_one(work: Workspace, item: Assignment, member: Member) -> bool:
    edit = work.session(item.session_id)
    if edit is None or not edit.is_open or not 0 <= item.deadline_ms <= TIME_MS_MAX:
        return False
    key = edit.branch_key(item.branch_index)
    if key is None:
        return False
    queue_key = edit.queue_key(item.branch_index)
    queued = work.txn.get(QUEUE, queue_key)
    if queued is None:  # not pending, or a consolidation whose turn has not come
        return False
    stored = work.txn.get(BRANCHES, key)
    assert stored is not None, "what is queued exists"
    branch = decode_branch(stored)
    if item.attempt != branch.attempt + 1 or branch.ritual not in member.rituals:
        return False
    changed = replace(
        branch,
        rev=work.index,
        status="processing",
        attempt=item.attempt,
        node_id=item.node_id,
        instance_id=item.instance_id,
        deadline_ms=item.deadline_ms,
        started_at_ms=work.at_ms,
    )
    work.replace(BRANCHES, key, stored, encode_row(changed))
    work.remove(QUEUE, queue_key, queued)
    work.insert(LEASES, key, encode(_lease(branch, item)))
    if branch.role == "branch":
        edit.has_changed = True
        edit.pending -= 1
        edit.processing += 1
        if edit.started_at_ms is None:
            edit.started_at_ms = work.at_ms
            edit.status = "processing"
    _announce(work, item)
    return True


def _assign_beside(work: Workspace, item: Assignment) -> bool:
    """A speculative attempt of a branch that is processing."""
    edit = work.session(item.session_id)
    key = None if edit is None else edit.branch_key(item.branch_index)
    stored = None if key is None else work.txn.get(BRANCHES, key)
    offered = work.txn.get(MEMBERS, item.node_id.encode()) if 0 < len(item.node_id) <= 64 else None
    if key is None or stored is None or offered is None or not 0 <= item.deadline_ms <= TIME_MS_MAX:
        return False
    branch, member = decode_branch(stored), decode_member(offered)
    if (
        not takes_second(work.txn, key, branch)
        or branch.node_id == item.node_id
        or not _takes_work(member, item.instance_id)
        or branch.ritual not in member.rituals
        or item.attempt != branch.attempt + 1
    ):
        return False
    running = Running(
        attempt=item.attempt,
        node_id=item.node_id,
        instance_id=item.instance_id,
        deadline_ms=item.deadline_ms,
        started_at_ms=work.at_ms,
    )
    work.replace(BRANCHES, key, stored, encode_row(replace(branch, rev=work.index, speculative=running)))
    work.insert(LEASES, key + u32(item.attempt), encode(_lease(branch, item)))
    _announce(work, item)
    return True


def _lease(branch: Branch, item: Assignment) -> Lease:
    return Lease(
        session_id=branch.session_id,
        branch_index=branch.branch_index,
        ritual=branch.ritual,
        attempt=item.attempt,
        node_id=item.node_id,
        instance_id=item.instance_id,
        deadline_ms=item.deadline_ms,
    )


def _announce(work: Workspace, item: Assignment) -> None:
    work.events.append(
        BranchAssigned(
            at_ms=work.at_ms,
            session_id=item.session_id,
            branch_index=item.branch_index,
            attempt=item.attempt,
            node_id=item.node_id,
            instance_id=item.instance_id,
        )
    )


def begin(work: Workspace, command: SubmitSession) -> None:
    """After its submission: the first branch takes the place that was offered, unless others wait for places."""
    first, last = work.txn.first(QUEUE), work.txn.last(QUEUE)
    if command.offer is None or first is None or last is None:
        return
    own = queue_prefix(command.priority, work.index)
    if first[0].startswith(own) and last[0].startswith(own):
        _take_up(work, command.offer, work.begun(command.session_id), 0)


def _take_up(work: Workspace, offer: Offer, edit: SessionEdit, branch_index: int) -> None:
    """Assigns a queued branch to the place that came with the command."""
    stored = work.txn.get(MEMBERS, offer.node_id.encode())
    member = None if stored is None else decode_member(stored)
    if member is None or not _takes_work(member, offer.instance_id):
        return
    row = work.txn.get(BRANCHES, edit.key + u32(branch_index))
    assert row is not None, "what is queued exists"
    branch = decode_branch(row)
    if branch.placement is not None or branch.ritual in member.ritual_limits:
        return
    assignment = Assignment(
        session_id=branch.session_id,
        branch_index=branch_index,
        attempt=branch.attempt + 1,
        node_id=offer.node_id,
        instance_id=offer.instance_id,
        deadline_ms=work.at_ms + branch.timeout_ms + offer.lease_grace_ms,
    )
    _assign_one(work, assignment, member)


def complete(work: Workspace, command: CompleteBranches) -> tuple[int, int]:
    """(recorded, skipped)"""
    recorded = 0
    for outcome in command.outcomes:
        recorded += _record(work, outcome)
    ready = settle(work)
    if ready and command.offer is not None:
        _take_up(work, command.offer, ready[0], ready[0].row.total_branches)
    store_patterns(work)
    return recorded, len(command.outcomes) - recorded


def _record(work: Workspace, outcome: Outcome) -> bool:
    knowledge = outcome.knowledge
    if (knowledge is None) == (outcome.failure is None):
        return False
    edit = work.session(outcome.session_id)
    key = None if edit is None else edit.branch_key(outcome.branch_index)
    stored = None if key is None else work.txn.get(BRANCHES, key)
    if edit is None or key is None or stored is None:
        return False
    branch = decode_branch(stored)
    running = under_way(branch, outcome.attempt, outcome.node_id)
    if running is None:
        if knowledge is not None:
            _keep_evidence(work, key, outcome, knowledge)
        return False
    duration_ms = min(max(outcome.duration_ms, 0), DURATION_MS_MAX)
    if knowledge is None:
        assert outcome.failure is not None, "checked above"
        end_attempt(
            work,
            edit,
            key,
            stored,
            branch,
            running,
            outcome.failure,
            is_lost=outcome.is_lost,
            duration_ms=duration_ms,
            retry_at_ms=min(max(outcome.retry_at_ms, 0), TIME_MS_MAX),
        )
        return True
    encoded = encode_knowledge(knowledge)
    refusal = _refusal(branch, encoded)
    if refusal is not None:
        late = digest(encoded) if encoded is not None else None
        end_attempt(
            work, edit, key, stored, branch, running, refusal, is_lost=False, duration_ms=duration_ms, late=late
        )
        return True
    assert encoded is not None, "otherwise it is refused"
    if branch.speculative is not None:
        slower = branch.speculative if running.attempt == branch.attempt else first_of(branch)
        end(work, key, branch, slower, "superseded")
        branch = leave_only(work, key, branch, slower, "superseded")
    changed = replace(
        branch,
        rev=work.index,
        status="completed",
        deadline_ms=None,
        completed_at_ms=work.at_ms,
        duration_ms=duration_ms,
        ritual_version=outcome.ritual_version[:TEXT_BYTES_MAX],
        patterns_found=len(knowledge.patterns),
        connections_found=len(knowledge.connections),
        novelty_score=min(max(knowledge.novelty, 0.0), 1.0),
    )
    work.replace(BRANCHES, key, stored, encode_row(changed))
    lease = work.txn.get(LEASES, key)
    assert lease is not None, "what is processing has a lease"
    work.remove(LEASES, key, lease)
    work.events.append(
        BranchCompleted(
            at_ms=work.at_ms,
            session_id=branch.session_id,
            branch_index=branch.branch_index,
            attempt=branch.attempt,
            node_id=outcome.node_id,
            duration_ms=duration_ms,
        )
    )
    edit.has_changed = True
    if branch.role == "consolidation":
        conclude(work, edit, changed, knowledge)
        return True
    work.insert(RESULTS, key, encoded)
    note_patterns(work, branch.session_id, knowledge.patterns)
    edit.has_ended_branch = True
    edit.processing -= 1
    edit.completed += 1
    edit.total_patterns += changed.patterns_found
    edit.total_connections += changed.connections_found
    edit.novelty_sum += changed.novelty_score
    edit.duration_sum_ms += duration_ms
    return True


def _refusal(branch: Branch, encoded: bytes | None) -> Failure | None:
    if encoded is None:
        return Failure(
            code="result_invalid",
            message="The result holds a value that JSON cannot express (not a finite number, binary data, keys that "
            "are not strings) or is nested too deeply; return plain data.",
        )
    is_consolidation = branch.role == "consolidation"
    bytes_max = CONSOLIDATION_KNOWLEDGE_BYTES_MAX if is_consolidation else KNOWLEDGE_BYTES_MAX
    if len(encoded) > bytes_max:
        return Failure(
            code="result_too_large",
            message=f"The result has {len(encoded)} bytes; at most {bytes_max} are allowed: return less.",
        )
    return None


def _keep_evidence(work: Workspace, key: bytes, outcome: Outcome, knowledge: Knowledge) -> None:
    """A result of an attempt that has ended is refused; its digest shows what was refused. The first one counts."""
    if not 1 <= outcome.attempt < 2**32:
        return
    attempt_key = key + u32(outcome.attempt)
    stored = work.txn.get(ATTEMPTS, attempt_key)
    if stored is None:
        return
    attempt = decode_attempt(stored)
    if attempt.node_id != outcome.node_id or attempt.late_result_digest is not None:
        return
    encoded = encode_knowledge(knowledge)
    if encoded is not None:
        work.replace(ATTEMPTS, attempt_key, stored, encode(replace(attempt, late_result_digest=digest(encoded))))


def requeue(work: Workspace, command: RequeueBranches) -> tuple[int, int]:
    """(ended, skipped)"""
    ended = 0
    for item in command.requeues:
        edit = work.session(item.session_id)
        key = None if edit is None else edit.branch_key(item.branch_index)
        stored = None if key is None else work.txn.get(BRANCHES, key)
        if edit is None or key is None or stored is None:
            continue
        branch = decode_branch(stored)
        running = under_way(branch, item.attempt)
        if running is not None:
            end_attempt(work, edit, key, stored, branch, running, item.failure, is_lost=item.is_lost)
            ended += 1
    settle(work)
    return ended, len(command.requeues) - ended


def release_leases(work: Workspace, node_id: NodeId, failure: Failure, *, kept: InstanceId | None = None) -> int:
    """Ends all attempts on a node as lost (but those of the instance to keep); reads all leases, which are bounded by
    the slots of the mesh."""
    held = [
        lease
        for lease in (decode_lease(value) for _, value in work.txn.scan(LEASES))
        if lease.node_id == node_id and lease.instance_id != kept
    ]
    for lease in held:
        edit = work.session(lease.session_id)
        assert edit is not None, "what is leased exists"
        key = edit.key + u32(lease.branch_index)
        stored = work.txn.get(BRANCHES, key)
        assert stored is not None, "what is leased exists"
        branch = decode_branch(stored)
        running = under_way(branch, lease.attempt)
        assert running is not None, "what is leased is under way"
        end_attempt(work, edit, key, stored, branch, running, failure, is_lost=True)
    settle(work)
    return len(held)


def end_attempt(
    work: Workspace,
    edit: SessionEdit,
    key: bytes,
    stored: bytes,
    branch: Branch,
    running: Running,
    failure: Failure,
    *,
    is_lost: bool,
    duration_ms: int | None = None,
    late: bytes | None = None,
    retry_at_ms: int = 0,
) -> None:
    """An attempt ends without a result. If it was the only one, another follows, unless failures or losses have reached
    a limit."""
    failure = clipped(failure)
    status: AttemptStatus = "lost" if is_lost else "failed"
    end(work, key, branch, running, status, failure=failure, duration_ms=duration_ms, late=late)
    branch = replace(branch, rev=work.index, failures=branch.failures + (not is_lost), losses=branch.losses + is_lost)
    if branch.speculative is not None:
        work.replace(BRANCHES, key, stored, encode_row(leave_only(work, key, branch, running, status)))
        return
    edit.has_changed = True
    final = verdict(work, key, branch, failure, is_lost=is_lost)
    if final is None:
        changed = replace(branch, status="pending", attempt=highest(work.txn, key, branch), deadline_ms=None)
        work.replace(BRANCHES, key, stored, encode_row(changed))
        work.insert(QUEUE, edit.queue_key(branch.branch_index), encode_row(queue_entry(changed, edit.row, retry_at_ms)))
        if branch.role == "branch":
            edit.processing -= 1
            edit.pending += 1
        work.events.append(
            BranchRequeued(
                at_ms=work.at_ms,
                session_id=branch.session_id,
                branch_index=branch.branch_index,
                attempt=running.attempt,
                node_id=running.node_id,
                failure=failure,
            )
        )
        return
    changed = replace(
        branch,
        status="failed",
        deadline_ms=None,
        completed_at_ms=work.at_ms,
        duration_ms=duration_ms,
        failure=final,
    )
    work.replace(BRANCHES, key, stored, encode_row(changed))
    work.events.append(
        BranchFailed(
            at_ms=work.at_ms,
            session_id=branch.session_id,
            branch_index=branch.branch_index,
            attempt=branch.attempt,
            failure=final,
        )
    )
    if branch.role == "consolidation":
        cause = Failure(
            code="consolidation_failed", message=f"The consolidation failed ({final.code}): {final.message}"
        )
        fail_session(work, edit, clipped(cause))
        return
    edit.has_ended_branch = True
    edit.processing -= 1
    edit.failed += 1
