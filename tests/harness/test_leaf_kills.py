"""Leaf nodes and their parents are killed again and again while they work: everything is completed, nothing is recorded
twice. More kills: MESHNODE_TEST_KILLS=1000."""

import asyncio
import os
import random
from collections import Counter

import pytest

from node.rituals.context import Context
from node.rituals.definition import ritual
from node.testing import VirtualMesh

KILLS = int(os.environ.get("MESHNODE_TEST_KILLS", "40"))
KILLS_A_MESH = 20
LEAVES = [f"leaf-{number}" for number in range(1, 5)]
PARENTS = ["core-1", "core-2", "core-3", "edge-1"]


@ritual(timeout_s=60.0)
async def dawdle(context: Context) -> int:
    await asyncio.sleep(0.2 + context.random.random() * 3)
    return context.attempt


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(max(1, KILLS // KILLS_A_MESH)))
def test_nothing_is_recorded_twice(seed: int) -> None:
    dice = random.Random(seed)
    with VirtualMesh(seed=seed) as mesh:
        mesh.start(cores=3, edges=1, leaves=4, rituals=[dawdle])
        sessions: list[str] = []
        for _ in range(KILLS_A_MESH):
            branches = [{"ritual": "dawdle", "task": "t", "attempts_max": 10}] * 12
            sessions.append(str(mesh.submit(thought="?", branches=branches, on=dice.choice(PARENTS[:3]))["id"]))
            mesh.run_for(dice.random() * 2)
            victim = dice.choice(LEAVES + PARENTS)
            mesh.kill(victim)
            mesh.run_for(dice.random() * dice.choice((0.5, 12)))
            mesh.restart(victim)
            mesh.run_for(dice.random())
            if victim in PARENTS:  # a majority stays
                mesh.wait_ready(120)
        for session in sessions:
            assert mesh.wait_session(session, 300)["status"] == "completed"
        once = Counter[tuple[str, int]]()
        for session in sessions:
            for branch in mesh.branches(session):
                detail = mesh.branch(session, branch["branch_index"])
                assert detail["knowledge"]["result"] == branch["attempt"], (
                    "the result is that of the attempt that counts"
                )
                once[session, branch["branch_index"]] += sum(one["status"] == "completed" for one in detail["attempts"])
        assert set(once.values()) == {1}
