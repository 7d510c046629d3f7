"""A node that drains, leaves and comes back: whole nodes on a virtual clock."""

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
    with VirtualMesh(seed=9) as mesh:
        yield mesh


def member(mesh: VirtualMesh, name: str, on: str) -> Any:
    members = mesh.call(on, "GET", "/v1/members").expect(200)["members"]
    return next(row for row in members if row["name"] == name)


def ask(mesh: VirtualMesh, on: str, name: str, **body: object) -> Any:
    return mesh.call(on, "POST", f"/v1/members/{name}/change", body)


def planned(mesh: VirtualMesh, leaver: str) -> Any:
    """What leaving would do, once the leader has heard of all that they are caught up."""

    def plan() -> Any:
        found = ask(mesh, leaver, leaver, action="leave", dry_run=True).expect(200)
        return found if found["quorum"]["before"]["healthy"] == 3 else None

    return mesh.wait("the leader hears all", plan)


def voters(mesh: VirtualMesh, on: str) -> set[str]:
    return {voter["name"] for voter in (mesh.status(on) or {}).get("voters", ())}


def submit(mesh: VirtualMesh, on: str, branches: int = 9) -> str:
    fields = [{"ritual": "ponder", "task": "t"}] * branches
    return str(mesh.submit(thought="?", branches=fields, on=on)["id"])


def test_a_leader_drains_in_the_middle_of_a_session_and_nothing_is_lost(mesh: VirtualMesh) -> None:
    mesh.start(rituals=[ponder])
    leader, other = mesh.leader(), mesh.followers()[0]
    session = submit(mesh, leader)
    mesh.wait("the leader works", lambda: member(mesh, leader, leader)["running"])
    plan = ask(mesh, other, leader, action="drain", dry_run=True).expect(200)
    assert (plan["allowed"], plan["running"] > 0) == (True, True)
    assert not member(mesh, leader, other)["is_draining"]
    ask(mesh, other, leader, action="drain", grace_s=300).expect(200)
    assert member(mesh, leader, other)["draining"] == "draining"
    mesh.wait("another leads", lambda: (mesh.status(other)["leader"] or {}).get("name") not in (leader, None))
    more = submit(mesh, other)
    mesh.run_for(1.0)
    own = mesh.status(leader)["node_id"]
    assert own not in {branch["node_id"] for branch in mesh.branches(more, on=other)}
    for each in (session, more):
        assert mesh.wait_session(each, on=other)["status"] == "completed"
    assert {branch["attempt"] for branch in mesh.branches(session, on=other)} == {1}, "it finished what it had"
    assert member(mesh, leader, other)["draining"] == "drained"
    mesh.kill(mesh.leader())
    mesh.wait("it is drained under the next leader too", lambda: member(mesh, leader, leader)["draining"] == "drained")


def test_what_is_not_finished_in_time_is_handed_back_and_undraining_ends_it(mesh: VirtualMesh) -> None:
    mesh.start(rituals=[ponder])
    leader, drained = mesh.leader(), mesh.followers()[0]
    session = submit(mesh, leader)
    mesh.wait("it works", lambda: member(mesh, drained, leader)["running"])
    ask(mesh, leader, drained, action="drain", grace_s=2).expect(200)
    mesh.wait("it is drained", lambda: member(mesh, drained, leader)["draining"] == "drained", 10)
    again = [branch for branch in mesh.branches(session, on=leader) if branch["attempt"] == 2]
    assert again
    assert all(branch["failures"] == 0 for branch in again), "handed back is not failed"
    tried = mesh.branch(session, again[0]["branch_index"], on=leader)["attempts"]
    assert tried[0]["failure"]["code"] == "node_draining"
    ask(mesh, leader, drained, action="undrain").expect(200)
    submit(mesh, leader, 30)
    mesh.wait("it works again", lambda: member(mesh, drained, leader)["running"])
    assert mesh.wait_session(session, on=leader)["status"] == "completed"


