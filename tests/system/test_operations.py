"""What operators do, and what disks do: rolling restarts under load, a full disk, orders given twice."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.testing import LocalMesh
from tests.system.test_failures import check_recorded_once

DISK_MB = 48


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that can be filled."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    options = f"size={DISK_MB}m"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_one_full_disk_costs_no_session_and_heals_by_itself(tmp_path: Path, small_disk: Path) -> None:
    with LocalMesh(tmp_path / "mesh") as mesh:
        victim = mesh["node-3"]
        text = victim.config_path.read_text().replace(str(victim.directory / "data"), str(small_disk / "data"))
        victim.config_path.write_text(text)
        mesh.start()
        filler = small_disk / "filler"
        filler.write_bytes(bytes(1024))
        with filler.open("ab") as file:
            try:
                while True:
                    file.write(bytes(256 * 1024))
                    file.flush()
            except OSError:
                pass
        branches = [{"ritual": "echo", "task": "x", "attempts_max": 1}] * 30
        session = mesh.submit(thought="full", branches=branches, on="node-1")
        mesh.wait("the node says that its disk is full", lambda: "is full" in victim.log_text())
        # What the victim held when its disk filled up goes on elsewhere; what comes after goes elsewhere at once.
        after = mesh.submit(thought="after", branches=branches, on="node-1")
        assert mesh.wait_session(after["id"], on="node-1")["completed"] == 30
        filler.unlink()

        def is_caught_up() -> bool:
            answer = victim.call("GET", f"/v1/sessions/{after['id']}")
            return answer.status == 200 and answer.body["session"]["status"] == "completed"

        mesh.wait("the node has caught up", is_caught_up, 40)
        assert mesh.wait_session(session["id"], on="node-1")["failed"] == 0
        mesh.wait_ready()
