"""Keeps as many voters as are wanted, out of those that are there: what a leader changes by itself. Pure.

- A voter that has not answered for the grace time is taken for lost: a caught-up standby is promoted, then the lost
  voter is demoted (first, if there can be no more voters). It is not removed: should it come back, it learns, and
  stands by.
- Fewer voters than wanted: they grow by two at a time, because an even number survives no more failures than the odd
  one below it. So an odd number waits until two standbys have caught up; an even one takes the first, or lets a lost
  voter go.
- More than wanted, and an even number, for the grace time: what a replacement has left behind when the lost voter came
  back. One that is not the leader is demoted.
- Who was demoted by a person is left alone, until a person promotes it.
- Standbys in reserve (Edge nodes whose tier the mesh chooses) are promoted when there are no others, and none that
  is about to catch up: for that they wait the grace time.
- Other Edge nodes never are. One that votes, because it was a Core node before, is replaced as if lost, at once.
- Nothing is done that `membership.judge` refuses, and one thing at a time.
"""

from collections.abc import Collection
from typing import Final

import msgspec

from consensus.membership import VOTERS_MAX, Change, ChangeKind, Configuration, Refusal, Standing, judge
from storage.ids import NodeId

GRACE_S: Final = 300.0
"""Default. Longer than a restart or an update takes, so that these change nothing; a wrong guess
costs little, as the voter is only demoted. Within it the mesh goes on with one voter fewer."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    voters_wanted: int = 3
    grace_s: float = GRACE_S


class Step(msgspec.Struct, frozen=True):
    change: Change
    reason: str


class Autopilot:
    """Of one leader; ask it every second or so. A new leader gives everybody the grace time anew."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._silent_since: dict[NodeId, float] = {}
        self._surplus_since: float | None = None
        self._coming_since: float | None = None

    def forget(self) -> None:
        """This node does not lead."""
        self._silent_since.clear()
        self._surplus_since = self._coming_since = None

    def next_step(
        self,
        configuration: Configuration,
        standing: Standing,
        heard: Collection[NodeId],
        now: float,
        unfit: Collection[NodeId] = (),
        reserve: Collection[NodeId] = (),
    ) -> Step | None:
        """`heard`: who answers; `unfit`: who is not to vote; `reserve`: who is to vote only if nobody else can. The
        leader is left to itself."""
        voters, wanted, grace_s = configuration.voters, self.policy.voters_wanted, self.policy.grace_s
        silent = [voter for voter in voters if voter != standing.leader and voter not in heard]
        self._silent_since = {voter: self._silent_since.get(voter, now) for voter in silent}
        is_surplus = len(voters) > wanted and len(voters) % 2 == 0
        self._surplus_since = (self._surplus_since or now) if is_surplus else None
        gone = [voter for voter in silent if now - self._silent_since[voter] >= grace_s]
        lost = dict.fromkeys(gone, f"has not answered for {grace_s:g} s")
        lost |= dict.fromkeys((v for v in voters if v in unfit and v in heard), "is an Edge")
        willing = [node for node in configuration.learners if node not in configuration.resting and node not in unfit]
        standbys = [learner for learner in willing if learner in standing.caught_up]
        standbys.sort(key=reserve.__contains__)
        is_coming = any(node in heard and node not in reserve and node not in standbys for node in willing)
        self._coming_since = (self._coming_since or now) if is_coming else None
        if self._coming_since is not None and now - self._coming_since < grace_s:
            standbys = [standby for standby in standbys if standby not in reserve]
        step: Step | None = None
        is_odd = len(voters) % 2 == 1
        is_replaced = bool(lost and standbys) and (len(voters) == wanted or (is_odd and len(standbys) == 1))
        is_full = is_replaced and len(voters) == VOTERS_MAX
        is_idle = bool(gone) and not is_odd and not standbys  # without it as many others may fail as with it
        if (lost and len(voters) > wanted) or is_full or is_idle:
            node, why = next(iter(lost.items()))
            step = _step("demote", node, f"it {why}, and is replaced")
        elif is_replaced:
            node, why = next(iter(lost.items()))
            step = _step("promote", standbys[0], f"it takes the place of {node}, which {why}")
        elif len(voters) < wanted and len(standbys) >= (2 if is_odd else 1):
            step = _step("promote", standbys[0], f"{wanted} voters are wanted, there are {len(voters)}")
        elif self._surplus_since is not None and now - self._surplus_since >= grace_s:
            others = [voter for voter in reversed(voters) if voter != standing.leader]
            behind = [voter for voter in others if voter not in standing.caught_up]
            step = _step("demote", (behind or others)[0], f"{wanted} voters are wanted, there are {len(voters)}")
        if step is None or isinstance(judge(configuration, step.change, standing), Refusal):
            return None
        return step


def _step(kind: ChangeKind, node: NodeId, reason: str) -> Step:
    return Step(Change(kind, node), reason)