def test_a_node_leaves_and_comes_back_by_being_started(mesh: VirtualMesh) -> None:
    mesh.start(rituals=[ponder], settings={"mesh": {"voters_wanted": 3}})
    leader = mesh.leader()
    leaver, other = mesh.followers()
    session = submit(mesh, leader)
    plan = planned(mesh, leaver)
    assert (plan["quorum"]["before"]["voters"], plan["quorum"]["after"]["voters"]) == (3, 2)
    ask(mesh, leaver, leaver, action="leave", grace_s=0).expect(200)
    mesh.wait("it is let go", lambda: voters(mesh, leader) == {leader, other})
    assert member(mesh, leaver, leader)["status"] == "left"
    assert member(mesh, leaver, leader)["standing"] == "left"
    assert member(mesh, leaver, leaver)["standing"] == "left", "it knows itself"
    ask(mesh, leader, leaver, action="leave").expect(200)
    assert ask(mesh, leader, leaver, action="drain").expect(409)["reason"] == "has_left"
    mesh.run_for(20.0)
    assert voters(mesh, leader) == {leader, other}, "it does not come back by itself"
    assert mesh.call(leaver, "GET", "/readyz").status == 503
    assert mesh.wait_session(session, on=leader)["status"] == "completed"
    mesh.stop(leaver)
    assert member(mesh, leaver, leader)["status"] == "left", "its farewell did not bring it back"
    second = submit(mesh, leader)
    mesh.restart(leaver)
    mesh.wait("it votes again", lambda: voters(mesh, leader) == {leader, leaver, other}, 60)
    mesh.wait("it is alive", lambda: member(mesh, leaver, leaver)["status"] == "alive")
    assert not member(mesh, leaver, leader)["is_draining"]
    assert mesh.wait_session(second, on=leaver)["status"] == "completed"
    mesh.kill(other)
    third = submit(mesh, leaver)
    assert mesh.wait_session(third, on=leaver)["status"] == "completed", "its vote counts"


def test_the_leader_leaves(mesh: VirtualMesh) -> None:
    mesh.start(rituals=[ponder])
    leader = mesh.leader()
    others = mesh.followers()
    planned(mesh, leader)
    ask(mesh, leader, leader, action="leave").expect(200)
    mesh.wait("it is let go", lambda: all(voters(mesh, one) == set(others) for one in others))
    session = submit(mesh, others[0])
    assert mesh.wait_session(session, on=others[0])["status"] == "completed"


def test_a_standby_votes_in_the_place_of_who_leaves(mesh: VirtualMesh) -> None:
    mesh.start(cores=4, rituals=[ponder])
    leader = mesh.leader()
    mesh.wait("three vote", lambda: len(voters(mesh, leader)) == 3)
    (standby,) = set(mesh.nodes()) - voters(mesh, leader)
    leaver = next(name for name in mesh.followers() if name != standby)
    planned(mesh, leaver)
    ask(mesh, standby, leaver, action="leave").expect(200)
    mesh.wait("it is let go", lambda: voters(mesh, leader) == set(mesh.nodes()) - {leaver})
    actions = [action["kind"] for action in mesh.status(leader)["membership"]["autopilot"]][-2:]
    assert actions == ["promote", "leave"], "never one vote fewer"


@pytest.mark.parametrize("name", ["edge-1", "leaf-1"])
def test_an_edge_and_a_leaf_leave_and_come_back_too(mesh: VirtualMesh, name: str) -> None:
    mesh.start(cores=3, edges=1, leaves=1, rituals=[ponder])
    leader = mesh.leader()
    session = submit(mesh, leader, 30)
    mesh.wait("it works", lambda: member(mesh, name, leader)["running"])
    ask(mesh, leader, name, action="leave", grace_s=1).expect(200)
    mesh.wait("it has left", lambda: member(mesh, name, leader)["standing"] == "left")
    mesh.run_for(10.0)
    assert member(mesh, name, leader)["standing"] == "left", "it does not come back by itself"
    assert mesh.wait_session(session, on=leader)["status"] == "completed"
    mesh.stop(name)
    assert member(mesh, name, leader)["status"] == "left"
    mesh.restart(name)
    mesh.wait("it is back", lambda: member(mesh, name, leader)["status"] == "alive")
    mesh.wait("it serves", lambda: mesh.call(name, "GET", "/readyz").status == 200)


