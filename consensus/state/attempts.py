"""Attempts under way: one of each processing branch, and a speculative one beside it when the first is slow.

Rules a reader must not break:
- The branch row is about the first and holds the speculative one, which is on another node. Beside each attempt there
  is one at most, ever; so the number of the next one is never given twice.
- Each has a lease: the first under the key of the branch, the speculative one under that key and its number.
- The first valid result of either is recorded. The other attempt is superseded then: its node is told to stop, and what
  it still brings is evidence.
- One that ends without a result, while the other is under way, is counted and nothing more: whether the branch is tried
  again or fails is asked when none is left. So once failures or losses have reached their limit, nothing begins beside
  what is left, or there would always be another one.
"""

from msgspec.structs import replace

from consensus.state.events import AttemptEnded
from consensus.state.limits import LOSSES_MAX
from consensus.state.rows import Attempt, AttemptStatus, Branch, Failure, Running
from consensus.state.tables import ATTEMPTS, LEASES, Workspace, decode_attempt, encode, u32
from storage.ids import NodeId
from storage.keys import prefix_end
from storage.transactions import Transaction


def first_of(branch: Branch) -> Running:
    """Of a branch that is processing."""
    assert branch.node_id is not None, "what is processing is somewhere"
    assert branch.instance_id is not None, "what is processing is somewhere"
    assert branch.deadline_ms is not None, "what is processing is leased"
    return Running(
        attempt=branch.attempt,
        node_id=branch.node_id,
        instance_id=branch.instance_id,
        deadline_ms=branch.deadline_ms,
        started_at_ms=branch.started_at_ms or 0,
    )


def under_way(branch: Branch, attempt: int, node_id: NodeId | None = None) -> Running | None:
    """The attempt with this number (on this node), if it is."""
    if branch.status != "processing":
        return None
    for running in (first_of(branch), branch.speculative):
        if running is not None and running.attempt == attempt and node_id in (None, running.node_id):
            return running
    return None


def with_only(branch: Branch, running: Running) -> Branch:
    """The row of a branch of which only this attempt is under way."""
    return replace(
        branch,
        attempt=running.attempt,
        node_id=running.node_id,
        instance_id=running.instance_id,
        deadline_ms=running.deadline_ms,
        started_at_ms=running.started_at_ms,
        speculative=None,
    )


def end(
    work: Workspace,
    key: bytes,
    branch: Branch,
    running: Running,
    status: AttemptStatus,
    *,
    failure: Failure | None = None,
    duration_ms: int | None = None,
    late: bytes | None = None,
) -> None:
    """Takes its lease away and leaves a row of it."""
    lease_key = _lease_key(key, branch, running)
    lease = work.txn.get(LEASES, lease_key)
    assert lease is not None, "what is processing has a lease"
    work.remove(LEASES, lease_key, lease)
    attempt = Attempt(
        session_id=branch.session_id,
        branch_index=branch.branch_index,
        attempt=running.attempt,
        node_id=running.node_id,
        instance_id=running.instance_id,
        status=status,
        started_at_ms=running.started_at_ms,
        ended_at_ms=work.at_ms,
        duration_ms=duration_ms,
        failure=failure,
        late_result_digest=late,
    )
    work.insert(ATTEMPTS, key + u32(running.attempt), encode(attempt))


def leave_only(work: Workspace, key: bytes, branch: Branch, ended: Running, status: AttemptStatus) -> Branch:
    """One of two has ended: the branch as it is with the other one, whose lease now lies where that of an only one
    does. The caller writes the row."""
    speculative = branch.speculative
    assert speculative is not None, "there were two"
    other = first_of(branch)
    if ended.attempt == branch.attempt:
        other = speculative
        former_key = _lease_key(key, branch, other)
        lease = work.txn.get(LEASES, former_key)
        assert lease is not None, "what is processing has a lease"
        work.remove(LEASES, former_key, lease)
        work.insert(LEASES, key, lease)
    announce(work, branch, ended, status)
    return with_only(branch, other)


def announce(work: Workspace, branch: Branch, ended: Running, status: AttemptStatus) -> None:
    work.events.append(
        AttemptEnded(
            at_ms=work.at_ms,
            session_id=branch.session_id,
            branch_index=branch.branch_index,
            attempt=ended.attempt,
            node_id=ended.node_id,
            status=status,
        )
    )


def highest(txn: Transaction, key: bytes, branch: Branch) -> int:
    """The highest number given: that of a speculative attempt that ended before the first, or its own."""
    latest = next(txn.scan(ATTEMPTS, key, prefix_end(key), reverse=True, limit=1), None)
    return branch.attempt if latest is None else max(branch.attempt, int.from_bytes(latest[0][-4:], "big"))


def takes_second(txn: Transaction, key: bytes, branch: Branch) -> bool:
    """Whether a speculative attempt may begin: none has beside this one, and the branch is not at its last chance."""
    return (
        branch.status == "processing"
        and branch.speculative is None
        and branch.failures < branch.attempts_max
        and branch.losses < LOSSES_MAX
        and highest(txn, key, branch) == branch.attempt
    )


def verdict(work: Workspace, key: bytes, branch: Branch, failure: Failure, *, is_lost: bool) -> Failure | None:
    """The only attempt under way has ended so, and is counted: why the branch fails for good; None: it is tried again.
    One that had failed too often while the other was under way fails with that, also if the other one is lost."""
    if branch.failures >= branch.attempts_max:
        return _latest_failure(work, key) if is_lost else failure
    if is_lost and branch.losses >= LOSSES_MAX:
        return Failure(
            code="lost_too_often",
            message=f"{branch.losses} attempts were lost with their node; the last one: {failure.code}. "
            "Check whether this branch exhausts the machines it runs on.",
        )
    return None


def _latest_failure(work: Workspace, key: bytes) -> Failure:
    for _, stored in work.txn.scan(ATTEMPTS, key, prefix_end(key), reverse=True):
        attempt = decode_attempt(stored)
        if attempt.status == "failed" and attempt.failure is not None:
            return attempt.failure
    raise AssertionError("what has failed has a row of it")


def _lease_key(key: bytes, branch: Branch, running: Running) -> bytes:
    return key if running.attempt == branch.attempt else key + u32(running.attempt)
