"""What a follower can do, 64 in flight: linearizable reads inside it, and commands and reads through its HTTP port."""

import json
import uuid
from pathlib import Path

from node.testing import LocalMesh
from scripts.bench import http_load, node_runs
from scripts.bench.reads_node import IN_FLIGHT
from scripts.bench.report import Figure

COMMANDS = 15_000
SESSIONS = 2_000


def measure(folder: Path, runs: int) -> list[Figure]:
    busy = f"on a follower, {IN_FLIGHT} in flight"
    reads = Figure(f"linearizable reads of a session {busy}", "/s", "10,000", is_work=True)
    http_reads = Figure("the same through HTTP", "/s", "", is_work=True)
    commands = Figure(f"synced commands through HTTP {busy}", "/s", "5,000", is_work=True)
    sessions = Figure("sessions of one branch, submitted the same way while they are executed", "/s", "", is_work=True)
    for run in range(runs):
        for line in node_runs.run("scripts.bench.reads_node", folder / f"reads-{run}"):
            reads.values.append(line["per_s"])
            reads.note = f"p50 {line['p50_ms']:.1f} ms, p99 {line['p99_ms']:.1f} ms"
        with LocalMesh(folder / f"follower-{run}") as mesh:
            mesh.start()
            measure_http(mesh, http_reads, commands, sessions)
    return [reads, http_reads, commands, sessions]


def measure_http(mesh: LocalMesh, reads: Figure, commands: Figure, sessions: Figure) -> None:
    follower = mesh.followers()[0]
    port = mesh[follower].http_port
    body = {"thought": "bench", "branches": [{"ritual": "echo", "task": "x"}]}
    finished = mesh.wait_session(mesh.submit(body, on=follower)["id"], on=follower)["id"]
    # Cancelling what has finished changes nothing, but it is agreed, synced and applied like every command.
    cancel = http_load.post(f"/v1/sessions/{finished}/cancel")
    read = http_load.get(f"/v1/sessions/{finished}?level=linearizable")

    def submit(number: int) -> bytes:
        return http_load.post("/v1/sessions", json.dumps({**body, "id": str(uuid.uuid4())}).encode())

    for figure, request, count in (
        (commands, lambda number: cancel, COMMANDS),
        (reads, lambda number: read, COMMANDS),
        (sessions, submit, SESSIONS),
    ):
        http_load.run(port, request, in_flight=IN_FLIGHT, count=IN_FLIGHT * 5, expect=(200, 201))  # warm
        load = http_load.run(port, request, in_flight=IN_FLIGHT, count=count, expect=(200, 201))
        figure.values.append(load.per_s)
        figure.note = load.note
