"""Returns its task: for trying the mesh and for measuring it."""

from node.rituals import Context, Knowledge, ritual


@ritual(version="1", timeout_s=10.0, parameters=())
async def echo(context: Context) -> Knowledge:
    """Returns its task."""
    return Knowledge(summary=context.task, result=context.task)
