"""Simulates seeds of the mesh: `scripts/simulate` runs this."""

import argparse
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.simulation.checks import Violation
from tests.simulation.run import WORLDS, run_seed

CHUNK = 10
SIZES = ("1", "3", "5", "7")
PROGRESS_S = 10.0

Chunk = tuple[str, int, range]


def main() -> int:
    parser = argparse.ArgumentParser("scripts/simulate")
    parser.add_argument("--seeds", type=seeds_of, default="100", metavar="N|A:B")
    parser.add_argument("--nodes", type=sizes_of, default=",".join(SIZES), metavar=",".join(SIZES))
    parser.add_argument("--worlds", type=worlds_of, default=",".join(WORLDS), metavar=",".join(WORLDS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N")
    arguments = parser.parse_args()
    chunks = [
        (world, nodes, arguments.seeds[start : start + CHUNK])
        for start in range(0, len(arguments.seeds), CHUNK)
        for world in arguments.worlds
        for nodes in arguments.nodes
    ]
    totals: Counter[str] = Counter()
    started = told_at = time.monotonic()
    for found, violations in run_all(chunks, arguments.jobs):
        totals += found
        for violation in violations:
            print(violation, end="\n\n", flush=True)
        if time.monotonic() - told_at >= PROGRESS_S:
            told_at = time.monotonic()
            print(summary(totals, told_at - started), file=sys.stderr, flush=True)
    print(summary(totals, time.monotonic() - started))
    return 1 if totals["violations"] else 0


def seeds_of(text: str) -> range:
    first, _, last = text.rpartition(":")
    with contextlib.suppress(ValueError):
        if seeds := range(int(first or 0), int(last)):
            return seeds
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seeds nor a range like 500:600")


def sizes_of(text: str) -> list[int]:
    if not set(text.split(",")) <= set(SIZES):
        raise argparse.ArgumentTypeError(f"{text!r}: meshes are of {', '.join(SIZES)} nodes")
    return [int(size) for size in text.split(",")]


def worlds_of(text: str) -> list[str]:
    worlds = text.split(",")
    if unknown := set(worlds) - WORLDS.keys():
        raise argparse.ArgumentTypeError(
            f"there is no world {', '.join(sorted(unknown))}; there are {', '.join(WORLDS)}"
        )
    return worlds


def run_all(chunks: list[Chunk], jobs: int) -> Iterator[tuple[Counter[str], list[str]]]:
    if jobs == 1 or len(chunks) == 1:
        yield from map(run_chunk, chunks)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(run_chunk, chunk) for chunk in chunks]):
            yield done.result()


def run_chunk(chunk: Chunk) -> tuple[Counter[str], list[str]]:
    name, nodes, seeds = chunk
    totals: Counter[str] = Counter()
    violations = []
    for seed in seeds:
        totals["seeds"] += 1
        try:
            world = run_seed(seed, nodes, WORLDS[name])
        except Violation as violation:
            totals["violations"] += 1
            violations.append(f"seed {seed}, {nodes} nodes, {name}: {violation}")
            continue
        totals["acknowledged commands"] += world.acknowledged
        totals["terms"] += len(world.checks.leaders)
        totals["steps"] += world.steps
        totals["frames"] += world.network.frames
        totals["virtual seconds"] += round(world.clock.now - 100)
    return totals, violations


def summary(totals: Counter[str], elapsed_s: float) -> str:
    counts = ", ".join(f"{totals[what]:,} {what}" for what in ("seeds", "violations", "acknowledged commands"))
    more = ", ".join(f"{totals[what]:,} {what}" for what in ("terms", "steps", "frames", "virtual seconds"))
    return f"{counts} ({more}) in {elapsed_s:.0f} s: {totals['seeds'] / max(elapsed_s, 0.001):.1f} seeds a second"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
