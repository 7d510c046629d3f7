"""Data directories of every released version, opened by this one (`tests/data/README.md`)."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from consensus.state import queries
from consensus.state.apply import digest
from consensus.state.tables import recomputed_digest
from node.config import load
from node.testing import LocalMesh
from node.wiring import FoundingRecords, open_store

FROZEN = sorted(path for path in (Path(__file__).parents[1] / "data").iterdir() if path.is_dir())
KINDS = {"mesh": 3, "solo": 1}


@pytest.fixture(
    params=[(path, kind) for path in FROZEN for kind in KINDS], ids=lambda given: f"{given[0].name}-{given[1]}"
)
def thawed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LocalMesh, dict[str, Any]]:
    """A mesh, not started, whose daemons have copies of the frozen directories, and what is expected of each."""
    folder, kind = request.param
    mesh = LocalMesh(tmp_path / "live", KINDS[kind], name="frozen", zeroconf=False, with_seeds=True)
    with tarfile.open(folder / f"{kind}.tar.xz") as file:
        file.extractall(tmp_path, filter="data")
    for daemon in mesh.daemons.values():
        os.rename(tmp_path / kind / daemon.name, daemon.directory / "data")
    return mesh, json.loads((folder / "expected.json").read_text())[kind]


def test_what_was_stored_is_found(thawed: tuple[LocalMesh, dict[str, Any]]) -> None:
    mesh, expected = thawed
    for name, node in expected.items():
        store = open_store(load(mesh[name].config_path, {}))
        try:
            founding = FoundingRecords(store).load()
            assert founding is not None
            assert (founding.state, founding.mesh_id, list(founding.voters)) == (
                "founded", node["mesh_id"], node["voters"],
            )  # fmt: skip
            with store.read() as txn:
                assert digest(txn).hex() == node["digest"]
                assert recomputed_digest(txn) == digest(txn)
                assert {row.node_id: [row.name, row.status] for row in queries.members(txn)} == node["members"]
                found = {session.thought: session for session in queries.list_sessions(txn)}
                assert found.keys() == node["sessions"].keys()
                for thought, session in node["sessions"].items():
                    insight = queries.get_insight(txn, session["id"])
                    assert (found[thought].id, found[thought].status) == (session["id"], session["status"])
                    assert (found[thought].completed, found[thought].failed) == (
                        session["completed"],
                        session["failed"],
                    )
                    assert (None if insight is None else insight.synthesis) == session["synthesis"]
                assert (
                    len({number.index for number in queries.events_since(txn, 0, 0, 10_000)})
                    == (node["commands_with_events"])
                )
        finally:
            store.close()


def test_daemons_go_on_where_they_were(thawed: tuple[LocalMesh, dict[str, Any]]) -> None:
    mesh, expected = thawed
    with mesh:
        mesh.start()
        for name, node in expected.items():
            status = mesh[name].call("GET", "/status").expect(200)
            assert status["mesh_id"] == node["mesh_id"]
            for thought, session in node["sessions"].items():
                ended = mesh.wait_session(session["id"], on=name)
                if thought == "under way":
                    assert (ended["status"], ended["completed"]) == ("completed", 3)
                else:
                    assert (ended["status"], ended["completed"]) == (session["status"], session["completed"])
        more = mesh.submit(thought="afterwards", branches=[{"ritual": "echo", "task": "still here"}] * 3)
        assert mesh.wait_session(more["id"])["completed"] == 3
