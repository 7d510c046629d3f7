"""Ten minutes on processors that are all taken by rituals: how many members were taken for dead that were not."""

import time
from pathlib import Path
from typing import Any

from node.rituals.builtin.debt_scenario import SCENARIOS_MAX
from node.testing import LocalMesh
from scripts.bench.report import Figure

PINNED_S = 600.0
LOOK_S = 0.5
SESSION = {
    "thought": "pinned",
    "branches": [{"ritual": "debt_scenario", "task": "t", "parameters": {"scenarios": SCENARIOS_MAX}}] * 64,
}


def measure(folder: Path, runs: int) -> list[Figure]:
    """Once, however many runs are asked for."""
    deaths = Figure("processors pinned for ten minutes: members falsely taken for dead", "", "0")
    suspicions = Figure("the same: members suspected for a while", "", "")
    lost = Figure("the same: attempts lost", "", "0")
    dead = suspected = lost_count = 0
    with LocalMesh(folder / "pinned", settings={"execution": {"slots": 2}}) as mesh:
        on = mesh[mesh.start()]
        until, sessions = time.monotonic() + PINNED_S, [mesh.submit(SESSION)["id"] for _ in range(2)]
        before: dict[str, str] = {}
        while time.monotonic() < until:
            time.sleep(LOOK_S)
            now = {row["name"]: row["status"] for row in on.call("GET", "/v1/members").expect(200)["members"]}
            dead += sum(now[name] == "dead" != before.get(name) for name in now)
            suspected += sum(now[name] == "suspect" != before.get(name) for name in now)
            before = now
            if mesh.session(sessions[-2])["status"] in ("completed", "failed"):
                lost_count += lost_attempts(mesh.branches(sessions[-2]))
                sessions.append(mesh.submit(SESSION)["id"])
    deaths.values.append(dead)
    suspicions.values.append(suspected)
    lost.values.append(lost_count)
    return [deaths, suspicions, lost]


def lost_attempts(branches: list[Any]) -> int:
    return sum(branch["losses"] for branch in branches)
