"""Nodes on a virtual clock, with an unlucky network, machines that stop, and disks that lose what was not committed.
First a time of faults, in which nothing unsafe may happen; then a quiet one, in which everything must converge.

Each seed draws its own mix of faults and its own sizes of batches, windows and caches. The parts: `clock`, `network`,
`faults`, `stepping` (a replica and its disk), `checks` (what must hold). Two worlds are made of them: `ReplicaWorld`
here (`process`, `load`, `reads`, `calm`) of bare replicas over a machine that records, which is fast; and `mesh_world`,
in which nodes found their mesh and work in it.
"""

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Protocol
from unittest import mock

import pysyncobj.pickle

from consensus.engine import Role
from consensus.journal import TABLES
from consensus.limits import RaftSettings
from consensus.steps import Output
from node.testing.virtual.loop import LoopClock
from storage.ids import NodeId
from storage.memory import MemoryStore
from tests.simulation import calm, faults
from tests.simulation.checks import Checks, Violation
from tests.simulation.clock import Clock
from tests.simulation.load import Load
from tests.simulation.machine import APPLIED_TABLE
from tests.simulation.network import Endpoint, Network
from tests.simulation.process import Process
from tests.simulation.reads import Reads
from tests.simulation.transfers import Transfers


class Node(Endpoint, Protocol):
    """A life of a node, as faults see it."""

    is_alive: bool

    def pause(self, seconds: float) -> None: ...

    def resume(self) -> None: ...

    def transfer(self) -> None:
        """Hand over leadership, if it leads."""


class World:
    """One run of one seed. `run` raises Violation."""

    torn_commit_chance = 0.002
    tables: tuple[str, ...] = TABLES

    def __init__(self, seed: int, nodes: int, clock: Clock | LoopClock, *, fault_s: float, heal_s: float) -> None:
        self.dice = random.Random(f"{seed}/{nodes}")
        self.fault_s, self.heal_s = fault_s, heal_s
        self.ids = [NodeId(f"n{i}") for i in range(nodes)]
        self.clock = clock
        self.mix = faults.Mix(self.dice)
        self.settings = draw_settings(self.dice)
        self.network = Network(clock, self.dice, self.ids, self.mix)
        self.checks = self.make_checks()
        self.stores = {i: MemoryStore(self.tables) for i in self.ids}
        self.full_disks: set[NodeId] = set()
        self.wall_s = dict.fromkeys(self.ids, 0.0)
        """By how much each wall clock is wrong."""
        self.running: dict[NodeId, Node] = {}
        self.last_leader: NodeId | None = None
        self.steps = 0

    def run(self) -> None:
        with no_pickles():
            self._run()

    def _run(self) -> None:
        for i in self.ids:
            self.clock.at(0.0, self.start, i)
        self.clock.at(self.dice.choice([0.5, 0.5, 3.0]), faults.strike, self)
        self.clock.run_for(self.fault_s)
        self.clock.at(0.0, self.heal)
        stop = self.clock.now + self.heal_s
        while True:
            self.clock.run_for(0.5)
            if self.is_converged():
                break
            if self.clock.now >= stop:
                raise Violation(f"not converged after {self.heal_s} s without faults: {self.describe()}")
        self.check_end()

    # -- what each world has of its own --

    def make_checks(self) -> Checks:
        return Checks()

    def make(self, i: NodeId) -> Node:
        """A new life of a node."""
        raise NotImplementedError

    def observe(self, i: NodeId, output: Output) -> None:
        """Of a step whose commit has succeeded: what it applied."""
        raise NotImplementedError

    def fetch_snapshot(self, i: NodeId, source: NodeId) -> None:
        """Both run."""
        raise NotImplementedError

    def is_converged(self) -> bool:
        raise NotImplementedError

    def check_end(self) -> None:
        raise NotImplementedError

    def describe(self) -> str:
        """For a person who wonders why it has not converged."""
        raise NotImplementedError

    @property
    def acknowledged(self) -> int:
        """Commands whose success was told."""
        raise NotImplementedError

    # -- machines --

    def any_running(self) -> NodeId:
        return self.dice.choice(sorted(self.running))

    def start(self, i: NodeId) -> None:
        if i not in self.running:
            self.running[i] = self.make(i)
            self.network.attach(i, self.running[i])

    def stop(self, i: NodeId, *, restart_s: float) -> None:
        """Kill it, and start it again later."""
        self.running.pop(i).is_alive = False
        self.network.detach(i)
        self.clock.at(restart_s, self.start, i)

    def on_output(self, i: NodeId, output: Output) -> None:
        """Of a step whose commit has succeeded."""
        self.observe(i, output)
        self.checks.output(i, output)
        if output.status.role is Role.LEADER:
            self.last_leader = i

    def heal(self) -> None:
        """The end of the faults."""
        self.mix.is_over = True
        self.network.heal()
        self.full_disks.clear()
        for i in self.ids:
            self.start(i)
            self.running[i].resume()


