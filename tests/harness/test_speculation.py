"""A branch that takes much longer than the others gets a second attempt elsewhere; the first valid result counts."""

import asyncio
from typing import Any

import pytest

from node.rituals.context import Context
from node.rituals.definition import ritual
from node.testing import MeshUnderTest

pytestmark = pytest.mark.meshnode(mode="both")

BRANCHES = 8


@ritual
async def search(context: Context) -> dict[str, Any]:
    """The last branch is on a slow machine, the first time."""
    is_slow = context.task == str(BRANCHES - 1) and context.attempt == 1
    await asyncio.sleep(60.0 if is_slow else 0.3)
    return {"attempt": context.attempt}


def submit(mesh: MeshUnderTest, **more: Any) -> str:
    branches = [{"task": str(number)} for number in range(BRANCHES)]
    return str(mesh.submit(thought="?", ritual="search", branches=branches, **more)["id"])


def last(mesh: MeshUnderTest, session: str) -> Any:
    row = next(row for row in mesh.branches(session) if row["branch_index"] == BRANCHES - 1)
    return mesh.call(mesh.leader(), "GET", f"/v1/branches/{row['id']}").expect(200)


def busy(mesh: MeshUnderTest) -> int:
    return sum((node.status() or {"slots": {"async_busy": 0}})["slots"]["async_busy"] for node in mesh.running())


def test_a_straggler_is_overtaken(mesh: MeshUnderTest) -> None:
    mesh.start(rituals=[search])
    session = submit(mesh)
    done = mesh.wait_session(session)
    assert (done["status"], done["completed"]) == ("completed", BRANCHES)
    told = last(mesh, session)
    first, second = told["attempts"]
    assert (first["status"], second["status"]) == ("superseded", "completed")
    assert first["node_id"] != second["node_id"]
    assert told["knowledge"]["result"] == {"attempt": 2}
    assert (told["branch"]["attempt"], told["branch"]["node_id"]) == (2, second["node_id"])
    mesh.wait("the slow one was stopped", lambda: busy(mesh) == 0)


def test_the_leaf_that_dawdles_is_overtaken_too(mesh: MeshUnderTest) -> None:
    mesh.start(cores=1, leaves=1, rituals=[search])
    session = submit(mesh, spread="name")
    done = mesh.wait_session(session)
    assert (done["status"], done["completed"]) == ("completed", BRANCHES)
    assert [row["status"] for row in last(mesh, session)["attempts"]] == ["superseded", "completed"]
    mesh.wait("the slow one was stopped", lambda: busy(mesh) == 0)


def test_a_session_can_do_without(mesh: MeshUnderTest) -> None:
    mesh.start(rituals=[search])
    session = submit(mesh, speculation=False)
    mesh.wait("all but one are done", lambda: mesh.session(session)["completed"] == BRANCHES - 1)
    mesh.run_for(5.0)
    assert [row["status"] for row in last(mesh, session)["attempts"]] == ["processing"]


def test_why_tells_of_both(mesh: MeshUnderTest) -> None:
    mesh.start(rituals=[search], settings={"execution": {"async_slots": 4}})
    session = submit(mesh)

    def told() -> str:
        row = last(mesh, session)["branch"]
        if row["speculative"] is None:
            return ""
        return str(mesh.call(mesh.leader(), "GET", f"/v1/branches/{row['id']}/why").expect(200)["sentence"])

    assert ", which is slow, and beside it on core-" in mesh.wait("it has a second attempt", told)
