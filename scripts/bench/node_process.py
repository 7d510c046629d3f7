"""A process of a benchmark with a real node in it (see `node_runs`), and callers that keep so many calls in flight."""

import asyncio
import json
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from node.app import Node
from node.config import load
from node.process import THREAD_SWITCH_S
from scripts.bench.node_runs import DONE

Measure = Callable[[Node, Path], Awaitable[None]]


def main(measure: Measure) -> None:
    """Arguments: CONFIG RESULTS. `measure` is called in every node when it serves; one of them writes the results. All
    wait for SIGTERM."""
    sys.setswitchinterval(THREAD_SWITCH_S)  # as the daemon does
    asyncio.run(_serve(Path(sys.argv[1]), Path(sys.argv[2]), measure))


async def _serve(config_path: Path, results: Path, measure: Measure) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with Node(load(config_path, {})) as node:
        await node.wait_serving()
        await measure(node, results)
        await stopping.wait()


def write(results: Path, lines: list[dict[str, float]]) -> None:
    results.write_text("".join(json.dumps(line) + "\n" for line in lines) + DONE)


async def call_many(call: Callable[[], Awaitable[object]], in_flight: int, count: int) -> dict[str, float]:
    latencies: list[float] = []

    async def caller() -> None:
        for _ in range(count // in_flight):
            started = time.perf_counter()
            await call()
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
        "p50_ms": statistics.median(latencies) * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
    }
