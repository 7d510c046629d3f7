"""Committed, synced commands of 100 bytes: three real nodes, TLS on, the caller in the leader."""

import json
import subprocess
import sys
import time
from pathlib import Path

from node.testing import LocalMesh
from scripts.bench.report import Figure

REACH = {1: "1,500", 64: "20,000", 256: "30,000"}
DEADLINE_S = 120


def measure(folder: Path, runs: int) -> list[Figure]:
    rates = {n: Figure(f"synced commits, 3 nodes, TLS, {n} in flight", "/s", reach) for n, reach in REACH.items()}
    p50 = {n: Figure(f"the same, {n} in flight, p50", "ms", "0.7" if n == 1 else "") for n in REACH}
    for run in range(runs):
        for line in one_run(folder / f"commits-{run}"):
            rates[line["in_flight"]].values.append(line["per_s"])
            p50[line["in_flight"]].values.append(line["p50_ms"])
            rates[line["in_flight"]].note = f"p99 {line['p99_ms']:.1f} ms in the last run"
    return [figure for n in REACH for figure in (rates[n], p50[n])]


def one_run(folder: Path) -> list[dict]:
    mesh = LocalMesh(folder)  # for its configurations; the processes are ours
    results = folder / "results.jsonl"
    command = [sys.executable, "-m", "scripts.bench.commits_node"]
    nodes = [
        subprocess.Popen([*command, str(d.config_path), str(results)], stdout=d.log_path.open("ab"), stderr=-2)
        for d in mesh.daemons.values()
    ]
    try:
        ends_at = time.monotonic() + DEADLINE_S
        while not (results.exists() and '"done"' in results.read_text()):
            if time.monotonic() > ends_at or any(node.poll() is not None for node in nodes):
                raise RuntimeError("\n".join(d.last_words() for d in mesh.daemons.values()))
            time.sleep(0.05)
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    return [json.loads(line) for line in results.read_text().splitlines()[:-1]]
