"""Bits that flip on a disk: the node notices, withdraws itself, and gets its data anew from the others."""

import uuid
from pathlib import Path

import pytest

from node.testing import Daemon, LocalMesh

PATIENCE_S = 100.0
"""Processes are started for this, on machines that may be busy."""


def flip(daemon: Daemon, text: bytes) -> int:
    """One bit in every copy of this text in the data file; how many there were."""
    path = daemon.directory / "data" / "consensus" / "data.mdb"
    data = bytearray(path.read_bytes())
    count = start = 0
    while (found := data.find(text, start)) >= 0:
        data[found + len(text) // 2] ^= 1
        count, start = count + 1, found + 1
    path.write_bytes(data)
    return count


def thought_of(daemon: Daemon, session_id: str) -> tuple[int, str | None]:
    answer = daemon.call("GET", f"/v1/sessions/{session_id}")
    return answer.status, answer.body.get("session", answer.body).get("thought")


@pytest.mark.timeout(400)
def test_bits_that_flip_in_a_data_file(mesh: LocalMesh) -> None:
    mesh.start()
    words = [f"why is {uuid.uuid4().hex} so" for _ in range(20)]
    sessions = [mesh.submit(thought=word, branches=[{"ritual": "echo", "task": "x"}]) for word in words]
    for session in sessions:
        mesh.wait_session(session["id"])
    name = mesh.followers()[0]
    damaged = mesh[name]
    assert damaged.stop() == 0
    assert flip(damaged, words[7].encode()) >= 1
    mesh.restart(name)
    reason = mesh.wait("it says so", lambda: (damaged.status() or {}).get("quarantine"), PATIENCE_S)
    assert "not what was written" in reason
    mesh.wait("it withdraws", lambda: "data_damaged" in damaged.log_text(), PATIENCE_S)
    mesh.wait("it is repaired", lambda: "snapshot_installed" in damaged.log_text(), PATIENCE_S)
    mesh.wait_ready()
    assert thought_of(damaged, sessions[7]["id"]) == (200, words[7])
    status = damaged.status()
    assert status is not None
    assert status["quarantine"] is None
    assert status["snapshot"] is None
    assert damaged.stop() == 0
    mesh.restart(name)
    mesh.wait_ready()
    checked = lambda: (damaged.status() or {}).get("rows_checked_s_ago") is not None  # noqa: E731
    mesh.wait("its rows are checked", checked, PATIENCE_S)
    more = mesh.submit(thought="afterwards", branches=[{"ritual": "echo", "task": "x"}], on=name)
    mesh.wait_session(more["id"], on=name)


@pytest.mark.timeout(400)
def test_the_only_core_node_is_repaired_by_an_edge(tmp_path: Path) -> None:
    with LocalMesh(tmp_path / "mesh", 1, edges=1, zeroconf=False, with_seeds=True) as mesh:
        mesh.start()
        word = f"why is {uuid.uuid4().hex} so"
        session = mesh.submit(thought=word, branches=[{"ritual": "echo", "task": "x"}])
        mesh.wait_session(session["id"], on="edge-1")
        core = mesh["node-1"]
        assert core.stop() == 0
        assert flip(core, word.encode()) >= 1
        mesh.restart(core.name)
        mesh.wait("it is repaired", lambda: "snapshot_installed" in core.log_text(), PATIENCE_S)
        mesh.wait("it answers", lambda: thought_of(core, session["id"]) == (200, word), PATIENCE_S)
        mesh.wait_session(mesh.submit(thought="afterwards", branches=[{"ritual": "echo", "task": "x"}])["id"])
