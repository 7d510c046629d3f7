"""Every seed is safe under faults and converges after them. SIMULATION_SEEDS=N multiplies: N hundredths of the number
of seeds below; `scripts/simulate` runs any range."""

import os

import pytest

from tests.simulation.run import run_seed

_CHUNK = 10
_SHARE = int(os.environ.get("SIMULATION_SEEDS", "100"))
_SEEDS = {1: 100, 3: 400, 5: 200, 7: 100}
"""Nodes -> seeds."""

_CHUNKS = [
    (nodes, first, min(first + _CHUNK, count * _SHARE // 100))
    for nodes, count in _SEEDS.items()
    for first in range(0, count * _SHARE // 100, _CHUNK)
]


@pytest.mark.parametrize(("nodes", "first", "last"), _CHUNKS)
def test_seeds(nodes: int, first: int, last: int) -> None:
    for seed in range(first, last):
        run_seed(seed, nodes)
