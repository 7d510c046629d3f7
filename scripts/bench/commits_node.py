"""One node of the commit benchmark: the callers are inside whichever of them leads.

python -m scripts.bench.commits_node CONFIG RESULTS
"""

import asyncio
import os
from collections.abc import Awaitable
from pathlib import Path

from consensus.engine import Role
from consensus.state.commands import Canary
from node.app import Node
from scripts.bench.node_process import call_many, main, write

LOADS = [(1, 1_500), (64, 20_000), (256, 30_000)]
"""In flight, commands."""

PAYLOAD_BYTES = 100


async def measure(node: Node, results: Path) -> None:
    if node.group.status().role is not Role.LEADER:
        return
    await asyncio.sleep(1.0)  # the others have registered, canaries are through

    def propose() -> Awaitable[object]:
        return node.group.propose(Canary(node_id=node.node_id, payload=os.urandom(PAYLOAD_BYTES), at_ms=0))

    write(results, [await call_many(propose, in_flight, count) for in_flight, count in LOADS])


if __name__ == "__main__":
    main(measure)
