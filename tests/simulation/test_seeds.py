"""Every seed is safe under faults and converges after them. SIMULATION_SEEDS=N runs N seeds of each size, default 300;
`scripts/simulate` runs any range."""

import os

import pytest

from tests.simulation.run import run_seed

_CHUNK = 10
_SEEDS = int(os.environ.get("SIMULATION_SEEDS", "300"))


@pytest.mark.parametrize("nodes", [3, 5])
@pytest.mark.parametrize("first", range(0, _SEEDS, _CHUNK))
def test_seeds(first: int, nodes: int) -> None:
    for seed in range(first, min(first + _CHUNK, _SEEDS)):
        run_seed(seed, nodes)


def test_a_seed_runs_the_same_twice() -> None:
    worlds = [run_seed(4, 5) for _ in range(2)]
    assert len({(world.steps, world.frames, world.now, len(world.acked)) for world in worlds}) == 1
    assert worlds[0].agreed == worlds[1].agreed


@pytest.mark.parametrize("nodes", [1, 2, 4, 7])
def test_other_sizes(nodes: int) -> None:
    run_seed(1, nodes)
