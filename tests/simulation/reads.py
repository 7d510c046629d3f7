"""Reads asked of whoever thinks it leads: what it may answer must cover all that was acknowledged anywhere before."""

import random
from typing import TYPE_CHECKING

from consensus.engine import Role
from consensus.steps import ReadIndex, Resolved
from tests.simulation.checks import Violation

if TYPE_CHECKING:
    from storage.ids import NodeId
    from tests.simulation.world import ReplicaWorld


class Reads:
    """Its tokens are below zero, those of commands are not."""

    def __init__(self, world: "ReplicaWorld") -> None:
        self.world = world
        self.dice = random.Random(world.dice.random())
        self.every_s = self.dice.choice([0.005, 0.02, 0.1])
        self.answered = 0
        self._acknowledged = 0
        """Highest index whose success was told."""
        self._floors: dict[int, int] = {}
        """Token of a read -> what had been acknowledged when it was asked."""
        self._last_token = 0
        self._terms: set[int] = set()
        world.clock.at(0.1, self._ask_some)

    def acknowledged(self, index: int) -> None:
        self._acknowledged = max(self._acknowledged, index)

    def leads(self, i: "NodeId", term: int) -> None:
        """A leader is asked as soon as it is one: then it knows least."""
        if term not in self._terms:
            self._terms.add(term)
            self._ask(i)

    def resolved(self, i: "NodeId", resolved: Resolved) -> None:
        floor = self._floors.pop(resolved.token)
        if resolved.error is None:
            self.answered += 1
            if resolved.index < floor:
                raise Violation(f"{i}: a read may stop at {resolved.index}, but {floor} was acknowledged before it")

    def _ask(self, i: "NodeId") -> None:
        self._last_token -= 1
        token = self._last_token
        self._floors[token] = self._acknowledged
        self.world.running[i].give(ReadIndex(token))

    def _ask_some(self) -> None:
        if self.world.mix.is_over:
            return
        for i, process in sorted(self.world.running.items()):
            if process.replica.status.role is Role.LEADER or self.dice.random() < 0.02:
                self._ask(i)
        self.world.clock.at(self.dice.random() * 2 * self.every_s, self._ask_some)
