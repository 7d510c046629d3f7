"""Plants a fault in the product, a rule taken away, and looks for a seed that notices: what no seed notices is not
tested. `python -m tests.simulation.planting` looks for all from seed 0 on, and prints the table of
`docs/verification.md`; the tests look around the seed that is known."""

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

from tests.simulation.checks import Violation
from tests.simulation.mesh_world import MeshWorld
from tests.simulation.run import WORLDS, run_seed
from tests.simulation.world import ReplicaWorld, World

Patch = pytest.MonkeyPatch


@dataclass(frozen=True, kw_only=True)
class Planted:
    rule: str
    removed: str
    """What the product no longer does."""
    caught_by: str
    """Regular expression of the violation."""
    plant: Callable[[Patch], None]
    seed: int
    """Of a seed that notices."""
    base: Callable[[Patch], None] = lambda patch: None
    """What makes the rule matter, and does no harm while it is kept."""
    nodes: int = 3
    world: type[ReplicaWorld | MeshWorld] = ReplicaWorld
    weights: tuple[str, ...] | None = None
    """Blows and hazards of every seed, instead of a mix of its own: where what is needed is rare."""
    hazards: tuple[str, ...] = ()
    times: float = 3.0
    every_s: float = 0.1

    def prepare(self, world: World) -> None:
        if self.weights is not None:
            world.mix.weights = dict.fromkeys(self.weights, 1)
            world.mix.hazards = dict.fromkeys(self.hazards, self.times)
            world.mix.every_s = self.every_s

    def find(self, seeds: Iterable[int]) -> tuple[int, str] | None:
        """The first seed that notices, and what it says. The same seed must find nothing while the rule is kept."""
        for seed in seeds:
            violation = self._run(seed, self.plant)
            if violation is not None:
                assert self._run(seed, lambda patch: None) is None, f"seed {seed} fails without the planted fault"
                return seed, violation
        return None

    def _run(self, seed: int, plant: Callable[[Patch], None]) -> str | None:
        with pytest.MonkeyPatch.context() as patch:
            self.base(patch)
            plant(patch)
            try:
                run_seed(seed, self.nodes, self.world, self.prepare)
            except Violation as violation:
                return str(violation)
        return None


def caught(seeds: range, world_type: type[ReplicaWorld] = ReplicaWorld, sizes: tuple[int, ...] = (3, 5)) -> str | None:
    """The first violation of these seeds, with whatever is planted."""
    for seed in seeds:
        for nodes in sizes:
            try:
                run_seed(seed, nodes, world_type)
            except Violation as violation:
                return str(violation)
    return None


def main(words: list[str]) -> int:
    """`words`: parts of the names of rules, or none for all."""
    from tests.simulation.planted import PLANTED

    seeds_max = 100
    missed = 0
    print("| rule | taken away | caught by | seeds needed |\n|---|---|---|---|")
    for one in PLANTED:
        if words and not any(word in one.rule for word in words):
            continue
        found = one.find(range(seeds_max))
        world = next(name for name, kind in WORLDS.items() if issubclass(one.world, kind))
        where = f"{world}, {one.nodes} nodes" + ("" if one.weights is None else ", its own faults")
        if found is None:
            missed += 1
            print(f"| {one.rule} | {one.removed} | **nothing** | more than {seeds_max} ({where}) |", flush=True)
            continue
        seed, violation = found
        (line,) = re.findall(r"\S.*", violation.split("\nreplay:")[0])[-1:]
        print(f"| {one.rule} | {one.removed} | `{line[:90]}` | {seed + 1} ({where}) |", flush=True)
        if not re.search(one.caught_by, violation):
            print(f"  expected {one.caught_by}", file=sys.stderr)
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