class ReplicaWorld(World):
    """Bare replicas over a machine that records what it applies."""

    process_type = Process
    tables = (*TABLES, APPLIED_TABLE)
    running: Mapping[NodeId, Process]  # type: ignore[assignment]  # only `make` fills it

    def __init__(self, seed: int, nodes: int, *, fault_s: float = 8.0, heal_s: float = 90.0) -> None:
        super().__init__(seed, nodes, Clock(), fault_s=fault_s, heal_s=heal_s)
        self.load = Load(self)
        self.reads = Reads(self)
        self.transfers = Transfers(self)

    def make(self, i: NodeId) -> Node:
        return self.process_type(self, i)

    def fetch_snapshot(self, i: NodeId, source: NodeId) -> None:
        self.transfers.want(self.running[i], source)

    def observe(self, i: NodeId, output: Output) -> None:
        applied = self.running[i].machine.applied
        self.checks.applies(i, applied)
        self.checks.told(i, [index for index, _ in output.events])
        applied.clear()

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

    def check_end(self) -> None:
        self.checks.tables(self.stores)
        calm.check(self)
        self.checks.tables(self.stores)

    def describe(self) -> str:
        parts = []
        for i, process in sorted(self.running.items()):
            s = process.replica.status
            parts.append(f"{i} {s.role.name} term {s.term} applied {s.applied_index} last {s.last_index} {s.dropped}")
        return "; ".join(parts)

    @property
    def acknowledged(self) -> int:
        return len(self.checks.acked)


@contextlib.contextmanager
def no_pickles() -> Iterator[None]:
    """The engine makes and opens pickles where it is left alone (row 7): here nobody may."""

    def forbidden(*arguments: object) -> None:
        raise Violation("a pickle was touched")

    with contextlib.ExitStack() as stack:
        for name in ("loads", "dumps", "load", "dump"):
            stack.enter_context(mock.patch.object(pysyncobj.pickle, name, forbidden))
        yield


def draw_settings(dice: random.Random) -> RaftSettings:
    """Often so small that every limit is met in a few seconds, and that whoever was away needs a snapshot."""
    keep = dice.choice([4, 16, 50_000])
    return RaftSettings(
        batch_bytes=dice.choice([12, 20, 40, 400, 1 << 20]),
        batch_entries=dice.choice([2, 8, 4096]),
        window_bytes=dice.choice([60, 400, 8000, 1 << 20]),
        tail_entries_max=dice.choice([4, 32, 4096]),
        tail_bytes_max=dice.choice([400, 1 << 20]),
        slice_entries_max=dice.choice([2, 16, 2048]),
        slice_bytes_max=dice.choice([16, 1 << 20]),
        commit_notice_s=dice.choice([0.0, 0.001, 0.1]),
        log_keep_entries=keep,
        log_hold_entries=keep * dice.choice([1, 4]),
        log_keep_bytes=dice.choice([400, 1 << 20]),
        log_hold_bytes=dice.choice([1000, 1 << 20]),
        compaction_entries=dice.choice([1, 8, 1024]),
    )
