"""Whole daemons: how soon they serve, how soon they serve again, and what they cost when nothing happens."""

import http.client
import os
import time
from pathlib import Path

from node.testing import LocalMesh
from scripts.bench.report import Figure

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def measure_cold_start(folder: Path, runs: int) -> list[Figure]:
    solo = Figure("cold start, solo: process start to first result", "s", "0.6")
    three = Figure("cold start, three together: process start to first commit", "s", "2.0", note="found by zeroconf")
    for run in range(runs):
        with LocalMesh(folder / f"solo-{run}", cores=1, zeroconf=False) as mesh:
            started = time.perf_counter()
            mesh["node-1"].start()
            session_id = submit_when_possible(mesh)
            mesh.wait_session(session_id)
            solo.values.append(time.perf_counter() - started)
        with LocalMesh(folder / f"three-{run}") as mesh:
            started = time.perf_counter()
            for daemon in mesh.daemons.values():
                daemon.start()
            submit_when_possible(mesh)
            three.values.append(time.perf_counter() - started)
    return [solo, three]


def measure_failover(folder: Path, runs: int, kills: int = 30) -> list[Figure]:
    """Every value is one kill: SIGKILL of the leader to the next submission acknowledged by a survivor."""
    failover = Figure("leader killed: next commit acknowledged", "s", "median 0.35, worst of 30 below 0.8")
    with LocalMesh(folder / "failover") as mesh:
        for _ in range(kills if runs > 1 else 3):
            leader = mesh.start()
            mesh.kill(leader)
            started = time.perf_counter()
            submit_when_possible(mesh)
            failover.values.append(time.perf_counter() - started)
    return [failover]


def submit_when_possible(mesh: LocalMesh) -> str:
    """Asks one running daemon after the other until one has accepted a session; answers its id."""
    body = {"thought": "first", "branches": [{"ritual": "echo", "task": "hello"}]}

    def accepted() -> str | None:
        for daemon in mesh.running():
            try:
                answer = daemon.call("POST", "/v1/sessions", body, timeout_s=5)
            except (OSError, http.client.HTTPException):
                continue
            if answer.status in (200, 201):
                return str(answer.body["session"]["id"])
        return None

    return mesh.wait("a node accepts a session", accepted)


def measure_idle(folder: Path, runs: int, seconds: float = 20.0) -> list[Figure]:
    """Per node; workers are counted apart, because they come and go with the work."""
    ram = Figure("idle RSS of a daemon", "MB", "70")
    worker_ram = Figure("idle RSS of its worker process", "MB", "")
    cpu = Figure("idle CPU of a node, worker included", "% of a core", "1.5")
    with LocalMesh(folder / "idle") as mesh:
        mesh.start()
        for _ in range(runs):
            trees = {daemon.name: [pid_of(daemon), *children(pid_of(daemon))] for daemon in mesh.running()}
            before = {name: sum(map(cpu_s, pids)) for name, pids in trees.items()}
            started = time.perf_counter()
            time.sleep(seconds)
            elapsed = time.perf_counter() - started
            for name, pids in trees.items():
                cpu.values.append((sum(map(cpu_s, pids)) - before[name]) / elapsed * 100)
                ram.values.append(rss_mb(pids[0]))
                worker_ram.values.extend(rss_mb(pid) for pid in pids[1:])
    return [ram, worker_ram, cpu]


def pid_of(daemon: object) -> int:
    return daemon.process.pid  # type: ignore[attr-defined, no-any-return]


def children(pid: int) -> list[int]:
    return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def pss_mb(pid: int) -> float:
    """What it shares with others is divided among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3
