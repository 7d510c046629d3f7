"""Committed, synced commands of 100 bytes: three real nodes, TLS on, the caller in the leader; etcd beside them."""

from pathlib import Path

from scripts.bench import etcd, node_runs
from scripts.bench.commits_node import LOADS
from scripts.bench.report import Figure


def measure(folder: Path, runs: int) -> list[Figure]:
    """A run of ours and one of etcd in turn, so that the machine's moods meet both."""
    reach = {n: ("p50 as etcd's" if n == 1 else "3 times etcd's") for n, _ in LOADS}
    rates = {n: Figure(f"synced commits, 3 nodes, TLS, {n} in flight", "/s", reach[n]) for n, _ in LOADS}
    p50 = {n: Figure(f"the same, {n} in flight, p50", "ms", "no more than etcd's") for n, _ in LOADS}
    their_rates = {n: Figure(f"etcd: synced puts, 3 members, TLS, {n} in flight", "/s", "") for n, _ in LOADS}
    their_p50 = {n: Figure(f"etcd: the same, {n} in flight, p50", "ms", "") for n, _ in LOADS}
    has_etcd = etcd.is_installed()
    for run in range(runs):
        for line in node_runs.run("scripts.bench.commits_node", folder / f"commits-{run}"):
            n = int(line["in_flight"])
            rates[n].values.append(line["per_s"])
            p50[n].values.append(line["p50_ms"])
            rates[n].note = f"p99 {line['p99_ms']:.1f} ms in the last run"
            if not has_etcd:
                rates[n].note += "; etcd is not installed"
        for line in etcd.one_run(folder / f"etcd-{run}") if has_etcd else []:
            n = int(line["in_flight"])
            their_rates[n].values.append(line["per_s"])
            their_p50[n].values.append(line["p50_ms"])
            their_rates[n].note = f"its client takes {line['client_share']:.0%} of a core beside it"
    return [figure for n, _ in LOADS for figure in (rates[n], p50[n], their_rates[n], their_p50[n])]