def test_leaf_nodes_of_who_drains_hang_on_another(mesh: VirtualMesh) -> None:
    mesh.start(cores=3, leaves=2, rituals=[ponder])

    def parents() -> dict[str, str]:
        found = {leaf: ((mesh.status(leaf) or {}).get("parent") or {}).get("name") for leaf in ("leaf-1", "leaf-2")}
        return {leaf: name for leaf, name in found.items() if name}

    mesh.wait("both hang on somebody", lambda: len(parents()) == 2)
    parent = parents()["leaf-1"]
    on = next(name for name in ("core-1", "core-2", "core-3") if name != parent)
    session = submit(mesh, on, 60)
    mesh.wait("the leaf works", lambda: member(mesh, "leaf-1", on)["running"])
    ask(mesh, on, parent, action="leave", grace_s=300).expect(200)
    mesh.wait("they have moved", lambda: len(parents()) == 2 and parent not in parents().values())
    assert mesh.wait_session(session, on=on)["status"] == "completed"
    assert {branch["attempt"] for branch in mesh.branches(session, on=on)} == {1}
    mesh.wait("it has left", lambda: member(mesh, parent, on)["standing"] == "left")


def test_nobody_leaves_whose_vote_is_needed(mesh: VirtualMesh) -> None:
    mesh.start(rituals=[ponder])
    leader, other = mesh.leader(), mesh.followers()[0]
    mesh.kill(mesh.followers()[1])
    mesh.wait("it is missed", lambda: member(mesh, "core-1", leader) and len(mesh.running()) == 2)
    mesh.run_for(5.0)
    plan = ask(mesh, leader, other, action="leave", dry_run=True).expect(200)
    assert (plan["allowed"], plan["refusal"]["code"]) == (False, "quorum_lost")
    assert ask(mesh, leader, other, action="leave").expect(409)["reason"] == "quorum_lost"
    assert not member(mesh, other, leader)["is_leaving"]


def test_a_lone_node_does_not_leave(mesh: VirtualMesh) -> None:
    mesh.start(cores=1, rituals=[ponder])
    name = mesh.leader()
    assert ask(mesh, name, name, action="leave").expect(409)["reason"] == "last_voter"
    ask(mesh, name, name, action="drain", grace_s=-1).expect(400)
    ask(mesh, name, "nobody", action="drain").expect(404)


def test_a_leaf_that_has_left_says_so_and_stays_out_until_it_is_started(mesh: VirtualMesh) -> None:
    mesh.start(leaves=1, rituals=[ponder])
    mesh.wait("it works under a parent", lambda: (mesh.status("leaf-1") or {}).get("ready"))
    core, parent = mesh.leader(), str((mesh.status("leaf-1") or {})["parent"]["name"])
    ask(mesh, core, "leaf-1", action="leave", grace_s=0).expect(200)
    mesh.wait("it has left", lambda: member(mesh, "leaf-1", core)["status"] == "left")
    mesh.wait("it knows", lambda: not (mesh.status("leaf-1") or {"ready": True})["ready"])
    assert "has left" in " ".join((mesh.status("leaf-1") or {})["warnings"])
    mesh.kill(parent)
    mesh.wait("it has another parent", lambda: (mesh.status("leaf-1") or {}).get("parents_found") == 2, 60)
    mesh.run_for(5.0)
    assert member(mesh, "leaf-1", mesh.followers()[0])["status"] == "left", "another parent does not bring it back"
    mesh.stop("leaf-1")
    assert member(mesh, "leaf-1", mesh.followers()[0])["status"] == "left", "nor does its farewell"
    mesh.restart("leaf-1")
    mesh.wait("it is back", lambda: (mesh.status("leaf-1") or {}).get("ready"))
    assert member(mesh, "leaf-1", mesh.followers()[0])["status"] == "alive"
