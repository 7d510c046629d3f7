"""One daemon of the commit benchmark: a real node in this process, and the callers inside whichever of them leads.

    python -m scripts.bench.commits_node CONFIG RESULTS

The leader writes RESULTS (JSON lines) after every load and `done` at the end; all wait for SIGTERM.
"""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

from consensus.engine import Role
from consensus.state.commands import Canary
from node.app import THREAD_SWITCH_S, Node
from node.config import load

LOADS = [(1, 1_500), (64, 20_000), (256, 30_000)]
"""In flight, commands."""

PAYLOAD_BYTES = 100


async def serve(config_path: Path, results: Path) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with Node(load(config_path, {})) as node:
        await node.wait_serving()
        if node.group.status().role is Role.LEADER:
            await asyncio.sleep(1.0)  # the others have registered, canaries are through
            for in_flight, commands in LOADS:
                line = await run_load(node, in_flight, commands)
                with results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            with results.open("a") as file:
                file.write('"done"\n')
        await stopping.wait()


async def run_load(node: Node, in_flight: int, commands: int) -> dict[str, float]:
    latencies: list[float] = []

    async def caller() -> None:
        for _ in range(commands // in_flight):
            started = time.perf_counter()
            canary = Canary(node_id=node.node_id, payload=os.urandom(PAYLOAD_BYTES), at_ms=0)
            await node.group.propose(canary)
            latencies.append(time.perf_counter() - started)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(caller())
    elapsed = time.perf_counter() - started
    latencies.sort()
    return {
        "in_flight": in_flight,
        "per_s": len(latencies) / elapsed,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
    }


if __name__ == "__main__":
    sys.setswitchinterval(THREAD_SWITCH_S)  # as the daemon does
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))
