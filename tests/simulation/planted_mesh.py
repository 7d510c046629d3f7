"""Rules of the mesh above the log, each taken away once: leases and attempts, reads, proposals."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace

from consensus.engine import Role
from consensus.group import Group
from consensus.replica import Replica
from consensus.state import branches, queries
from consensus.state.commands import Applied
from consensus.state.events import BranchAssigned, Numbered
from consensus.state.rows import Lease
from consensus.state.sessions import queue_entry
from consensus.state.tables import BRANCHES, LEASES, QUEUE, encode_row
from consensus.steps import Resolved
from node.scheduler import judgement, policy
from node.scheduler.lease_clock import LeaseClock
from node.service.times import now_ms
from node.work import Assignments
from tests.simulation.mesh_world import MeshWorld
from tests.simulation.planting import Patch, Planted

# -- leases and attempts --


def requeue_early(patch: Patch) -> None:
    real = LeaseClock.run_out

    def run_out(clock: LeaseClock, leases: list[Lease], now_s: float, lasts_ms: Callable[[Lease], int]) -> list[Lease]:
        return real(clock, leases, now_s, lambda lease: lasts_ms(lease) - 5_000)

    patch.setattr(LeaseClock, "run_out", run_out)


def believe_wall_clocks(patch: Patch) -> None:
    def run_out(clock: LeaseClock, leases: list[Lease], now_s: float, lasts_ms: Callable[[Lease], int]) -> list[Lease]:
        return [lease for lease in leases if lease.deadline_ms <= now_ms()]

    patch.setattr(LeaseClock, "run_out", run_out)


def never_requeue(patch: Patch) -> None:
    patch.setattr(policy, "overdue_leases", lambda overdue: [])


def short_lease(patch: Patch) -> None:
    patch.setattr(policy, "LEASE_GRACE_MS", -50)


def never_back(patch: Patch) -> None:
    real = judgement.judge_members
    patch.setattr(
        policy,
        "judge_members",
        lambda members, evidence, now_ms: [
            verdict for verdict in real(members, evidence, now_ms) if verdict.status != "alive"
        ],
    )


def any_result(patch: Patch) -> None:
    """Whoever says that it has a result is believed, if the branch is being processed."""
    real = branches._record

    def record(work: Any, outcome: Any) -> bool:
        branch = queries.get_branch(work.txn, outcome.session_id, outcome.branch_index)
        if branch is not None and branch.status == "processing":
            outcome = replace(outcome, attempt=branch.attempt, node_id=branch.node_id)
        return real(work, outcome)

    patch.setattr(branches, "_record", record)


def two_attempts(patch: Patch) -> None:
    """A branch that is being processed is assigned once more."""
    real = branches._assign_one

    def assign(work: Any, item: Any, member: Any) -> bool:
        edit = work.session(item.session_id)
        branch = queries.get_branch(work.txn, item.session_id, item.branch_index)
        if edit is not None and branch is not None and branch.status == "processing":
            key = edit.branch_key(item.branch_index)
            work.remove(LEASES, key, work.txn.get(LEASES, key))
            work.insert(QUEUE, edit.queue_key(item.branch_index), encode_row(queue_entry(branch, edit.row)))
            work.put(BRANCHES, key, encode_row(branch))
            item = replace(item, attempt=branch.attempt + 1)
        return real(work, item, member)

    patch.setattr(branches, "_assign_one", assign)


def forget_the_other(patch: Patch) -> None:
    """The branch is tried again, whoever else is at it."""
    real = branches.end_attempt

    def end_attempt(work: Any, edit: Any, key: bytes, stored: bytes, branch: Any, *rest: Any, **more: Any) -> None:
        real(work, edit, key, stored, replace(branch, speculative=None), *rest, **more)

    patch.setattr(branches, "end_attempt", end_attempt)


def work_of_others(patch: Patch) -> None:
    def on_events(self: Assignments, events: Iterable[Numbered]) -> None:
        own = next(iter(self._executors))
        assigned = [one.event for one in events if isinstance(one.event, BranchAssigned)]
        self._start([replace(event, instance_id=own) for event in assigned])

    patch.setattr(Assignments, "on_events", on_events)


# -- reads and proposals --


def read_without_asking(patch: Patch) -> None:
    async def barrier(self: Group, deadline_s: float = 10.0) -> int:
        return self.status().applied_index

    patch.setattr(Group, "barrier", barrier)


def answer_before_applied(patch: Patch) -> None:
    async def wait_applied(self: Group, index: int, until: float) -> None:
        await asyncio.sleep(0)

    patch.setattr(Group, "_wait_applied", wait_applied)


def unknown_is_success(patch: Patch) -> None:
    real = Replica.on_role

    def on_role(self: Replica, old: Role, new: Role) -> None:
        if old is Role.LEADER:
            waiting, self._waiting = self._waiting, {}
            self._resolved.extend(Resolved(token, 1, Applied(index=1), None) for token in waiting.values())
        real(self, old, new)

    patch.setattr(Replica, "on_role", on_role)


PLANTED = [
    Planted(
        rule="lease: its end",
        removed="a lease is taken back only when it has run out",
        caught_by="the lease would last",
        plant=requeue_early,
        seed=1,
        world=MeshWorld,
    ),
    Planted(
        rule="lease: its clock",
        removed="a lease is timed by its leader's own clock, which is never set",
        caught_by="the lease would last",
        plant=believe_wall_clocks,
        seed=1,
        world=MeshWorld,
        weights=("clock_jump",),
    ),
    Planted(
        rule="lease: its length",
        removed="a lease lasts longer than the attempt may",
        caught_by="the lease ends before",
        plant=short_lease,
        seed=0,
        world=MeshWorld,
    ),
    Planted(
        rule="lease: reaping",
        removed="a lease that has run out is requeued",
        caught_by="not converged",
        plant=never_requeue,
        seed=1,
        world=MeshWorld,
    ),
    Planted(
        rule="members",
        removed="a node that is back gets work again",
        caught_by="not converged",
        plant=never_back,
        seed=3,
        world=MeshWorld,
        weights=("partition",),
        every_s=5.0,
    ),
    Planted(
        rule="attempts: results",
        removed="only the current attempt's result is recorded",
        caught_by="did not produce",
        plant=any_result,
        seed=25,
        world=MeshWorld,
    ),
    Planted(
        rule="attempts: one begins",
        removed="what is being processed is not assigned",
        caught_by="and then came",
        plant=two_attempts,
        seed=0,
        world=MeshWorld,
    ),
    Planted(
        rule="attempts: the other goes on",
        removed="a branch is tried again only when none of its attempts is under way",
        caught_by="and then came|what is leased is under way",
        plant=forget_the_other,
        seed=8,
        world=MeshWorld,
    ),
    Planted(
        rule="attempts: whose",
        removed="only the instance that an assignment names executes it",
        caught_by="is executed by",
        plant=work_of_others,
        seed=0,
        world=MeshWorld,
    ),
    Planted(
        rule="read: linearizable",
        removed="a reader asks how far it must see",
        caught_by="a linearizable read lacks",
        plant=read_without_asking,
        seed=1,
        world=MeshWorld,
    ),
    Planted(
        rule="read: own writes",
        removed="a proposal is answered when it is applied here",
        caught_by="does not read what was written",
        plant=answer_before_applied,
        seed=1,
        world=MeshWorld,
    ),
    Planted(
        rule="row 13",
        removed="a proposal whose outcome is unknown is proposed again",
        caught_by="is lost|lacks|does not read",
        plant=unknown_is_success,
        seed=3,
        world=MeshWorld,
    ),
]
