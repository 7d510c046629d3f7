"""What a client sees of a leader that is stopped cleanly, as for an upgrade: the longest time between two
acknowledgements, if it writes without pause and asks another node when one is leaving."""

import http.client
import threading
import time
from itertools import pairwise
from pathlib import Path

from node.testing import Daemon, LocalMesh
from scripts.bench.report import Figure

BEFORE_S = 0.5
AFTER_S = 2.0
REQUEST_S = 5.0


def measure(folder: Path, runs: int) -> list[Figure]:
    """Every value is one stop."""
    follower = Figure("leader stopped cleanly: longest gap between acknowledged writes, asking a follower", "s", "0.1")
    leader = Figure("the same, asking the leader until it refuses, then another node", "s", "0.1")
    with LocalMesh(folder / "gaps") as mesh:
        for _ in range(runs * 2):
            for figure in (follower, leader):
                name = mesh.start()
                others = [daemon for daemon in mesh.running() if daemon.name != name]
                figure.values.append(longest_gap(mesh, name, others if figure is follower else [mesh[name], *others]))
    return [follower, leader]


def longest_gap(mesh: LocalMesh, leader: str, asked: list[Daemon]) -> float:
    """Of a client that asks the first of `asked` as long as it answers, while the leader is stopped."""
    body = {"thought": "gap", "branches": [{"ritual": "echo", "task": "x"}]}
    session_id = mesh.wait_session(mesh.submit(body)["id"])["id"]
    acknowledged: list[float] = []
    is_over = threading.Event()

    def write() -> None:
        """A command that changes nothing, and is agreed and synced like every other."""
        position = 0
        while not is_over.is_set():
            try:
                answer = asked[position].call("POST", f"/v1/sessions/{session_id}/cancel", timeout_s=REQUEST_S)
            except (OSError, http.client.HTTPException):
                answer = None
            if answer is not None and answer.status == 200:
                acknowledged.append(time.perf_counter())
            else:
                position = (position + 1) % len(asked)

    client = threading.Thread(target=write)
    client.start()
    try:
        time.sleep(BEFORE_S)
        mesh[leader].stop()
        time.sleep(AFTER_S)
    finally:
        is_over.set()
        client.join()
    return max(after - before for before, after in pairwise(acknowledged))
