"""What operators do to a process: orders given twice."""

import signal

from node.testing import LocalMesh


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
