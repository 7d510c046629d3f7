"""One node of the benchmark of linearizable reads: a real node in this process, and the readers inside one follower.

    python -m scripts.bench.reads_node CONFIG RESULTS

The leader submits a session; the follower with the lowest id reads it again and again, and writes RESULTS.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from consensus.engine import Role
from consensus.state import queries
from node.app import THREAD_SWITCH_S, Node
from scripts.bench.commits_node import serve
from scripts.bench.followers import IN_FLIGHT, READS
from scripts.bench.node_runs import DONE
from storage.ids import SessionId

SESSION = SessionId("5f0c7c1e-6f5e-4a57-9d0e-8f2f0c1b2a3d")


async def measure(node: Node, results: Path) -> None:
    status = node.group.status()
    if status.role is Role.LEADER:
        body = {"id": SESSION, "thought": "?", "branches": [{"ritual": "echo", "task": "x"}]}
        await node.service.submit(json.dumps(body).encode())
        return
    if node.node_id != min(voter for voter in status.voters if voter != status.leader):
        return
    while not has_ended(node):
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)  # what follows a start is over
    await read(node, 2_000)
    line = await read(node, READS)
    results.write_text(json.dumps(line) + "\n" + DONE)


def has_ended(node: Node) -> bool:
    with node.group.read() as txn:
        session = queries.get_session(txn, SESSION)
    return session is not None and session.status == "completed"


async def read(node: Node, count: int) -> dict[str, float]:
    latencies: list[float] = []

    async def reader() -> None:
        for _ in range(count // IN_FLIGHT):
            started = time.perf_counter()
            await node.group.barrier()
            with node.group.read() as txn:
                assert queries.get_session(txn, SESSION) is not None
            latencies.append(time.perf_counter() - started)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as readers:
        for _ in range(IN_FLIGHT):
            readers.create_task(reader())
    elapsed = time.perf_counter() - started
    latencies.sort()
    return {
        "per_s": len(latencies) / elapsed,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
    }


if __name__ == "__main__":
    sys.setswitchinterval(THREAD_SWITCH_S)  # as the daemon does
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2]), measure))
