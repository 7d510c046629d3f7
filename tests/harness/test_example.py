import asyncio

import pytest

from node.rituals import Context, ritual
from node.testing import MeshUnderTest


@ritual
async def weigh(context: Context) -> dict[str, object]:
    """Weighs a word for two seconds."""
    await asyncio.sleep(2.0)
    return {"result": len(context.task), "patterns": [f"attempt {context.attempt}"]}


@pytest.mark.meshnode(mode="both")
def test_the_work_of_a_node_that_dies_goes_on(mesh: MeshUnderTest) -> None:
    mesh.start(cores=3, rituals=[weigh])
    session = mesh.submit(thought="How heavy is it?", branches=[{"ritual": "weigh", "task": "feather"}])
    holder = mesh.wait("a node has begun", lambda: mesh.holder(session["id"]))
    mesh.kill(holder)
    assert mesh.wait_session(session["id"])["status"] == "completed"
    assert mesh.branch(session["id"], 0)["knowledge"]["result"] == 7
    assert mesh.holder(session["id"]) != holder
    assert mesh.branches(session["id"])[0]["attempt"] == 2
