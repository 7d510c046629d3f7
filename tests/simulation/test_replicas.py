"""Every seed of bare replicas is safe under faults and converges after them."""

import pytest

from tests.simulation.run import run_seed
from tests.simulation.seeds import chunks
from tests.simulation.world import ReplicaWorld


@pytest.mark.parametrize(("nodes", "seeds"), chunks({1: 150, 3: 650, 5: 200, 7: 80}))
def test_seeds(nodes: int, seeds: range) -> None:
    for seed in seeds:
        run_seed(seed, nodes, ReplicaWorld)
