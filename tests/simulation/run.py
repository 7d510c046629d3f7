"""Runs seeds. `scripts/simulate` is its command line."""

import traceback

from tests.simulation.checks import Violation
from tests.simulation.world import World


def run_seed(seed: int, nodes: int, world_type: type[World] = World) -> World:
    """Raises Violation, with the command that replays it; an exception out of a replica is a violation too."""
    world = world_type(seed, nodes)
    try:
        world.run()
    except Violation as violation:
        raise Violation(f"{violation}\n{_replay(seed, nodes, world)}") from None
    except Exception as error:
        raise Violation(f"{traceback.format_exc()}\n{_replay(seed, nodes, world)}") from error
    return world


def _replay(seed: int, nodes: int, world: World) -> str:
    return f"replay: scripts/simulate --seeds {seed}:{seed + 1} --nodes {nodes}   ({world.mix}; {world.settings})"
