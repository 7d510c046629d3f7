"""Backup under load, restore into a new mesh, and one node that goes on after the others are lost for good."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from node.testing import Daemon, LocalMesh

BRANCHES = [{"ritual": "echo", "task": f"task {number}"} for number in range(10)]


def meshnode(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "node.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def meshnode_json(*arguments: object) -> Any:
    done = meshnode(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def everything(daemon: Daemon) -> dict[str, list[Any]]:
    """All sessions and insights, page by page."""
    found: dict[str, list[Any]] = {}
    for what in ("sessions", "insights"):
        rows, after = [], ""
        while True:
            page = daemon.call("GET", f"/v1/{what}?limit=100{after}").expect(200)
            rows += page[what]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        found[what] = rows
    return found


def run_sessions(mesh: LocalMesh, count: int) -> None:
    for session in [mesh.submit(thought="?", branches=BRANCHES) for _ in range(count)]:
        assert mesh.wait_session(session["id"])["status"] == "completed"


def join_as_new(mesh: LocalMesh, *names: str) -> None:
    """Machines whose data is gone join the mesh that goes on, and vote in it; it then survives the loss of one."""
    for name in names:
        shutil.move(mesh[name].directory / "data", mesh[name].directory / "former")
        mesh.restart(name)
    for name in names:
        standing = lambda name=name: ((mesh.status(name) or {}).get("membership") or {}).get("standing")  # noqa: E731
        mesh.wait(f"{name} votes", lambda standing=standing: standing() == "voter", 60)  # type: ignore[misc]
    mesh.wait_ready()


def test_backups_under_load_are_whole_and_the_restored_mesh_is_equal(mesh: LocalMesh, tmp_path: Path) -> None:
    mesh.start()
    stop = threading.Event()
    submitted = 0

    def load() -> None:
        nonlocal submitted
        daemon = Daemon("load", tmp_path, "127.0.0.1", mesh["node-1"].http_port, 0)
        while not stop.is_set():
            daemon.call("POST", "/v1/sessions", {"thought": "load", "branches": BRANCHES}).expect(201)
            submitted += 1
        daemon.kill()

    worker = threading.Thread(target=load)
    worker.start()
    try:
        mesh.wait("some sessions were submitted", lambda: submitted >= 5)
        indexes = []
        for daemon in mesh.daemons.values():
            before = submitted
            facts = meshnode_json("backup", tmp_path / f"{daemon.name}.backup", "--url", daemon.url)
            indexes.append(facts["index"])
            mesh.wait("submissions go on", lambda before=before: submitted > before)  # type: ignore[misc]
        assert sorted(set(indexes)) == indexes
    finally:
        stop.set()
        worker.join()
    for daemon in mesh.daemons.values():
        assert meshnode("backup", "--verify", tmp_path / f"{daemon.name}.backup").returncode == 0
    for session in everything(mesh["node-1"])["sessions"]:
        mesh.wait_session(session["id"])

    last = meshnode_json("backup", tmp_path / "last.backup", "--url", mesh["node-2"].url)
    again = meshnode_json("backup", tmp_path / "again.backup", "--url", mesh["node-3"].url)
    if last["index"] == again["index"]:
        assert last["digest"] == again["digest"]
    before_all = everything(mesh["node-2"])
    mesh.close()
    target = mesh["node-1"]
    shutil.move(target.directory / "data", target.directory / "away")
    restored = meshnode_json("--config", target.config_path, "restore", tmp_path / "last.backup")
    assert restored["backup"]["digest"] == last["digest"]
    assert restored["mesh_id"] != last["mesh_id"]
    mesh.restart(target.name)
    mesh.wait_ready()
    assert everything(target) == before_all
    run_sessions(mesh, 1)
    assert target.status()["mesh_id"] == restored["mesh_id"]
    join_as_new(mesh, "node-2", "node-3")
    mesh.kill(target.name)
    run_sessions(mesh, 1)
    assert {daemon.status()["mesh_id"] for daemon in mesh.running()} == {restored["mesh_id"]}


def test_what_ran_when_the_backup_was_taken_runs_again_in_the_restored_mesh(mesh: LocalMesh, tmp_path: Path) -> None:
    mesh.start()
    branches = [{"ritual": "wait", "task": f"task {number}", "parameters": {"seconds": 2}} for number in range(6)]
    session = mesh.submit(thought="long", branches=branches)
    mesh.wait("it runs", lambda: mesh.session(session["id"])["status"] == "processing")
    path = tmp_path / "one.backup"
    meshnode_json("backup", path, "--url", mesh["node-1"].url)
    mesh.close()
    target = mesh["node-2"]
    shutil.move(target.directory / "data", target.directory / "away")
    meshnode_json("--config", target.config_path, "restore", path)
    mesh.restart(target.name)
    assert mesh.wait_session(session["id"], on=target.name)["completed"] == len(branches)


def is_told_to_move(daemon: Daemon) -> bool:
    warnings = (daemon.status() or {}).get("warnings", ())
    return any("data directory must be moved away" in text for text in warnings)


def test_one_of_three_recovers_with_its_data(mesh: LocalMesh) -> None:
    mesh.start()
    run_sessions(mesh, 3)
    survivor, other, lost = mesh["node-1"], mesh["node-2"], mesh["node-3"]
    mesh.wait("peers are remembered", lambda: (survivor.directory / "data" / "peers").exists())
    before = everything(survivor)

    def recover(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return meshnode("--config", survivor.config_path, "recover", *arguments)

    refused = recover("--dry-run")
    assert refused.returncode == 1
    assert "in use by another meshnode" in refused.stderr
    lost.kill()
    survivor.stop()
    refused = recover("--yes")
    assert refused.returncode == 1
    assert "answers at" in refused.stdout
    assert "Start this node" in refused.stderr
    other.kill()
    dry = recover("--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "May be lost" in dry.stdout
    assert "nothing was changed" in dry.stdout
    asked = recover()
    assert asked.returncode == 2
    assert "nobody can be asked" in asked.stderr

    done = meshnode_json("--config", survivor.config_path, "recover", "--yes")
    assert done["last_index"] >= done["commit_index"] > 0
    assert (Path(done["copy"]) / "data.mdb").exists()
    mesh.restart(survivor.name)
    mesh.wait_ready()
    assert everything(survivor) == before
    run_sessions(mesh, 1)

    mesh.restart(other.name)
    for daemon in (survivor, other):
        mesh.wait("both sides say what to do", lambda daemon=daemon: "superseded_mesh" in daemon.log_text())  # type: ignore[misc]
        assert "move its data directory away" in daemon.log_text()
        mesh.wait("its status too", lambda daemon=daemon: is_told_to_move(daemon))  # type: ignore[misc]
    assert everything(survivor)["sessions"][0]["status"] == "completed"
    other.kill()
    survivor.kill()
    assert "one voter" in recover("--yes").stderr
    mesh.restart(survivor.name)
    join_as_new(mesh, other.name, lost.name)
    mesh.kill(survivor.name)
    run_sessions(mesh, 1)
