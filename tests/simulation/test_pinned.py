"""An hour on machines whose processors are all taken: every daemon runs late again and again, and nobody is taken for
dead who is not; but who is, is found. Whole nodes on a virtual clock."""

import random

from consensus.state import queries
from consensus.state.events import MemberStatusChanged
from node.testing import VirtualMesh
from storage.ids import NodeId

HOUR_S = 3600.0

FOUND_S = 30.0
"""Silence for longer than usual (the late have earned it), a lag or two, and doubt."""


class Scheduler:
    """Lets daemons wait for their turn: mostly a little, sometimes seconds."""

    def __init__(self, mesh: VirtualMesh, seed: int) -> None:
        self.mesh = mesh
        self.dice = random.Random(seed)
        self._until: dict[str, float] = {}

    def run_for(self, seconds: float) -> None:
        ends_at = self.mesh.now + seconds
        while self.mesh.now < ends_at:
            self.mesh.run_for(0.05 + self.dice.random() * 0.3)
            for name in [name for name, until in self._until.items() if self.mesh.now >= until]:
                self._resume(name)
            name = self.dice.choice([node.name for node in self.mesh.running()])
            if name not in self._until:
                self.mesh.pause(name)
                self._until[name] = self.mesh.now + self._delay_s()

    def let_go(self) -> None:
        for name in list(self._until):
            self._resume(name)

    def _resume(self, name: str) -> None:
        del self._until[name]
        self.mesh.resume(name)

    def _delay_s(self) -> float:
        """One in a hundred is far longer than an election takes, and two links' worth of heartbeats are missed."""
        chance = self.dice.random()
        return self.dice.random() * (0.4 if chance < 0.9 else 1.5 if chance < 0.99 else 2.8)


def deaths(mesh: VirtualMesh) -> list[NodeId]:
    found: list[NodeId] = []
    place = (0, 0)
    with mesh[mesh.running()[0].name].store.read() as txn:
        while events := queries.events_since(txn, *place, 1000):
            place = (events[-1].index, events[-1].position)
            found += [
                numbered.event.node_id
                for numbered in events
                if isinstance(numbered.event, MemberStatusChanged) and numbered.event.status == "dead"
            ]
    return found


def test_an_hour_on_pinned_processors_kills_nobody_and_hides_nobody_who_died() -> None:
    with VirtualMesh(seed=11) as mesh:
        mesh.start(cores=3)
        ids = {name: mesh.status(name)["node_id"] for name in mesh.nodes()}
        scheduler = Scheduler(mesh, seed=11)
        scheduler.run_for(HOUR_S)
        scheduler.let_go()
        assert deaths(mesh) == []
        assert sum(mesh.status(name)["liveness"]["lags"] for name in mesh.nodes()) > 100, "they did run late"
        for victim, fail in ((mesh.leader(), mesh.kill), (mesh.followers()[0], lambda name: mesh.partition([name]))):
            fail(victim)
            scheduler.run_for(FOUND_S)
            scheduler.let_go()
            seen = next(node.name for node in mesh.running() if node.name != victim)
            members = mesh.call(seen, "GET", "/v1/members").expect(200)["members"]
            assert next(row["status"] for row in members if row["node_id"] == ids[victim]) == "dead"
            if not mesh[victim].is_running:
                mesh.restart(victim)
                mesh.wait_ready()
