"""Sessions over HTTP on three daemons: throughput of no-op branches, latency, fan-out of waiting branches."""

import statistics
import time
from pathlib import Path

from node.testing import LocalMesh
from scripts.bench.report import Figure

WAITS_S = [1.0, 0.9, 0.85, 0.8, 0.7, 0.561]
"""The six durations of the proof of concept: 4.811 s one after the other."""


def measure(folder: Path, runs: int) -> list[Figure]:
    throughput = Figure("no-op branches, durable, 3 nodes, sessions of 1,000", "/s", "3,000", is_work=True)
    latency = Figure("one-branch session over HTTP, submit to completed, p50", "ms", "5", is_work=True)
    on_follower = Figure("the same, asked of a follower", "ms", "", is_work=True)
    six = Figure("6 branches that wait 1.0 to 0.561 s, submit to insight", "s", "1.02", note="sequential 4.811 s")
    hundred = Figure("100 branches that wait 0.8 s", "s", "0.95", note="sequential 80 s")
    with LocalMesh(folder / "sessions") as mesh:
        leader = mesh.start()
        follower = mesh.followers()[0]
        run_session(mesh, leader, [{"ritual": "echo", "task": "warm"}] * 50)
        for _ in range(runs):
            throughput.values.append(no_op_rate(mesh, leader))
            latency.values.append(one_branch_p50_ms(mesh, leader))
            on_follower.values.append(one_branch_p50_ms(mesh, follower))
            six.values.append(run_session(mesh, leader, [wait_branch(seconds) for seconds in WAITS_S]))
            hundred.values.append(run_session(mesh, leader, [wait_branch(0.8)] * 100))
    return [throughput, latency, on_follower, six, hundred]


def wait_branch(seconds: float) -> dict[str, object]:
    return {"ritual": "wait", "task": f"wait {seconds} s", "parameters": {"seconds": seconds}}


def run_session(mesh: LocalMesh, name: str, branches: list[dict[str, object]]) -> float:
    """Seconds from submit to the recorded insight."""
    started = time.perf_counter()
    session = mesh.submit(thought="bench", branches=branches, on=name)
    ended = mesh.wait_session(session["id"], on=name)
    elapsed = time.perf_counter() - started
    assert ended["status"] == "completed", ended
    return elapsed


def one_branch_p50_ms(mesh: LocalMesh, name: str, rounds: int = 60) -> float:
    return statistics.median(run_session(mesh, name, [{"ritual": "echo", "task": "x"}]) for _ in range(rounds)) * 1e3


def no_op_rate(mesh: LocalMesh, name: str, sessions: int = 5, branches: int = 1_000) -> float:
    started = time.perf_counter()
    ids = [
        mesh.submit(thought="no-op", branches=[{"ritual": "echo", "task": "x"}] * branches, on=name)["id"]
        for _ in range(sessions)
    ]
    for session_id in ids:
        assert mesh.wait_session(session_id, on=name)["completed"] == branches
    return sessions * branches / (time.perf_counter() - started)
