"""What a node's tier lets it do. Pure.

Core and Edge hold replicas and link with each other; a Leaf has one link, to its parent. Core nodes found the mesh and
vote; an Edge learns, whatever becomes of the voters.
"""

from typing import Final

CORE: Final = "core"
EDGE: Final = "edge"
LEAF: Final = "leaf"
AUTO: Final = "auto"
"""Of a configuration: the mesh chooses. Until it has, the node is a Core node, so that it may found one."""


def may_vote(tier: str) -> bool:
    """And take part in founding a mesh."""
    return tier == CORE


def holds_replica(tier: str) -> bool:
    return tier in (CORE, EDGE)
