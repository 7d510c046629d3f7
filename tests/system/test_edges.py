"""Edge nodes: full replicas that do not vote."""

from pathlib import Path
from typing import Any

from node.testing import Daemon, LocalMesh

BRANCHES = [{"ritual": "echo", "task": "hello"}]


def test_an_edge_reads_takes_in_and_executes_and_never_votes(tmp_path: Path) -> None:
    settings = {"mesh": {"voter_grace_s": 2}, "execution": {"slots": 1}}
    with LocalMesh(tmp_path / "mesh", edges=2, zeroconf=False, with_seeds=True, settings=settings) as mesh:
        mesh.start()
        edge = mesh["edge-1"]
        mesh.wait("it learns", lambda: standing(edge) == "standby")
        session = mesh.submit(thought="x", branches=BRANCHES * 20, on="edge-1")
        assert mesh.wait_session(session["id"], on="edge-2")["status"] == "completed"
        answer = edge.call("GET", f"/v1/sessions/{session['id']}?level=linearizable").expect(200)
        assert answer["session"]["status"] == "completed"
        tiers = {row["name"]: row["tier"] for row in edge.call("GET", "/v1/members").expect(200)["members"]}
        assert tiers == {**dict.fromkeys(["node-1", "node-2", "node-3"], "core"), "edge-1": "edge", "edge-2": "edge"}
        lost = mesh.followers()[0]
        lost = "node-1" if lost.startswith("edge") else lost
        mesh.kill(lost)
        mesh.wait("it counts as dead", lambda: "dead" in members(edge).values())
        session = mesh.submit(thought="y", branches=BRANCHES, on="edge-2")
        assert mesh.wait_session(session["id"], on="edge-2")["status"] == "completed"
        assert {voter["name"] for voter in (edge.status() or {})["voters"]} == {"node-1", "node-2", "node-3"}
        refused = edge.call("POST", "/v1/members/edge-1/change", {"action": "promote"})
        assert (refused.status, refused.body["reason"]) == (409, "only_core")


def test_an_edge_without_any_core_says_so_answers_and_delivers_later(tmp_path: Path) -> None:
    with LocalMesh(tmp_path / "mesh", edges=1, zeroconf=False, with_seeds=True) as mesh:
        mesh.start()
        edge = mesh["edge-1"]
        mesh.wait("it learns", lambda: standing(edge) == "standby")
        for core in mesh.daemons.values():
            if core is not edge:
                core.stop()
        mesh.wait("it says so", lambda: (edge.status() or {}).get("leader") is None)
        assert any("no leader is known" in warning for warning in (edge.status() or {})["warnings"])
        for name in ("node-1", "node-2", "node-3"):
            mesh.restart(name)
        mesh.wait_ready()


def standing(daemon: Daemon) -> Any:
    return ((daemon.status() or {}).get("membership") or {}).get("standing")


def members(daemon: Daemon) -> dict[str, str]:
    return {row["name"]: row["status"] for row in (daemon.status() or {}).get("members", [])}
