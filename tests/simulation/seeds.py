"""Which seeds the tests run. SIMULATION_SEEDS=200 for twice as many; `scripts/simulate` runs any range."""

import os

_CHUNK = 10
_PERCENT = int(os.environ.get("SIMULATION_SEEDS", "100"))


def chunks(counts: dict[int, int]) -> list[tuple[int, range]]:
    """`counts`: nodes -> seeds. Chunks of (nodes, seeds), so that a failure names few."""
    found = []
    for nodes, count in counts.items():
        seeds = range(count * _PERCENT // 100)
        found += [(nodes, seeds[start : start + _CHUNK]) for start in range(0, len(seeds), _CHUNK)]
    return found
