"""Who votes: a fourth node takes the place of a lost voter; operators change it; Edge nodes never do."""

from typing import Any

import pytest

from node.testing import MeshUnderTest

pytestmark = pytest.mark.meshnode(mode="both")

SETTINGS = {"mesh": {"voters_wanted": 3, "voter_grace_s": 2}}
ECHO = [{"ritual": "echo", "task": "hello"}]


def membership(mesh: MeshUnderTest, name: str) -> dict[str, Any]:
    return (mesh.status(name) or {}).get("membership") or {}


def voters(mesh: MeshUnderTest, name: str) -> set[str]:
    return {voter["name"] for voter in (mesh.status(name) or {}).get("voters", [])}


def members(mesh: MeshUnderTest, name: str) -> dict[str, str]:
    return {row["name"]: row["status"] for row in (mesh.status(name) or {}).get("members", [])}


def wait_standby(mesh: MeshUnderTest) -> str:
    """The Core node that does not vote."""

    def standing_by() -> str | None:
        return next((name for name in mesh.nodes() if membership(mesh, name).get("standing") == "standby"), None)

    return mesh.wait("one node stands by", standing_by, 60)


def complete(mesh: MeshUnderTest, on: str) -> None:
    session = mesh.submit(thought="x", branches=ECHO, on=on)
    assert mesh.wait_session(session["id"], on=on)["status"] == "completed"


def change(mesh: MeshUnderTest, asked: str, member: str, **body: object) -> Any:
    return mesh.call(asked, "POST", f"/v1/members/{member}/change", body, timeout_s=30)


def test_a_standby_takes_the_place_of_a_lost_voter_and_the_mesh_survives_another_loss(mesh: MeshUnderTest) -> None:
    mesh.start(cores=4, settings=SETTINGS)
    standby = wait_standby(mesh)
    lost = next(name for name in mesh.followers() if name != standby)
    others = [name for name in mesh.nodes() if name != lost]
    mesh.kill(lost)
    mesh.wait("it is replaced", lambda: all(voters(mesh, name) == set(others) for name in others), 60)

    def actions() -> list[str]:
        return [action["kind"] for name in others for action in membership(mesh, name)["autopilot"]]

    mesh.wait("both changes are told", lambda: actions() == ["promote", "demote"])  # once they are committed
    mesh.kill(next(name for name in others if name != standby))
    complete(mesh, standby)


def test_an_operator_removes_a_voter_and_it_says_so(mesh: MeshUnderTest) -> None:
    mesh.start()
    asked, removed, third = mesh.nodes()

    def planned() -> Any:
        plan = change(mesh, asked, removed, action="remove", dry_run=True).expect(200)
        return plan if plan["before"]["healthy"] == 3 else None

    dry = mesh.wait("all have answered the new leader", planned)
    assert (dry["allowed"], dry["before"]["voters"], dry["after"]["voters"]) == (True, 3, 2)
    assert dry["after"]["survives"] == 0
    assert voters(mesh, asked) == {asked, removed, third}
    assert change(mesh, asked, "nobody", action="remove").status == 404
    change(mesh, asked, removed, action="remove").expect(200)
    mesh.wait("two vote", lambda: voters(mesh, asked) == {asked, third})
    mesh.wait("it knows", lambda: membership(mesh, removed).get("standing") == "removed")
    assert mesh.call(removed, "GET", "/readyz").status == 503
    mesh.kill(removed)
    mesh.restart(removed)
    mesh.wait("it still knows", lambda: membership(mesh, removed).get("standing") == "removed")
    assert voters(mesh, asked) == {asked, third}


def test_an_edge_reads_takes_in_and_executes_and_never_votes(mesh: MeshUnderTest) -> None:
    mesh.start(edges=2, settings={"mesh": {"voter_grace_s": 2}, "execution": {"slots": 1}})
    cores = {name for name in mesh.nodes() if name.startswith("core")}
    mesh.wait("it learns", lambda: membership(mesh, "edge-1").get("standing") == "standby")
    session = mesh.submit(thought="x", branches=ECHO * 20, on="edge-1")
    assert mesh.wait_session(session["id"], on="edge-2")["status"] == "completed"
    answer = mesh.call("edge-1", "GET", f"/v1/sessions/{session['id']}?level=linearizable").expect(200)
    assert answer["session"]["status"] == "completed"
    tiers = {row["name"]: row["tier"] for row in mesh.call("edge-1", "GET", "/v1/members").expect(200)["members"]}
    assert tiers == {name: name.partition("-")[0] for name in mesh.nodes()}
    mesh.kill(next(name for name in mesh.followers() if name in cores))
    mesh.wait("it counts as dead", lambda: "dead" in members(mesh, "edge-1").values())
    complete(mesh, "edge-2")
    assert voters(mesh, "edge-1") == cores
    refused = change(mesh, "edge-1", "edge-1", action="promote")
    assert (refused.status, refused.body["reason"]) == (409, "only_core")


def test_an_edge_without_any_core_says_so_and_answers(mesh: MeshUnderTest) -> None:
    mesh.start(edges=1)
    complete(mesh, "edge-1")
    cores = [name for name in mesh.nodes() if name.startswith("core")]
    for name in cores:
        mesh.stop(name)
    mesh.wait("it says so", lambda: (mesh.status("edge-1") or {}).get("leader") is None)
    assert any("no leader is known" in warning for warning in (mesh.status("edge-1") or {})["warnings"])
    listed = mesh.call("edge-1", "GET", "/v1/sessions").expect(200)["sessions"]
    assert [session["status"] for session in listed] == ["completed"]
    for name in cores:
        mesh.restart(name)
    assert mesh.wait_ready() in cores
