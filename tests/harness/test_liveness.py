"""Who is taken for dead, and who is not: whole nodes on a virtual clock."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from node.rituals.context import Context
from node.rituals.definition import ritual
from node.testing import VirtualMesh

LONG_S = 20.0


@ritual(timeout_s=30 * LONG_S)
async def ponder(context: Context) -> dict[str, Any]:
    await asyncio.sleep(LONG_S)
    return {"result": context.attempt}


@pytest.fixture
def mesh() -> Iterator[VirtualMesh]:
    with VirtualMesh(seed=7) as mesh:
        mesh.start(rituals=[ponder])
        yield mesh


def statuses(mesh: VirtualMesh, on: str) -> dict[str, str]:
    members = mesh.call(on, "GET", "/v1/members").expect(200)["members"]
    return {member["name"]: member["status"] for member in members}


def work_everywhere(mesh: VirtualMesh) -> tuple[str, str, str, list[int]]:
    """A session that all nodes execute; its id, the leader, a follower, and the branches of that follower."""
    leader = mesh.leader()
    victim = mesh.followers()[0]
    session = mesh.submit(thought="?", branches=[{"ritual": "ponder", "task": "t"}] * 9, on=leader)["id"]
    victim_id = mesh.status(victim)["node_id"]

    def spread() -> list[int] | None:
        branches = mesh.branches(session, on=leader)
        return [branch["branch_index"] for branch in branches if branch["node_id"] == victim_id] or None

    return session, leader, victim, mesh.wait("the follower works", spread)


def attempts(mesh: VirtualMesh, session: str, on: str, indexes: list[int]) -> set[int]:
    branches = mesh.branches(session, on=on)
    return {branches[index]["attempt"] for index in indexes}


def test_the_work_of_a_process_that_ended_runs_elsewhere_within_two_seconds(mesh: VirtualMesh) -> None:
    session, leader, victim, held = work_everywhere(mesh)
    mesh.kill(victim)
    began = mesh.now
    mesh.wait("it runs elsewhere", lambda: attempts(mesh, session, leader, held) == {2})
    assert mesh.now - began < 2.0, "on the virtual clock"
    assert statuses(mesh, leader)[victim] == "dead"
    assert mesh.wait_session(session, on=leader)["status"] == "completed"


def test_the_work_of_a_node_that_fell_silent_runs_elsewhere_within_five(mesh: VirtualMesh) -> None:
    session, leader, victim, held = work_everywhere(mesh)
    mesh.partition([victim])
    began = mesh.now
    mesh.wait("it is suspect", lambda: statuses(mesh, leader)[victim] == "suspect")
    assert attempts(mesh, session, leader, held) == {1}, "a suspect keeps what it has"
    mesh.wait("it runs elsewhere", lambda: attempts(mesh, session, leader, held) == {2})
    assert mesh.now - began < 5.0, "on the virtual clock"
    mesh.heal()
    mesh.wait("it is back", lambda: statuses(mesh, leader)[victim] == "alive")
    assert mesh.wait_session(session, on=leader)["status"] == "completed"


def test_a_follower_that_is_stopped_for_three_seconds_keeps_its_work(mesh: VirtualMesh) -> None:
    session, leader, victim, held = work_everywhere(mesh)
    mesh.pause(victim)
    mesh.run_for(3.0)
    mesh.resume(victim)
    mesh.wait("it is alive", lambda: statuses(mesh, leader)[victim] == "alive")
    mesh.wait_session(session, on=leader)
    assert attempts(mesh, session, leader, held) == {1}


def test_a_link_that_only_the_leader_has_lost_is_no_death(mesh: VirtualMesh) -> None:
    session, leader, victim, held = work_everywhere(mesh)
    mesh.cut(leader, victim)
    mesh.cut(victim, leader)
    mesh.run_for(15.0)
    assert mesh.status(leader)["role"] == "leader"
    assert statuses(mesh, leader)[victim] == "suspect"
    assert attempts(mesh, session, leader, held) == {1}
    told = mesh.status(leader)
    assert any(victim in warning and "still hear" in warning for warning in told["warnings"]), told["warnings"]
    (row,) = [row for row in told["liveness"]["members"] if row["name"] == victim]
    assert len(row["heard_by"]) == 1
    mesh.run_for(LONG_S)
    mesh.heal()
    assert mesh.wait_session(session, on=leader)["status"] == "completed"
    assert attempts(mesh, session, leader, held) == {1}, "what it finished meanwhile is recorded"


def test_a_node_whose_link_comes_and_goes_rests_before_it_works_again(mesh: VirtualMesh) -> None:
    leader, victim = mesh.leader(), mesh.followers()[0]
    for _ in range(3):
        mesh.partition([victim])
        mesh.wait("it is gone", lambda: statuses(mesh, leader)[victim] == "dead")
        mesh.heal()
        mesh.wait("it is back", lambda: statuses(mesh, leader)[victim] == "alive")

    def rest_s() -> float:
        (row,) = [row for row in mesh.status(leader)["liveness"]["members"] if row["name"] == victim]
        return float(row["rests_s"])

    assert rest_s() > 0
    session = mesh.submit(thought="?", branches=[{"ritual": "ponder", "task": "t"}] * 9, on=leader)["id"]
    mesh.run_for(1.0)
    victim_id = mesh.status(victim)["node_id"]
    assert victim_id not in {branch["node_id"] for branch in mesh.branches(session, on=leader)}
    mesh.wait("it has rested", lambda: rest_s() == 0, 120)
    mesh.run_for(0.1)  # what is shown is rounded
    session = mesh.submit(thought="?", branches=[{"ritual": "ponder", "task": "t"}] * 9, on=leader)["id"]
    mesh.run_for(1.0)
    assert victim_id in {branch["node_id"] for branch in mesh.branches(session, on=leader)}
