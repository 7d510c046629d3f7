"""Runs benchmarks and prints their figures as a table, each run beside the reference loops of the same call."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from scripts.bench import (
    commits,
    daemons,
    discovery,
    followers,
    gaps,
    large,
    leaf,
    pinned,
    reference,
    report,
    scale,
    sessions,
)

BENCHMARKS: dict[str, Callable[[Path, int], list[report.Figure]]] = {
    "commits": commits.measure,
    "followers": followers.measure,
    "sessions": sessions.measure,
    "failover": daemons.measure_failover,
    "clean-stop": gaps.measure,
    "cold-start": daemons.measure_cold_start,
    "idle": daemons.measure_idle,
    "leaf": leaf.measure,
    "large": large.measure,
    "pinned": pinned.measure,
    "scale": scale.measure,
    "scale-virtual": scale.measure_virtual,
    "discovery": discovery.measure,
}
LONG = {"pinned", "scale", "scale-virtual"}
"""Minutes: only if named."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of: {', '.join(BENCHMARKS)} (all)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--folder", type=Path, help="where the daemons keep their data (default: a temporary folder)")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(BENCHMARKS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends everything, as Ctrl-C does
    # As any installation after its first start: with its bytecode cached.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="meshnode-bench-") as name:
        folder = Path(name)
        for benchmark in arguments.names or [name for name in BENCHMARKS if name not in LONG]:
            before = reference.measure(folder)
            print(f"{benchmark}: {before}", file=sys.stderr, flush=True)
            figures = BENCHMARKS[benchmark](folder, arguments.runs)
            after = reference.measure(folder)
            round_trips_s = (before.round_trips_s + after.round_trips_s) / 2
            print(
                f"{benchmark}: {before}; afterwards {after}\n\n{report.markdown(figures, round_trips_s)}\n", flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
