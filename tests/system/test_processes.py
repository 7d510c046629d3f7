"""What becomes of processes: of a second daemon, of workers, of one that is told to stop."""

from pathlib import Path

from node.testing import LocalMesh

WAITS = [{"ritual": "wait", "task": f"wait {i}", "parameters": {"seconds": 0.4}} for i in range(6)]


def test_second_daemon_on_the_same_data_directory_is_refused(mesh: LocalMesh) -> None:
    mesh.start()
    first = mesh["node-1"]
    process = first.process
    first.process = None
    first.start()
    assert first.process is not None
    assert first.process.wait(20) == 2
    assert str(process.pid) in first.log_text()
    first.process = process
    assert first.status() is not None


def test_workers_end_with_their_daemon(mesh: LocalMesh) -> None:
    leader = mesh.start()
    session = mesh.submit(thought="x", branches=WAITS)
    mesh.wait_session(session["id"])
    daemon = mesh[leader]
    assert daemon.process is not None
    pid = daemon.process.pid
    children = [int(w) for p in Path(f"/proc/{pid}/task").glob("*/children") for w in p.read_text().split()]
    assert children
    mesh.kill(leader)
    mesh.wait("the workers are gone", lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_a_daemon_that_is_told_to_stop_exits_cleanly(mesh: LocalMesh) -> None:
    leader = mesh.start()
    mesh.submit(thought="drain", branches=[{"ritual": "wait", "task": "x", "parameters": {"seconds": 8}}] * 6)
    assert mesh[leader].stop() == 0
