"""Looks after who votes: a newcomer asks to be taken in, and a leader keeps as many voters as are wanted."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec
import structlog

from consensus.autopilot import Autopilot, Policy
from consensus.changes import ChangeRefused, Changes
from consensus.engine import Role
from consensus.errors import ConsensusError
from consensus.group import Group
from consensus.membership import VOTERS_MAX, Change
from consensus.state import queries
from consensus.state.rows import Member
from consensus.steps import ReplicaStatus
from node.service.times import iso, now_ms
from storage.errors import StorageError
from storage.ids import NodeId

LOOK_S: Final = 0.5
JOIN_PAUSE_S: Final = 1.0
FORGOTTEN_S: Final = 3.0
"""Who has had no leader for so long asks to be taken in: what named it in its log may never have been agreed on, or it
has left and was started again, and then no leader knows of it. Asking when it is a member changes nothing."""

ACTIONS_MAX: Final = 20
"""Remembered for the status page."""

log = structlog.get_logger()


class Action(msgspec.Struct, frozen=True):
    """What the leader on this node has done by itself."""

    at: str | None
    kind: str
    node_id: NodeId
    reason: str
    outcome: str


class Steward:
    """`linked()`: the peers to whom there is a link; `unfit()`: who is not to vote, because of its tier; `reserve()`:
    who is to vote only if nobody else can; `has_left()`: whether this instance is to take part no more."""

    def __init__(
        self,
        node_id: NodeId,
        group: Group,
        changes: Changes,
        linked: Callable[[], Sequence[NodeId]],
        unfit: Callable[[], Collection[NodeId]],
        policy: Policy,
        has_left: Callable[[], bool] = lambda: False,
        reserve: Callable[[], Collection[NodeId]] = lambda: (),
    ) -> None:
        self._node_id = node_id
        self._group = group
        self._changes = changes
        self._linked = linked
        self._unfit = unfit
        self._has_left = has_left
        self._reserve = reserve
        self.autopilot = Autopilot(policy)
        self.actions: deque[Action] = deque(maxlen=ACTIONS_MAX)
        self._told = ""
        self._alone_since: float | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            status = self._group.status()
            if status.role is Role.LEADER:
                await self._lead(status)
                continue
            self.autopilot.forget()
            if status.is_removed or not (self._is_unknown(status) or self._is_forgotten(status)):
                continue
            if not self._has_left():
                await self._join()

    async def _lead(self, status: ReplicaStatus) -> None:
        members = self._members()
        drained = {member.node_id for member in members if member.is_draining}
        leaver = next((one for one in members if self._can_be_let_go(one, status)), None)
        if leaver is not None:
            await self._let_go(leaver, status, drained)
            return
        now, unfit = time.monotonic(), {*self._unfit(), *(drained - set(status.voters))}
        standing, heard = status.standing, status.heard
        step = self.autopilot.next_step(status.configuration, standing, heard, now, unfit, self._reserve())
        if step is not None:
            await self._act(step.change, step.reason)

    def _can_be_let_go(self, member: Member, status: ReplicaStatus) -> bool:
        """It has left, and knows: who is out of the configuration is sent nothing more."""
        is_told = member.node_id not in status.heard or member.node_id in status.caught_up
        return member.status == "left" and is_told and member.node_id in status.configuration.members

    async def _let_go(self, member: Member, status: ReplicaStatus, drained: Collection[NodeId]) -> None:
        """A standby votes in its place first, if there is one. What would endanger the quorum is refused, and tried
        again."""
        configuration = status.configuration
        unfit = {*self._unfit(), *drained, *configuration.resting}
        standbys = [one for one in configuration.learners if one in status.caught_up and one not in unfit]
        standby = min(standbys, key=self._reserve().__contains__, default=None)
        if standby is not None and member.node_id in configuration.voters and len(configuration.voters) < VOTERS_MAX:
            await self._act(Change("promote", standby), f"it takes the place of {member.name}, which leaves")
        await self._act(Change("leave", member.node_id), "it was asked to leave")

    def _members(self) -> list[Member]:
        with contextlib.suppress(ConsensusError, StorageError), self._group.read() as txn:
            return queries.members(txn)
        return []

    def _is_unknown(self, status: ReplicaStatus) -> bool:
        return self._node_id not in status.configuration.members

    def _is_forgotten(self, status: ReplicaStatus) -> bool:
        if status.leader is not None:
            self._alone_since = None
            return False
        now = time.monotonic()
        self._alone_since = self._alone_since or now
        return now - self._alone_since >= FORGOTTEN_S

    async def _act(self, change: Change, reason: str) -> None:
        outcome = "done"
        try:
            await self._changes.ask([change])
        except ConsensusError as error:
            outcome = str(error)
        action = Action(iso(now_ms()), change.kind, change.node_id, reason, outcome)
        if outcome != "done" and self.actions and msgspec.structs.replace(self.actions[-1], at=action.at) == action:
            self.actions.pop()  # refused as at the last look: told once, with the latest time
        else:
            log.info("autopilot", change=change.kind, node=change.node_id, reason=reason, outcome=outcome)
        self.actions.append(action)

    async def _join(self) -> None:
        """As a learner; the leader promotes whom it wants. A founding voter's configuration names it, so this is only
        asked by one that was not there at the founding."""
        try:
            plan = await self._changes.ask([Change("add", self._node_id)], via=self._linked(), deadline_s=5.0)
        except ConsensusError as error:
            code = error.code if isinstance(error, ChangeRefused) else "no_answer"
            if code != self._told:
                self._told = code
                log.info("not_taken_in_yet", code=code, reason=str(error))
        else:
            if plan.steps:
                log.info("taken_in", as_="learner")
        await asyncio.sleep(JOIN_PAUSE_S)
