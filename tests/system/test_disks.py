"""What disks do: get full, fail to sync, become read-only, lose the end of a file."""

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.testing import Daemon, LocalMesh
from tests import sabotage

DISK_MB = 160
MIB = 1 << 20
REPOSITORY = Path(__file__).resolve().parents[2]
ECHO = {"thought": "?", "branches": [{"ritual": "echo", "task": "x", "attempts_max": 1}] * 10}
LONG = {"thought": "long", "branches": [{"ritual": "wait", "task": "x", "parameters": {"seconds": 2}}] * 6}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that can be filled."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_mesh(tmp_path: Path, small_disk: Path) -> Iterator[LocalMesh]:
    """Three running nodes; the data of node-3 is on the small disk."""
    with LocalMesh(tmp_path / "mesh") as mesh:
        victim = mesh["node-3"]
        text = victim.config_path.read_text().replace(str(victim.directory / "data"), str(small_disk / "data"))
        victim.config_path.write_text(text)
        mesh.start()
        yield mesh


def leave_free(disk: Path, free_bytes: int) -> None:
    """Fills the disk with a file until so much is free."""
    found = os.statvfs(disk)
    with (disk / "filler").open("ab") as file:
        length = file.tell() + found.f_bavail * found.f_frsize - free_bytes
        os.posix_fallocate(file.fileno(), 0, length)


def make_room(disk: Path) -> None:
    (disk / "filler").unlink()


def space_of(daemon: Daemon) -> str:
    status = daemon.status()
    return "" if status is None else str(status["storage"]["space"])


def code_of(daemon: Daemon, path: str, body: dict[str, Any]) -> tuple[int, str]:
    answer = daemon.call("POST", path, body)
    return answer.status, answer.body.get("code", "")


def test_a_disk_that_fills_up_refuses_new_work_first_and_heals_by_itself(
    small_mesh: LocalMesh, small_disk: Path
) -> None:
    mesh, victim = small_mesh, small_mesh["node-3"]
    done = mesh.submit(ECHO)
    mesh.wait_session(done["id"], on=victim.name)
    running = mesh.submit(LONG, on=victim.name)

    leave_free(small_disk, 40 * MIB)
    mesh.wait("the disk is low", lambda: space_of(victim) == "low")
    assert code_of(victim, "/v1/sessions", ECHO) == (507, "disk_low")
    mesh.wait("another node leads", lambda: mesh.leader() != victim.name)
    other = mesh.submit(ECHO, on="node-1")
    assert mesh.wait_session(other["id"], on="node-1")["completed"] == 10
    assert mesh.wait_session(running["id"], on=victim.name)["completed"] == 6

    leave_free(small_disk, 4 * MIB)
    mesh.wait("the disk is full", lambda: space_of(victim) == "full")
    assert code_of(victim, "/v1/sessions", ECHO) == (507, "disk_full")
    assert code_of(victim, f"/v1/sessions/{done['id']}/cancel", {}) == (507, "disk_full")
    assert victim.call("GET", f"/v1/sessions/{done['id']}").expect(200)["session"]["status"] == "completed"
    ready = victim.call("GET", "/readyz").expect(503)
    assert "disk" in [check["name"] for check in ready["checks"] if not check["ok"]]
    assert victim.call("GET", "/healthz").status == 200
    after = mesh.submit(ECHO, on="node-1")
    assert mesh.wait_session(after["id"], on="node-1")["completed"] == 10

    make_room(small_disk)
    mesh.wait("there is room", lambda: space_of(victim) == "ok")
    mesh.wait_ready()
    assert mesh.wait_session(mesh.submit(ECHO, on=victim.name)["id"], on=victim.name)["completed"] == 10
    assert victim.call("GET", f"/v1/sessions/{after['id']}").expect(200)["session"]["status"] == "completed"


def test_one_full_disk_costs_no_session(small_mesh: LocalMesh, small_disk: Path) -> None:
    """Filled up in mid-session, without a warning time."""
    mesh, victim = small_mesh, small_mesh["node-3"]
    leave_free(small_disk, MIB // 4)
    branches = [{"ritual": "echo", "task": "x", "attempts_max": 1}] * 30

    def submitted() -> Any:
        answer = mesh["node-1"].call("POST", "/v1/sessions", {"thought": "full", "branches": branches})
        return answer.body["session"] if answer.status == 201 else None  # the full node may have led

    session = mesh.wait("a session is taken", submitted)
    mesh.wait("the node says that its disk is full", lambda: '"disk_full"' in victim.log_text())
    # What the victim held when its disk filled up goes on elsewhere; what comes after goes elsewhere at once.
    after = mesh.wait("a session is taken", submitted)
    assert mesh.wait_session(after["id"], on="node-1")["completed"] == 30
    make_room(small_disk)

    def is_caught_up() -> bool:
        answer = victim.call("GET", f"/v1/sessions/{after['id']}")
        return answer.status == 200 and answer.body["session"]["status"] == "completed"

    mesh.wait("the node has caught up", is_caught_up, 40)
    assert mesh.wait_session(session["id"], on="node-1")["failed"] == 0
    mesh.wait_ready()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2], ids=["sync fails", "read-only"])
