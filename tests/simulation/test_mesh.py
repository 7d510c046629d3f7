"""Every seed of a whole mesh is safe under faults and converges after them."""

import pytest

from tests.simulation.mesh_world import MeshWorld
from tests.simulation.run import run_seed
from tests.simulation.seeds import chunks


@pytest.mark.parametrize(("nodes", "seeds"), chunks({1: 150, 3: 600, 5: 130, 7: 60}))
def test_seeds(nodes: int, seeds: range) -> None:
    for seed in seeds:
        run_seed(seed, nodes, MeshWorld)
