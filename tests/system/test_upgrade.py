"""A mesh that is upgraded node by node while it works, to a version that speaks more (`next_version.py`)."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus.state.versions import COMMAND_VERSION
from node.testing import Daemon, LocalMesh

THIS = ("-m", "node")
NEXT = ("-m", "tests.system.next_version")
FIRST = ("-m", "tests.system.first_version")


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[LocalMesh]:
    """Three daemons, not yet started, that hear of nobody else on this machine."""
    labels = {"node": {"labels": {"rack": "7"}}}
    with LocalMesh(tmp_path / "mesh", zeroconf=False, with_seeds=True, settings=labels) as mesh:
        yield mesh


def works(mesh: LocalMesh, but: Daemon | None = None) -> None:
    """On every node, whoever leads."""
    for daemon in mesh.running():
        if daemon is but:
            continue
        branches = [{"ritual": "echo", "task": f"{i}"} for i in range(3)]
        session = mesh.submit(thought="mixed", branches=branches, on=daemon.name)
        assert mesh.wait_session(session["id"], on=daemon.name)["completed"] == 3


def upgrade(mesh: LocalMesh, name: str, to: tuple[str, ...] = NEXT) -> None:
    assert mesh[name].stop() == 0
    mesh[name].program = to
    mesh.restart(name)
    mesh.wait_ready()


def last(daemon: Daemon, *events: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in daemon.log_text().splitlines() if line.startswith("{")]
    found = [line for line in lines if line["event"] in events]
    return found[-1] if found else {}


def rename(mesh: LocalMesh, name: str) -> dict[str, Any]:
    before = last(mesh[name], "rename_refused", "rename_applied")
    mesh[name].signal(signal.SIGUSR1)
    mesh.wait("the proposal has ended", lambda: last(mesh[name], "rename_refused", "rename_applied") != before)
    return last(mesh[name], "rename_refused", "rename_applied")


def names(daemon: Daemon) -> set[str]:
    return {row["name"] for row in daemon.call("GET", "/v1/members").expect(200)["members"]}


def test_versions_mix_and_what_is_new_waits_for_all(mesh: LocalMesh) -> None:
    mesh.start()
    upgrade(mesh, "node-3")
    works(mesh)
    document = mesh["node-1"].call("GET", "/status").expect(200)
    assert (document["versions"]["command_version"], document["versions"]["mesh_command_version"]) == (
        COMMAND_VERSION,
        COMMAND_VERSION,
    )
    assert {peer["protocol"] for peer in document["peers"]} == {document["versions"]["link_protocol"]}
    refused = rename(mesh, "node-3")
    assert refused["code"] == "newer_command"
    assert "node-1 (meshnode" in refused["reason"]
    assert "node-2 (meshnode" in refused["reason"]
    upgrade(mesh, "node-1")
    works(mesh)
    assert rename(mesh, "node-3")["code"] == "newer_command"
    upgrade(mesh, "node-2")
    done = rename(mesh, "node-3")
    assert done["event"] == "rename_applied", done
    for daemon in mesh.running():
        mesh.wait("everybody has applied it", lambda daemon=daemon: done["name"] in names(daemon))  # type: ignore[misc]
    document = mesh["node-1"].call("GET", "/status").expect(200)
    assert document["versions"]["mesh_command_version"] == COMMAND_VERSION + 1
    assert {peer["protocol"] for peer in document["peers"]} == {document["versions"]["link_protocol"]}
    works(mesh)


def test_three_versions_found_a_mesh_together(mesh: LocalMesh) -> None:
    for daemon, program in zip(mesh.daemons.values(), (FIRST, THIS, NEXT), strict=True):
        daemon.program = program
    leader = mesh.start()
    works(mesh)
    document = mesh["node-2"].call("GET", "/status").expect(200)
    assert document["versions"]["mesh_command_version"] == 1
    mesh.kill(leader)
    mesh.wait_ready()
    works(mesh)


def test_labels_wait_until_all_know_them_and_are_there_then(mesh: LocalMesh) -> None:
    for daemon in mesh.daemons.values():
        daemon.program = FIRST
    mesh.start()
    body = {"thought": "?", "branches": [{"ritual": "echo", "task": "t"}]}
    for name in ("node-3", "node-1"):
        upgrade(mesh, name, THIS)
        works(mesh)
        answer = mesh[name].call("POST", "/v1/sessions", {**body, "require": {"rack": "7"}})
        assert (answer.status, answer.body["code"]) == (409, "newer_command")
        assert labelled(mesh, name) == set()
        mesh.kill(name)
        mesh.restart(name)
        mesh.wait_ready()
        works(mesh)
    upgrade(mesh, "node-2", THIS)
    mesh.wait("all say their labels", lambda: labelled(mesh, "node-1") == set(mesh.daemons))
    for name in mesh.daemons:
        session = mesh.submit(body, require={"rack": "7", "name": name})
        assert mesh.wait_session(session["id"])["completed"] == 1
        assert mesh.holder(session["id"]) == name
    works(mesh)


def labelled(mesh: LocalMesh, on: str) -> set[str]:
    """Names of nodes that have the label, by what a dry run says of one that none has."""
    body = {"thought": "?", "branches": [{"ritual": "echo", "task": "t"}], "require": {"rack": "8"}}
    (placement,) = mesh[on].call("POST", "/v1/sessions?dry_run=1", body).expect(200)["placements"]
    return {row["name"] for row in placement["ruled_out"] if "rack = 7" in row["detail"]}


def test_an_old_node_stops_rather_than_pass_over_what_it_does_not_know(mesh: LocalMesh) -> None:
    for daemon in mesh.daemons.values():
        daemon.program = NEXT
    mesh.start()
    old = mesh[mesh.followers()[0]]
    assert old.stop() == 0
    other = mesh.followers()[0]
    assert rename(mesh, other)["event"] == "rename_applied"
    old.program = THIS
    for _ in range(2):  # again and again, as long as it is not upgraded
        old.start()
        mesh.wait("it says what to do", lambda: "upgrade this node" in str((old.status() or {}).get("warnings")))
        assert old.call("GET", "/readyz").status == 503
        mesh.wait("it has left its links", lambda: '"withdrawn"' in old.log_text())
        works(mesh, but=old)
        assert old.call("GET", "/v1/sessions").status == 200, "what it has applied can be read"
        assert old.stop() == 1
    old.program = NEXT
    old.start()
    mesh.wait_ready()
    mesh.wait("it has caught up", lambda: names(old) == names(mesh[other]))
    works(mesh)
    # A step back: its tables hold what the older version does not know, though its log has nothing new.
    assert old.stop() == 0
    old.program = THIS
    old.start()
    mesh.wait("it says what to do", lambda: "upgrade this node" in str((old.status() or {}).get("warnings")))
    works(mesh, but=old)
