"""Whole nodes under a mix of faults that each seed draws: what was accepted is done once, whatever is killed or cut."""

import os
import random
import uuid

import pytest

from node.testing import VirtualMesh
from node.testing.harness import UNREACHED
from tests.harness.test_failures import check_recorded_once

ROUNDS = 25

SEEDS = 12 * int(os.environ.get("SIMULATION_SEEDS", "100")) // 100

BLOWS = ("kill", "kill", "restart", "stop", "pause", "resume", "partition", "cut", "slow", "heal", "")

SHAPES = ((1, 0, 0), (3, 0, 0), (3, 1, 0), (5, 0, 0), (4, 1, 2), (3, 0, 3))
"""Core, Edge and Leaf nodes."""


class Nemesis:
    """Does one thing after the other, and remembers what must be undone."""

    def __init__(self, mesh: VirtualMesh) -> None:
        self.mesh = mesh
        self.dice = random.Random(mesh.seed)
        self.paused: set[str] = set()

    def strike(self) -> None:
        mesh, dice = self.mesh, self.dice
        name = dice.choice(mesh.nodes())
        match dice.choice(BLOWS):
            case "kill" if mesh[name].is_running:
                self.paused.discard(name)
                mesh.kill(name)
            case "stop" if mesh[name].is_running and name not in self.paused:
                mesh.stop(name)
            case "restart" if not mesh[name].is_running:
                mesh.restart(name)
            case "pause" if mesh[name].is_running:
                self.paused.add(name)
                mesh.pause(name)
            case "resume" if name in self.paused:
                self.paused.remove(name)
                mesh.resume(name)
            case "partition":
                mesh.partition(dice.sample(mesh.nodes(), dice.randrange(len(mesh.nodes()))))
            case "cut":
                mesh.cut(name, dice.choice(mesh.nodes()))
            case "slow":
                mesh.slow(name, delay_s=dice.random() / 2)
            case "heal":
                mesh.heal()
            case _:
                pass  # it cannot strike there

    def end(self) -> None:
        for name in self.mesh.nodes():
            if not self.mesh[name].is_running:
                self.mesh.restart(name)
        for name in sorted(self.paused):
            self.mesh.resume(name)
        self.mesh.heal()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_was_accepted_is_done_once(seed: int) -> None:
    cores, edges, leaves = SHAPES[seed % len(SHAPES)]
    accepted: dict[str, int] = {}
    with VirtualMesh(seed) as mesh:
        mesh.start(cores, edges, leaves, settings={"mesh": {"voter_grace_s": 5}})
        nemesis = Nemesis(mesh)
        for _ in range(ROUNDS):
            nemesis.strike()
            count = nemesis.dice.choice([1, 3, 20])
            seconds = nemesis.dice.choice([0, 0.3, 2.0])
            branches = [{"ritual": "wait", "task": "x", "parameters": {"seconds": seconds}, "attempts_max": 5}] * count
            identity = str(uuid.UUID(int=nemesis.dice.getrandbits(128), version=4))
            body = {"id": identity, "thought": "?", "branches": branches}
            try:
                name = nemesis.dice.choice(mesh.nodes())
                if mesh.call(name, "POST", "/v1/sessions", body, timeout_s=1.0).status == 201:
                    accepted[identity] = count
            except UNREACHED:
                pass
            mesh.run_for(nemesis.dice.random())
        nemesis.end()
        mesh.wait_ready(120.0)
        for identity, count in accepted.items():
            assert mesh.wait_session(identity, 120.0)["status"] == "completed"
            check_recorded_once(mesh, identity, count)
        indexes = mesh.wait("all have applied the same", lambda: _applied(mesh))
        assert len(indexes) == 1


def _applied(mesh: VirtualMesh) -> set[int] | None:
    replicas = [name for name in mesh.nodes() if not name.startswith("leaf")]
    found = {(mesh.status(name) or {}).get("applied_index", object()) for name in replicas}
    return found if len(found) == 1 else None
