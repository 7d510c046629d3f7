"""Addresses do not matter: every node may move at the same time."""

from pathlib import Path

from node.testing import LocalMesh


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
