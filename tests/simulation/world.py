"""A mesh of real replicas on a virtual clock, with an unlucky network, machines that stop, and disks that lose what was
not committed. First a time of faults, in which nothing unsafe may happen; then a quiet one, in which everything must
converge.

Each seed draws its own mix of faults and its own sizes of batches, windows and caches. The parts: `clock`, `network`,
`faults`, `process` (one life of a node), `load` (what is asked), `checks` (what must hold).
"""

import random

from consensus.engine import Role
from consensus.journal import TABLES
from consensus.limits import RaftSettings
from consensus.replica import Output
from storage.ids import NodeId
from storage.memory import MemoryStore
from tests.simulation import faults
from tests.simulation.checks import Checks, Violation
from tests.simulation.clock import Clock
from tests.simulation.load import Load
from tests.simulation.machine import APPLIED_TABLE
from tests.simulation.network import Network
from tests.simulation.process import Process


class World:
    """One run of one seed. `run` raises Violation."""

    process_type = Process
    torn_commit_chance = 0.002

    def __init__(self, seed: int, nodes: int, *, fault_s: float = 8.0, heal_s: float = 90.0) -> None:
        self.dice = random.Random(f"{seed}/{nodes}")
        self.fault_s, self.heal_s = fault_s, heal_s
        self.ids = [NodeId(f"n{i}") for i in range(nodes)]
        self.clock = Clock()
        self.mix = faults.Mix(self.dice)
        self.settings = draw_settings(self.dice)
        self.network = Network(self.clock, self.dice, self.ids, self.mix)
        self.checks = Checks()
        self.stores = {i: MemoryStore((*TABLES, APPLIED_TABLE)) for i in self.ids}
        self.full_disks: set[NodeId] = set()
        self.running: dict[NodeId, Process] = {}
        self.last_leader: NodeId | None = None
        self.load = Load(self)
        self.steps = 0

    def run(self) -> None:
        for i in self.ids:
            self.start(i)
        self.clock.at(0.5, faults.strike, self)
        self.clock.run_for(self.fault_s)
        self.heal()
        stop = self.clock.now + self.heal_s
        while not self.is_converged():
            if self.clock.now >= stop:
                raise Violation(f"not converged after {self.heal_s} s without faults: {self.describe()}")
            self.clock.run_for(0.5)
        self.checks.tables(self.stores)

    # -- machines --

    def any_running(self) -> NodeId:
        return self.dice.choice(sorted(self.running))

    def start(self, i: NodeId) -> None:
        if i not in self.running:
            self.running[i] = self.process_type(self, i)
            self.network.attach(i, self.running[i])

    def stop(self, i: NodeId, *, restart_s: float) -> None:
        """Kill it, and start it again later."""
        self.running.pop(i).is_alive = False
        self.network.detach(i)
        self.clock.at(restart_s, self.start, i)

    def on_output(self, i: NodeId, output: Output) -> None:
        """Of a step whose commit has succeeded."""
        self.checks.output(i, output)
        if output.status.role is Role.LEADER:
            self.last_leader = i

    # -- the end of the faults --

    def heal(self) -> None:
        self.mix.is_over = True
        self.network.heal()
        self.full_disks.clear()
        for i in self.ids:
            self.start(i)
            self.running[i].resume()

    def is_converged(self) -> bool:
        """One command more, proposed in the quiet, is applied everywhere."""
        status = [process.replica.status for process in self.running.values()]
        if len(status) < len(self.ids) or not any(s.role is Role.LEADER for s in status):
            return False
        if len({s.applied_index for s in status}) > 1:
            return False
        if b"last" in self.checks.acked.values():
            return True
        self.load.propose(b"last")
        return False

    def describe(self) -> str:
        parts = []
        for i, process in sorted(self.running.items()):
            s = process.replica.status
            parts.append(f"{i} {s.role.name} term {s.term} applied {s.applied_index} last {s.last_index} {s.dropped}")
        return "; ".join(parts)


def draw_settings(dice: random.Random) -> RaftSettings:
    """Often so small that every limit is met in a few seconds."""
    return RaftSettings(
        batch_bytes=dice.choice([12, 20, 40, 400, 1 << 20]),
        batch_entries=dice.choice([2, 8, 4096]),
        window_bytes=dice.choice([60, 400, 8000, 1 << 20]),
        tail_entries_max=dice.choice([4, 32, 4096]),
        tail_bytes_max=dice.choice([400, 1 << 20]),
        slice_entries_max=dice.choice([2, 16, 2048]),
        slice_bytes_max=dice.choice([16, 1 << 20]),
        commit_notice_s=dice.choice([0.0, 0.001, 0.1]),
    )
