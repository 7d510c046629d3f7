"""Committed, synced commands of 100 bytes: three real nodes, TLS on, the caller in the leader; etcd beside them."""

from pathlib import Path

from scripts.bench import etcd, node_runs
from scripts.bench.commits_node import LOADS
from scripts.bench.report import Figure

RATES = {1: "1,500", 64: "20,000", 256: "30,000"}
TIMES_ETCD = {1: "", 64: "3", 256: "3"}


def measure(folder: Path, runs: int) -> list[Figure]:
    """A run of ours and one of etcd in turn, so that the machine's moods meet both."""
    has_etcd = etcd.is_installed()
    tables = [_Load(in_flight, "" if has_etcd else "etcd is not installed") for in_flight, _ in LOADS]
    for run in range(runs):
        ours = node_runs.run("scripts.bench.commits_node", folder / f"commits-{run}")
        theirs = etcd.one_run(folder / f"etcd-{run}") if has_etcd else []
        for place, table in enumerate(tables):
            table.note(ours[place], theirs[place] if theirs else None)
    return [figure for table in tables for figure in table.figures]


class _Load:
    """What is told of one number of commands in flight."""

    def __init__(self, in_flight: int, note: str) -> None:
        what = f"{in_flight} in flight"
        self._rate = Figure(f"synced commits, 3 nodes, TLS, {what}", "/s", RATES[in_flight], note=note, is_work=True)
        self._p50 = Figure(f"the same, {what}, p50", "ms", "0.7" if in_flight == 1 else "", is_work=True)
        self._their_rate = Figure(f"etcd: synced puts, 3 members, TLS, {what}", "/s", "")
        self._their_p50 = Figure(f"etcd: the same, {what}, p50", "ms", "")
        self._times = Figure(f"commits a second, {what}", "times etcd's", TIMES_ETCD[in_flight])
        self._p50_times = Figure(f"p50, {what}", "times etcd's", "at most 1")
        self.figures = [self._rate, self._p50, self._their_rate, self._their_p50, self._times, self._p50_times]

    def note(self, ours: dict[str, float], theirs: dict[str, float] | None) -> None:
        self._rate.values.append(ours["per_s"])
        self._p50.values.append(ours["p50_ms"])
        if theirs is not None:
            self._their_rate.values.append(theirs["per_s"])
            self._their_p50.values.append(theirs["p50_ms"])
            self._their_rate.note = f"its client takes {theirs['client_share']:.0%} of a core beside it"
            self._times.values.append(ours["per_s"] / theirs["per_s"])
            self._p50_times.values.append(ours["p50_ms"] / theirs["p50_ms"])
