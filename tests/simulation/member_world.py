"""Replicas out of a pool, some of which vote at first: voters and learners are added, promoted, demoted, removed and
replaced under the same faults. A removed node comes back under a new name, with an empty disk.
"""

import random
from collections.abc import Sequence

from msgspec.structs import replace

from consensus.engine import Role
from consensus.membership import Change, ChangeKind, Configuration, Refusal
from consensus.steps import Output, ProposeChange, Resolved
from storage.ids import NodeId
from tests.simulation.checks import Violation
from tests.simulation.process import Process
from tests.simulation.world import Node, ReplicaWorld

POOL_EXTRA = 3
"""Nodes beside the founding voters."""

KINDS: tuple[ChangeKind, ...] = ("add", "add", "promote", "promote", "promote", "demote", "demote", "remove")

_FIRST_TOKEN = 1 << 40


class Member(Process):
    """A life of a node that may never have been a voter."""

    world: "MemberWorld"

    def founders(self) -> Sequence[NodeId]:
        return self.world.founders if self.node_id in self.world.founders else ()

    def _speak(self, output: Output) -> None:
        others = []
        for resolved in output.resolved:
            if resolved.token in self.world.changes:
                self.world.on_change(resolved)
            else:
                others.append(resolved)
        super()._speak(Output(output.messages, others, output.events, output.status, output.next_deadline))


class MemberWorld(ReplicaWorld):
    running: dict[NodeId, Member]

    def __init__(self, seed: int, nodes: int, *, fault_s: float = 12.0, heal_s: float = 120.0) -> None:
        super().__init__(seed, nodes + POOL_EXTRA, fault_s=fault_s, heal_s=heal_s)
        pace = random.Random(f"pace of learners {seed}/{nodes}")
        self.settings = replace(
            self.settings, learner_gather_s=pace.choice([0.0, 0.02, 0.3]), learner_burst=pace.choice([0, 1, 16])
        )
        self.founders = tuple(self.ids[:nodes])
        self.changes: dict[int, Change] = {}
        """Token -> what was asked."""
        self.made = 0
        """Changes of which somebody was told that they are made."""
        self.refused = 0
        self.configurations: dict[int, Configuration] = {0: Configuration(self.founders)}
        """Index -> what was applied there."""
        self.change_every_s = self.dice.choice([0.1, 0.3, 1.0])
        self.clock.at(0.5, self._change)

    def make(self, i: NodeId) -> Node:
        return Member(self, i)

    # -- what is asked --

    def _change(self) -> None:
        if self.mix.is_over:
            return
        self.clock.at(self.dice.random() * 2 * self.change_every_s, self._change)
        if self.running:
            self.ask(self._draw())

    def _draw(self) -> Change:
        """Mostly what may be allowed; some of it makes no sense."""
        dice, leader = self.dice, self.last_leader
        kind = dice.choice(KINDS)
        if leader in self.running and dice.random() < 0.8:
            assert leader is not None
            now = self.running[leader].replica.status.configuration
            others = sorted(set(self.ids) - {*now.members, *now.removed})
            fitting = {"add": others, "promote": now.learners, "demote": now.voters, "remove": now.members}
            kind = dice.choice([kind for kind in KINDS if fitting[kind]])
            return Change(kind, dice.choice(fitting[kind]), is_resting=dice.random() < 0.5)
        return Change(kind, dice.choice(self.ids))

    def ask(self, change: Change) -> None:
        """The leader, as far as known; sometimes another."""
        is_informed = self.last_leader in self.running and self.dice.random() < 0.9
        target = self.last_leader if is_informed else self.any_running()
        assert target is not None
        token = _FIRST_TOKEN + len(self.changes)
        self.changes[token] = change
        self.running[target].give(ProposeChange(token, change))

    def on_change(self, resolved: Resolved) -> None:
        if resolved.error == "refused":
            assert isinstance(resolved.answer, Refusal)
            self.refused += 1
        elif resolved.error is None:
            self.made += 1
            after, change = resolved.answer, self.changes[resolved.token]
            is_there = {
                "add": change.node_id in after.members,
                "promote": change.node_id in after.voters,
                "demote": change.node_id in after.learners,
                "remove": change.node_id not in after.members,
            }
            if not is_there[change.kind]:
                raise Violation(f"{change} was acknowledged with {after}")

    # -- what must hold --

    def observe(self, i: NodeId, output: Output) -> None:
        super().observe(i, output)
        index, configuration = self.running[i].replica.journal.applied_configuration
        if not configuration.voters:
            return  # a newcomer that has not heard of anybody
        known = self.configurations.setdefault(index, configuration)
        if known != configuration:
            raise Violation(f"at {index} {i} has {configuration}, another replica {known}")
        earlier = max((at for at in self.configurations if at < index), default=index)
        changed = set(self.configurations[earlier].voters) ^ set(configuration.voters)
        if len(changed) > 1:  # two majorities need not share a voter
            raise Violation(f"from {self.configurations[earlier]} at {earlier} to {configuration} at {index}")
        if output.status.role is not Role.FOLLOWER and i not in output.status.voters:
            raise Violation(f"{i} is a {output.status.role.name} and does not vote in {output.status.configuration}")

    @property
    def current(self) -> Configuration:
        return self.configurations[max(self.configurations)]

    def is_converged(self) -> bool:
        """All members have applied the same, one command proposed in the quiet among it; who was removed, and would
        vote, knows it."""
        members = [self.running[i].replica.status for i in self.current.members if i in self.running]
        leaders = [s for s in members if s.role is Role.LEADER]
        if not leaders or len({s.applied_index for s in members}) > 1:
            return False
        if any(s.is_changing or s.configuration != self.current for s in members):
            return False
        for i in set(self.ids) - set(self.current.members):
            s = self.running[i].replica.status
            if i in s.voters and not s.is_removed:
                return False
        if b"last" in self.checks.acked.values():
            return True
        self.load.propose(b"last")
        return False

    def check_end(self) -> None:
        self.checks.tables({i: self.stores[i] for i in self.current.members})

    def describe(self) -> str:
        return f"{super().describe()}; {self.current} at {max(self.configurations)}"
