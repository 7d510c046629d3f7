"""Where branches execute, and why they do not: on a virtual clock and with processes."""

import asyncio
import itertools
from typing import Any

import pytest

from node.rituals.context import Context
from node.rituals.definition import ritual
from node.testing import MeshUnderTest

pytestmark = pytest.mark.meshnode(mode="both")


@ritual(version="2.1")
async def linger(context: Context) -> str:
    await asyncio.sleep(1.0)
    return context.task


@ritual(concurrency=1)
async def alone(context: Context) -> str:
    await asyncio.sleep(0.2)
    return context.task


def submit(mesh: MeshUnderTest, count: int = 1, ritual: str = "linger", **more: Any) -> str:
    return str(mesh.submit(thought="?", ritual=ritual, branches=[{"task": "t"}] * count, **more)["id"])


def why(mesh: MeshUnderTest, identity: str) -> Any:
    return mesh.call(mesh.leader(), "GET", f"/v1/branches/{identity}/why").expect(200)


def holders(mesh: MeshUnderTest, session: str) -> set[str | None]:
    return {mesh.holder(session, index) for index in range(len(mesh.branches(session)))}


def test_pins_requirements_and_versions(mesh: MeshUnderTest) -> None:
    mesh.start(rituals=[linger, alone])
    target = mesh.followers()[0]
    pinned = submit(mesh, 3, node=target)
    required = submit(mesh, 2, require={"name": [target], "tier": "core"}, ritual_version=">=2, <3")
    spread = submit(mesh, 6, spread="name")
    for session in (pinned, required, spread):
        assert mesh.wait_session(session)["status"] == "completed"
    assert holders(mesh, pinned) == holders(mesh, required) == {target}
    assert len(holders(mesh, spread)) == 3
    nowhere = submit(mesh, 1, require={"gpu": "a4000"}, ritual_version="3")
    told = mesh.wait("it is told", lambda: why(mesh, nowhere))
    assert {row["code"] for row in told["candidates"]} == {"ritual_version"}
    lacking = submit(mesh, 1, require={"gpu": "a4000"})
    told = why(mesh, lacking)
    assert "no node has the label gpu" in told["sentence"]
    assert told["unblock"] == ["start a node with gpu = a4000"]


def test_a_branch_pinned_to_a_lost_node_waits_for_it(mesh: MeshUnderTest) -> None:
    mesh.start(rituals=[linger])
    target = mesh.followers()[0]
    mesh.kill(target)
    waiting = submit(mesh, 1, node=target)

    def is_ruled_out() -> Any:
        rows = {row["name"]: row["code"] for row in why(mesh, waiting)["candidates"]}
        return rows.get(target) == "not_alive" and set(rows.values()) == {"not_alive", "another_node"}

    mesh.wait("the lost node is told", is_ruled_out)
    mesh.restart(target)
    assert mesh.wait_session(waiting)["status"] == "completed"
    assert mesh.holder(waiting) == target


def test_a_ritual_with_a_limit_runs_one_at_a_time(mesh: MeshUnderTest) -> None:
    mesh.start(rituals=[alone])
    session = submit(mesh, 4, ritual="alone")
    assert mesh.wait_session(session)["status"] == "completed"
    rows = [mesh.branch(session, index)["branch"] for index in range(4)]
    spans = sorted((row["started_at"], row["completed_at"]) for row in rows)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def test_a_session_limits_one_of_its_rituals(mesh: MeshUnderTest) -> None:
    mesh.start(rituals=[linger])
    branches = [{"task": "t", "ritual": ritual} for ritual in ("linger", "echo")] * 3
    session = mesh.submit(thought="?", branches=branches, ritual_concurrency={"linger": 1})["id"]
    assert mesh.wait_session(session)["status"] == "completed"
    rows = [row for row in mesh.branches(session) if row["ritual"] == "linger"]
    spans = sorted((row["started_at"], row["completed_at"]) for row in rows)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def test_every_node_tells_what_the_leader_sees(mesh: MeshUnderTest) -> None:
    mesh.start(cores=3, edges=1, leaves=1, rituals=[linger])
    waiting = submit(mesh, 1, require={"gpu": "a4000"})
    for name in mesh.nodes():

        def told(name: str = name) -> Any:
            answer = mesh.call(name, "GET", f"/v1/branches/{waiting}/why")
            told = answer.body if answer.status == 200 else {"candidates": []}
            return told if {row["name"] for row in told["candidates"]} == set(mesh.nodes()) else None

        seen = mesh.wait(f"{name} knows all nodes", told)
        assert seen["seen_from"] == {"name": mesh.leader(), "is_leader": True}
        assert {row["code"] for row in seen["candidates"]} == {"label_mismatch"}


def test_a_higher_priority_is_served_first(mesh: MeshUnderTest) -> None:
    mesh.start(rituals=[linger], settings={"execution": {"async_slots": 1}})
    low = submit(mesh, 9, priority=-1)
    mesh.wait("all places are taken", lambda: mesh.session(low)["processing"] == 3)
    high = submit(mesh, 6, priority=1)
    for session in (low, high):
        assert mesh.wait_session(session)["status"] == "completed"
    lows, highs = ([row["started_at"] for row in mesh.branches(session)] for session in (low, high))
    submitted = mesh.session(high)["created_at"]
    between = [at for at in lows if submitted < at < max(highs)]
    assert len(between) <= 1, "but for what was decided at that moment"
    assert len([at for at in lows if at > max(highs)]) >= 3
