"""Data directories as this version writes them: `scripts/freeze` runs this.

Starts a mesh of three daemons and a mesh of one, submits fixed sessions (done, failed, cancelled, one still running),
kills every daemon with SIGKILL and keeps their data directories, compacted, in `mesh.tar.xz` and `solo.tar.xz`, with
what they must be found to hold in `expected.json`. Run it once for every version that is released; a frozen directory
is never made again. `tests/system/test_frozen_data.py` opens all of them.
"""

import argparse
import json
import shutil
import sys
import tarfile
import tempfile
import uuid
from pathlib import Path

from consensus.journal import TABLES as JOURNAL_TABLES
from consensus.journal import Journal
from consensus.limits import RaftSettings
from consensus.state import queries, tables
from consensus.state.apply import digest
from node import __version__
from node.testing import LocalMesh
from node.wiring import FOUNDING_TABLE, FoundingRecords
from storage.environment import Environment

SESSIONS: dict[str, dict[str, object]] = {
    "echoed": {"branches": [{"ritual": "echo", "task": text} for text in ("one", "two", "three")]},
    "simulated": {"branches": [{"ritual": "debt_scenario", "task": f"mix {i}", "seed": i} for i in range(4)]},
    "late": {
        "branches": [
            {"ritual": "echo", "task": "in time"},
            {
                "ritual": "wait",
                "task": "never in time",
                "parameters": {"seconds": 60},
                "timeout_s": 0.2,
                "attempts_max": 2,
            },
        ]
    },
    "cancelled": {"branches": [{"ritual": "wait", "task": "cancelled", "parameters": {"seconds": 60}}]},
    "under way": {
        "branches": [{"ritual": "wait", "task": f"wait {i}", "parameters": {"seconds": 3}} for i in range(3)]
    },
}


def session_id(thought: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"meshnode:frozen:{thought}"))


def main() -> int:
    parser = argparse.ArgumentParser(
        "scripts/freeze", description="Freezes data directories as this version writes them."
    )
    parser.add_argument("folder", type=Path, help="where to keep them, for example tests/data/0.1.0; must not exist")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True)
    expected: dict[str, object] = {"software": __version__}
    for name, cores in (("mesh", 3), ("solo", 1)):
        with tempfile.TemporaryDirectory(prefix="meshnode-freeze-") as made:
            expected[name] = freeze(Path(made), name, cores, folder / f"{name}.tar.xz")
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    for path in sorted(folder.iterdir()):
        print(f"{path}: {path.stat().st_size} bytes")
    return 0


def freeze(made: Path, name: str, cores: int, archive: Path) -> dict[str, dict[str, object]]:
    live, kept = made / "live", made / "kept"
    with LocalMesh(live, cores, name="frozen", zeroconf=False, with_seeds=True) as mesh:
        mesh.start()
        for thought, body in SESSIONS.items():
            mesh.submit(body, id=session_id(thought), thought=thought)
            if thought == "cancelled":
                mesh.any_running().call("POST", f"/v1/sessions/{session_id(thought)}/cancel", {}).expect(200)
            elif thought != "under way":
                mesh.wait_session(session_id(thought))
        mesh.wait("it is under way", lambda: mesh.session(session_id("under way"))["processing"] == 3)
        # What is frozen is what a loss of power leaves: nobody has handed anything over.
        mesh.close()
        nodes = {daemon.name: keep(daemon.directory / "data", kept / daemon.name) for daemon in mesh.daemons.values()}
    with tarfile.open(archive, "w:xz", preset=9) as file:
        file.add(kept, arcname=name, filter=anonymous)
    return nodes


def keep(source: Path, target: Path) -> dict[str, object]:
    """A compact copy of a data directory, and what is in it."""
    ignored = shutil.ignore_patterns("consensus", "scratch")
    shutil.copytree(source, target, ignore=ignored)
    store = Environment.open(source / "consensus", (*JOURNAL_TABLES, *tables.TABLES, FOUNDING_TABLE))
    store.copy_to(target / "consensus")
    founding = FoundingRecords(store).load()
    assert founding is not None
    with store.read() as txn:
        sessions = queries.list_sessions(txn)
        insights = {session.id: queries.get_insight(txn, session.id) for session in sessions}
        events = list(txn.scan(tables.EVENTS, b"", None))
        found: dict[str, object] = {
            "mesh_id": founding.mesh_id,
            "voters": list(founding.voters),
            "applied_index": Journal(store, RaftSettings()).applied_index,
            "digest": digest(txn).hex(),
            "members": {member.node_id: [member.name, member.status] for member in queries.members(txn)},
            "sessions": {
                session.thought: {
                    "id": session.id,
                    "status": session.status,
                    "completed": session.completed,
                    "failed": session.failed,
                    "synthesis": None if (insight := insights[session.id]) is None else insight.synthesis,
                }
                for session in sessions
            },
            "commands_with_events": len(events),
        }
    store.close()
    return found


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    sys.exit(main())
