"""What an author of rituals imports: `ritual`, `Parameter`, `Context`, `Knowledge`.

    from node.rituals import Context, Knowledge, ritual

    @ritual(version="1")
    async def greet(context: Context) -> Knowledge:
        return Knowledge(summary=f"hello, {context.task}")

`async def` makes an async ritual: many share one worker, so it must await rather than block. `def` makes a CPU ritual:
it has a worker process to itself. Announce it under the entry point group `meshnode.rituals`.

Workers import this package at their start, so nothing in it may import anything heavy.
"""

from node.rituals.context import BranchInput, Context, Failure, Knowledge
from node.rituals.definition import Parameter, RitualDefinition, ritual

__all__ = ["BranchInput", "Context", "Failure", "Knowledge", "Parameter", "RitualDefinition", "ritual"]
