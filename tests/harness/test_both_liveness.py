"""Who is taken for dead, and who drains, leaves and comes back: the same on a virtual clock and with processes."""

import asyncio
import time
from typing import Any

import pytest

from node.rituals.context import Context
from node.rituals.definition import ritual
from node.testing import MeshUnderTest, ProcessMesh

pytestmark = pytest.mark.meshnode(mode="both")

LONG_S = 8.0
PINNED_S = 60.0


@ritual(timeout_s=300.0)
async def ponder(context: Context) -> dict[str, Any]:
    await asyncio.sleep(LONG_S)
    return {"result": context.attempt}


@ritual(timeout_s=300.0)
def burn(context: Context) -> int:
    until, rounds = time.monotonic() + PINNED_S / 2, 0
    while time.monotonic() < until:
        rounds += sum(range(1000))
    return rounds


def pass_time(mesh: MeshUnderTest, seconds: float) -> None:
    until = mesh.now + seconds
    mesh.wait("time has passed", lambda: mesh.now >= until, seconds + 60)


def member(mesh: MeshUnderTest, name: str, on: str) -> Any:
    members = mesh.call(on, "GET", "/v1/members").expect(200)["members"]
    return next(row for row in members if row["name"] == name)


def ask(mesh: MeshUnderTest, on: str, name: str, **body: object) -> Any:
    return mesh.call(on, "POST", f"/v1/members/{name}/change", body)


def voters(mesh: MeshUnderTest, on: str) -> set[str]:
    return {voter["name"] for voter in (mesh.status(on) or {}).get("voters", ())}


def submit(mesh: MeshUnderTest, on: str, branches: int = 9) -> str:
    fields = [{"ritual": "ponder", "task": "t"}] * branches
    return str(mesh.submit(thought="?", branches=fields, on=on)["id"])


def working(mesh: MeshUnderTest, name: str, on: str) -> str:
    """A session of which this node has its share."""
    session = submit(mesh, on)
    mesh.wait(f"{name} works", lambda: member(mesh, name, on)["running"])
    return session


def attempts(mesh: MeshUnderTest, session: str, on: str) -> set[int]:
    return {branch["attempt"] for branch in mesh.branches(session, on=on)}


def test_a_follower_that_is_stopped_for_three_seconds_keeps_its_work(mesh: MeshUnderTest) -> None:
    leader = mesh.start(rituals=[ponder])
    victim = mesh.followers()[0]
    session = working(mesh, victim, leader)
    mesh.pause(victim)
    pass_time(mesh, 3.0)
    mesh.resume(victim)
    assert mesh.wait_session(session, on=leader)["status"] == "completed"
    assert attempts(mesh, session, leader) == {1}
    assert member(mesh, victim, leader)["status"] == "alive"


def test_a_link_that_only_the_leader_has_lost_is_no_death(mesh: MeshUnderTest) -> None:
    leader = mesh.start(rituals=[ponder])
    victim = mesh.followers()[0]
    session = working(mesh, victim, leader)
    mesh.cut(leader, victim)
    mesh.cut(victim, leader)
    mesh.wait("it is suspect", lambda: member(mesh, victim, leader)["status"] == "suspect")
    pass_time(mesh, 2 * LONG_S)
    assert member(mesh, victim, leader)["status"] == "suspect"
    mesh.heal()
    assert mesh.wait_session(session, on=leader)["status"] == "completed"
    assert attempts(mesh, session, leader) == {1}, "what it finished meanwhile is recorded"


def test_a_leader_drains_in_the_middle_of_a_session_and_nothing_is_lost(mesh: MeshUnderTest) -> None:
    leader = mesh.start(rituals=[ponder])
    other = mesh.followers()[0]
    session = working(mesh, leader, other)
    ask(mesh, other, leader, action="drain").expect(200)
    mesh.wait(
        "another leads", lambda: ((mesh.status(other) or {}).get("leader") or {}).get("name") not in (leader, None)
    )
    assert mesh.wait_session(session, on=other)["status"] == "completed"
    assert attempts(mesh, session, other) == {1}
    mesh.wait("it is drained", lambda: member(mesh, leader, other)["draining"] == "drained")
    mesh.stop(leader)
    mesh.restart(leader)
    mesh.wait("starting it ends that", lambda: not member(mesh, leader, other)["is_draining"])


def test_a_node_leaves_and_comes_back_by_being_started(mesh: MeshUnderTest) -> None:
    leader = mesh.start(rituals=[ponder])
    leaver, other = mesh.followers()
    session = working(mesh, leaver, leader)

    def is_allowed() -> bool:
        return bool(ask(mesh, other, leaver, action="leave", dry_run=True).expect(200)["allowed"])

    mesh.wait("the mesh can do without it", is_allowed)
    ask(mesh, other, leaver, action="leave", grace_s=1).expect(200)
    mesh.wait("it is let go", lambda: voters(mesh, leader) == {leader, other})
    assert member(mesh, leaver, leader)["standing"] == "left"
    assert mesh.wait_session(session, on=leader)["status"] == "completed"
    pass_time(mesh, 5.0)
    mesh.stop(leaver)
    assert (voters(mesh, leader), member(mesh, leaver, leader)["status"]) == ({leader, other}, "left")
    second = submit(mesh, leader)
    mesh.restart(leaver)
    mesh.wait("it votes again", lambda: voters(mesh, leader) == {leader, leaver, other}, 60)
    mesh.wait("it is alive", lambda: member(mesh, leaver, leaver)["status"] == "alive")
    assert mesh.wait_session(second, on=leaver)["status"] == "completed"


@pytest.mark.meshnode(mode="processes")
def test_processors_pinned_by_rituals_kill_nobody(mesh: ProcessMesh) -> None:
    """Three daemons and six processes that only compute, on whatever this machine has."""
    leader = mesh.start(rituals=[burn], settings={"execution": {"slots": 2}})

    fields = [{"ritual": "burn", "task": "t"}] * 12
    session = mesh.submit(thought="?", branches=fields, on=leader)["id"]
    assert mesh.wait_session(session, 4 * PINNED_S, on=leader)["status"] == "completed"
    assert attempts(mesh, session, leader) == {1}, "who is taken for dead loses its work"
    assert {name: member(mesh, name, leader)["status"] for name in mesh.nodes()} == dict.fromkeys(mesh.nodes(), "alive")
