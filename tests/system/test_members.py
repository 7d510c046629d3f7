"""Who votes: a fourth node takes the place of a lost voter; operators change it; addresses do not matter."""

from pathlib import Path
from typing import Any

from node.testing import Daemon, LocalMesh

SETTINGS = {"mesh": {"voters_wanted": 3, "voter_grace_s": 2, "bootstrap_expect": 3}}


def membership(daemon: Daemon) -> dict[str, Any]:
    return (daemon.status() or {}).get("membership") or {}


def voters(daemon: Daemon) -> set[str]:
    return {voter["name"] for voter in (daemon.status() or {}).get("voters", [])}


def four(directory: Path) -> LocalMesh:
    """Three found the mesh; the fourth is started by the test."""
    return LocalMesh(directory, cores=4, zeroconf=False, with_seeds=True, settings=SETTINGS)


def start_three(mesh: LocalMesh) -> None:
    for name in ("node-1", "node-2", "node-3"):
        mesh[name].start()
    mesh.wait_ready()


def change(daemon: Daemon, member: str, **body: object) -> Any:
    return daemon.call("POST", f"/v1/members/{member}/change", body, timeout_s=30)


def test_a_standby_takes_the_place_of_a_lost_voter_and_the_mesh_survives_another_loss(tmp_path: Path) -> None:
    with four(tmp_path / "four") as mesh:
        start_three(mesh)
        mesh["node-4"].start()
        mesh.wait("node-4 stands by", lambda: membership(mesh["node-4"]).get("standing") == "standby", 60)
        lost = mesh.followers()[0]
        lost = "node-1" if lost == "node-4" else lost
        others = [mesh[name] for name in mesh.daemons if name != lost]
        mesh.kill(lost)
        mesh.wait("it is replaced", lambda: all(voters(one) == {o.name for o in others} for one in others), 60)
        actions = [action["kind"] for one in others for action in membership(one)["autopilot"]]
        assert actions == ["promote", "demote"]
        second = next(one for one in others if one.name != "node-4")
        mesh.kill(second.name)
        session = mesh.submit(thought="x", branches=[{"ritual": "echo", "task": "hello"}], on="node-4")
        assert mesh.wait_session(session["id"], on="node-4")["status"] == "completed"


def test_an_operator_removes_a_voter_and_it_says_so(tmp_path: Path) -> None:
    with four(tmp_path / "four") as mesh:
        start_three(mesh)
        asked = mesh["node-1"]

        def planned() -> Any:
            plan = change(asked, "node-2", action="remove", dry_run=True).expect(200)
            return plan if plan["before"]["healthy"] == 3 else None

        dry = mesh.wait("all have answered the new leader", planned)
        assert (dry["allowed"], dry["before"]["voters"], dry["after"]["voters"]) == (True, 3, 2)
        assert dry["after"]["survives"] == 0
        assert voters(asked) == {"node-1", "node-2", "node-3"}
        assert change(asked, "nobody", action="remove").status == 404
        assert change(asked, "node-4", action="promote").status == 404
        change(asked, "node-2", action="remove").expect(200)
        mesh.wait("two vote", lambda: voters(asked) == {"node-1", "node-3"})
        mesh.wait("it knows", lambda: membership(mesh["node-2"]).get("standing") == "removed")
        assert mesh["node-2"].call("GET", "/readyz").status == 503
        mesh.kill("node-2")
        mesh["node-2"].start()
        mesh.wait("it still knows", lambda: membership(mesh["node-2"]).get("standing") == "removed")
        assert voters(asked) == {"node-1", "node-3"}


def test_every_node_changes_its_address_at_the_same_time(tmp_path: Path) -> None:
    with LocalMesh(tmp_path / "moved", zeroconf=False, with_seeds=True) as mesh:
        mesh.start()
        session = mesh.submit(thought="x", branches=[{"ritual": "echo", "task": "hello"}])
        for daemon in mesh.daemons.values():
            daemon.stop()
        with LocalMesh(tmp_path / "ports") as other:  # other free ports
            for daemon, moved in zip(mesh.daemons.values(), other.daemons.values(), strict=True):
                daemon.mesh_port, daemon.http_port = moved.mesh_port, moved.http_port
        seeds = [f"127.0.0.1:{daemon.mesh_port}" for daemon in mesh.daemons.values()]
        for daemon in mesh.daemons.values():
            mesh.configure(daemon, 3, False, seeds, {})
        mesh.start()
        assert mesh.session(session["id"])["id"] == session["id"]
        again = mesh.submit(thought="y", branches=[{"ritual": "echo", "task": "hello"}])
        assert mesh.wait_session(again["id"])["status"] == "completed"
