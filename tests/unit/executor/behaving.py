"""Rituals that tell what they see. Imports nothing, because what a worker has imported is one of the things seen."""

import os
import sys
from typing import Any

from node.rituals import Context, Knowledge, ritual


@ritual(version="7", parameters=())
def add(context: Context) -> Knowledge:
    """Well-behaved: tells what it was given."""
    return Knowledge(
        patterns=["a pattern"],
        connections=[("a", "b")],
        novelty=0.5,
        score=2.0,
        summary=context.task,
        result={
            "seed": context.random.random(),
            "attempt": context.attempt,
            "branch_index": context.branch_index,
            "thought": context.thought,
            "session_id": context.session_id,
            "pid": os.getpid(),
            "cwd": os.getcwd(),
            "modules": sorted(sys.modules),
            "nice": os.nice(0),
        },
    )


@ritual(parameters=())
async def modules(context: Context) -> dict[str, Any]:
    return {"modules": sorted(sys.modules), "pid": os.getpid()}
