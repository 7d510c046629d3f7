"""Many nodes on one machine: how soon they are one mesh, what an idle leader costs, what more nodes gain. Minutes."""

import time
from pathlib import Path

from node.testing import VirtualMesh
from node.testing.harness import Harness
from scripts.bench import reference
from scripts.bench.report import Figure
from scripts.fleet import SLOTS, WAIT_S, fleet

ROUNDS = 24
"""Branches for each slot: the first and the last, when not all slots are busy, are a small part of it."""

SETTLE_S = 12.0
"""Until parents are settled and the workers of Leaf nodes run, which start ten seconds after these are registered."""


def measure(folder: Path, runs: int) -> list[Figure]:
    ready = Figure("100 nodes (3 Core, 7 Edge, 90 Leaf) from start to all registered", "s", "30")
    cpu = Figure("leader, 100 idle nodes", "% of a core", "8")
    traffic = Figure("leader, 100 idle nodes: in and out", "bytes/s", "")
    alone = Figure(f"one node: waits of {WAIT_S} s, {SLOTS} slots", "% of what its slots could", "")
    gains = {
        count: Figure(f"weak scaling, {count} nodes", "% of so many times one node", reach)
        for count, reach in ((3, ""), (10, ""), (30, "95"), (100, "90"))
    }
    # What the same nodes make of it when the waits are as much longer as these processors are slower than those for
    # which the reach was set: so much processor for each branch as was reckoned with.
    slower = max(reference.ROUND_TRIPS_THERE / reference.round_trips_per_second(), 1.0)
    longer_s = round(WAIT_S * slower, 1)
    longer = {
        count: Figure(f"the same, {count} nodes, waits of {longer_s} s", gain.unit, gain.reach)
        for count, gain in gains.items()
        if gain.reach
    }
    noop = Figure("no-op branches through 3 Core, 2 Edge, 8 Leaf", "/s", "3,000", is_work=True)
    for run in range(runs):
        with fleet(1, folder=folder / f"scale-{run}-1") as mesh:
            mesh.launch()
            time.sleep(SETTLE_S)
            one, one_longer = filled(mesh), filled(mesh, longer_s)
            alone.values.append(one * 100)
        for count, gain in gains.items():
            edges = 0 if count == 3 else max(count // 15, 1)
            with fleet(3, edges, count - 3 - edges, folder=folder / f"scale-{run}-{count}") as mesh:
                took_s = mesh.launch()
                time.sleep(SETTLE_S)
                if count == 100:
                    ready.values.append(took_s)
                    cost, crossed = mesh.leader_cost(10.0)
                    cpu.values.append(cost)
                    traffic.values.append(crossed)
                gain.values.append(filled(mesh) / one * 100)
                if count in longer:
                    longer[count].values.append(filled(mesh, longer_s) / one_longer * 100)
        with fleet(3, 2, 8, folder=folder / f"noop-{run}", slots=100) as mesh:
            mesh.launch()
            time.sleep(SETTLE_S)
            noop.values.append(rate(mesh, "echo", {}, 1000))
    return [ready, cpu, traffic, alone, *gains.values(), *longer.values(), noop]


def measure_virtual(folder: Path, runs: int) -> list[Figure]:
    """Once: every run is the same."""
    figures = []
    alone = 0.0
    for cores, edges, leaves in ((1, 0, 0), (3, 2, 25), (3, 7, 90)):
        count = cores + edges + leaves
        what = "% of so many times one node" if alone else "% of what its slots could"
        nodes = "one node" if count == 1 else f"{count} nodes"
        figure = Figure(f"virtual clock, {nodes}: waits of {WAIT_S} s, {SLOTS} slots a node", what, "")
        with VirtualMesh() as mesh:
            mesh.start(cores, edges, leaves, settings={"execution": {"slots": 1, "async_slots": SLOTS}})
            mesh.run_for(SETTLE_S)
            share = filled(mesh)
        figure.values.append(share / (alone or 1.0) * 100)
        alone = alone or share
        figures.append(figure)
    return figures


def filled(mesh: Harness, wait_s: float = WAIT_S) -> float:
    """What all slots together do, as a share of what they could if nothing else took time."""
    slots = SLOTS * len(mesh.nodes())
    return rate(mesh, "wait", {"seconds": wait_s}, slots) / (slots / wait_s)


def rate(mesh: Harness, ritual: str, parameters: dict[str, object], branches: int) -> float:
    """Branches a second through sessions of so many, all submitted at once; the first one warms up."""
    each = [{"task": str(number), "parameters": parameters} for number in range(branches)]

    def submit() -> str:
        return str(mesh.submit(thought="scale", ritual=ritual, branches=each)["id"])

    mesh.wait_session(submit(), 120)
    started = mesh.now
    for session in [submit() for _ in range(ROUNDS)]:
        mesh.wait_session(session, 240)
    return ROUNDS * branches / (mesh.now - started)
