"""Which seeds the tests run. SIMULATION_SEEDS=200 for twice as many; `scripts/simulate` runs any range."""

import os

_PERCENT = int(os.environ.get("SIMULATION_SEEDS", "100"))


def chunks(counts: dict[int, int]) -> list[tuple[int, range]]:
    """`counts`: nodes -> seeds. Chunks of (nodes, seeds), so that a failure names few."""
    found = []
    for nodes, count in counts.items():
        seeds, size = range(count * _PERCENT // 100), 10 if nodes <= 3 else 5
        found += [(nodes, seeds[start : start + size]) for start in range(0, len(seeds), size)]
    return found