def test_a_disk_that_fails_stops_the_replica_and_leaves_the_reading(tmp_path: Path, number: signal.Signals) -> None:
    if not sabotage.is_possible():
        pytest.skip("system calls can be refused on Linux on x86-64 and arm64 only")
    path = f"{REPOSITORY / 'tests' / 'sabotage' / 'onsignal'}:{REPOSITORY}"
    with LocalMesh(tmp_path / "mesh", environment={"PYTHONPATH": path}) as mesh:
        mesh.start()
        done = mesh.submit(ECHO)
        mesh.wait_session(done["id"])
        victim = mesh[mesh.leader()]
        others = [daemon.name for daemon in mesh.daemons.values() if daemon is not victim]
        running = mesh.submit(LONG, on=victim.name)
        victim.signal(number)
        mesh.wait("it withdraws", lambda: '"withdrawn"' in victim.log_text())

        def other_leads() -> bool:
            leader = (mesh[others[0]].status() or {}).get("leader") or {}
            return leader.get("name") in others

        mesh.wait("another node leads", other_leads)
        assert mesh.wait_session(running["id"], on=others[0])["completed"] == 6
        read = victim.call("GET", f"/v1/sessions/{done['id']}").expect(200)
        assert read["session"]["status"] == "completed"
        assert "writing failed" in read["replica_stopped"]
        assert victim.call("GET", f"/v1/sessions/{done['id']}?level=linearizable").body["code"] == "replica_stopped"
        assert code_of(victim, "/v1/sessions", ECHO) == (503, "replica_stopped")
        for probe in ("/healthz", "/readyz"):
            checks = victim.call("GET", probe).expect(503)["checks"]
            assert {check["name"]: check["ok"] for check in checks}["replica"] is False
        assert any("writing failed" in warning for warning in (victim.status() or {})["warnings"])
        assert victim.stop() == 1  # a person must look at it, though it stopped as asked
        mesh.restart(victim.name)  # on a sound disk
        mesh.wait_ready()
        after = mesh.submit(ECHO, on=victim.name)
        assert mesh.wait_session(after["id"], on=victim.name)["completed"] == 10


def refuses_to_start(daemon: Daemon) -> str:
    """What it says; its exit code is that of a node that cannot start."""
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(30) == 2
    return daemon.log_text().splitlines()[-1]


def test_a_torn_file_is_refused_with_what_to_do(mesh: LocalMesh) -> None:
    mesh.start()
    mesh.wait_session(mesh.submit(ECHO)["id"])
    cut, overwritten = mesh["node-1"], mesh["node-2"]
    for daemon in (cut, overwritten):
        daemon.kill()
    path = cut.directory / "data" / "consensus" / "data.mdb"
    whole = path.read_bytes()
    path.write_bytes(whole[: 64 * 1024])
    said = refuses_to_start(cut)
    assert "is cut off" in said
    assert "Restore this node from a backup" in said
    path.write_bytes(whole)
    with (overwritten.directory / "data" / "consensus" / "data.mdb").open("r+b") as file:
        file.write(os.urandom(8192))
    assert "first pages are damaged" in refuses_to_start(overwritten)
    overwritten.directory.joinpath("data", "consensus").rename(overwritten.directory / "elsewhere")
    assert "is missing, though it was here" in refuses_to_start(overwritten)
    mesh.restart(cut.name)  # what was put back is sound
    mesh.wait("two of three go on", lambda: cut.status() and (cut.status() or {}).get("leader"))
    assert mesh.wait_session(mesh.submit(ECHO, on=cut.name)["id"], on=cut.name)["completed"] == 10


def test_a_read_only_disk_is_refused_with_what_to_do(small_mesh: LocalMesh, small_disk: Path) -> None:
    victim = small_mesh["node-3"]
    assert victim.stop() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "the file system is read-only" in refuses_to_start(victim)
    assert os.strerror(errno.EROFS) not in victim.log_text()
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    small_mesh.restart(victim.name)
    small_mesh.wait_ready()
