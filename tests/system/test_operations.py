"""What operators do: rolling restarts under load, orders given twice."""

import signal
from pathlib import Path

from node.testing import LocalMesh
from tests.harness.test_failures import check_recorded_once


def test_rolling_restart_under_load_fails_nothing(tmp_path: Path) -> None:
    with LocalMesh(tmp_path / "mesh", settings={"execution": {"async_slots": 4}}) as mesh:
        mesh.start()
        seconds = [0.3, 3.0, 0.3, 0.3]
        branches = [
            {"ritual": "wait", "task": f"wait {i}", "parameters": {"seconds": seconds[i % 4]}, "attempts_max": 1}
            for i in range(48)
        ]
        session = mesh.submit(thought="roll", branches=branches)
        for name in list(mesh.daemons):
            assert mesh[name].stop() == 0
            mesh.restart(name)
            mesh.wait_ready()
        ended = mesh.wait_session(session["id"])
        assert (ended["completed"], ended["failed"]) == (48, 0)
        check_recorded_once(mesh, session["id"], 48)


def test_asked_twice_to_stop_it_ends_at_once(mesh: LocalMesh) -> None:
    mesh.start()
    branches = [{"ritual": "wait", "task": "x", "parameters": {"seconds": 30}}] * 3
    session = mesh.submit(thought="hurry", branches=branches)
    mesh.wait("all run", lambda: mesh.session(session["id"])["processing"] == 3)
    daemon = mesh[mesh.followers()[0]]
    assert daemon.process is not None
    daemon.signal(signal.SIGTERM)
    mesh.wait("it says that it stops", lambda: '"stopping"' in daemon.log_text())
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(10) == 1
    mesh.restart(daemon.name)
    mesh.wait_ready()
