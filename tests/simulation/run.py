"""Runs seeds. `scripts/simulate` is its command line."""

import traceback
from collections.abc import Callable

from tests.simulation.checks import Violation
from tests.simulation.member_world import MemberWorld
from tests.simulation.mesh_world import MeshWorld
from tests.simulation.world import ReplicaWorld, World

WORLDS: dict[str, type[ReplicaWorld | MeshWorld]] = {
    "replicas": ReplicaWorld,
    "members": MemberWorld,
    "mesh": MeshWorld,
}


def run_seed(
    seed: int,
    nodes: int,
    world_type: type[ReplicaWorld | MeshWorld] = ReplicaWorld,
    prepare: Callable[[World], None] = lambda world: None,
) -> World:
    """Raises Violation, with the command that replays it; an exception out of a node is a violation too. `prepare` may
    change the mix of faults that the seed has drawn."""
    world = world_type(seed, nodes)
    prepare(world)
    try:
        world.run()
    except Violation as violation:
        raise Violation(f"{violation}\n{_replay(seed, nodes, world)}") from None
    except Exception as error:
        raise Violation(f"{traceback.format_exc()}\n{_replay(seed, nodes, world)}") from error
    return world


def _replay(seed: int, nodes: int, world: World) -> str:
    name = next((name for name, kind in WORLDS.items() if type(world) is kind), type(world).__name__)
    command = f"scripts/simulate --seeds {seed}:{seed + 1} --nodes {nodes} --worlds {name}"
    return f"replay: {command}   ({world.mix}; {world.settings})"
