"""Whole nodes: they found their mesh from nothing, agree, schedule, execute and report, and are used by clients. The
shells of the product run on a virtual asyncio loop (`loop`); simulated are links, disks, executors and time."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import node.share
from consensus.engine import Role
from consensus.journal import TABLES as JOURNAL_TABLES
from consensus.state import queries, tables
from consensus.state.apply import digest
from consensus.steps import Output
from node.scheduler import speculation
from node.testing.virtual import loop as virtual
from node.testing.virtual.loop import LoopClock
from node.testing.virtual.time import virtual_time
from node.wiring import FOUNDING_TABLE
from storage.errors import DiskFull
from storage.ids import NodeId
from tests.simulation.checks import Violation
from tests.simulation.clients import Clients
from tests.simulation.daemon import Daemon, SimulatedGroup
from tests.simulation.observed import MeshChecks, ObservedDomain
from tests.simulation.stepping import Life
from tests.simulation.world import Node, World
from tests.unit.state.model import check_invariants


class MeshWorld(World):
    clock: LoopClock
    checks: MeshChecks
    tables = (*JOURNAL_TABLES, *tables.TABLES, FOUNDING_TABLE)
    running: Mapping[NodeId, Daemon]  # type: ignore[assignment]  # only `make` fills it

    def __init__(self, seed: int, nodes: int, *, fault_s: float = 15.0, heal_s: float = 180.0) -> None:
        super().__init__(seed, nodes, LoopClock(), fault_s=fault_s, heal_s=heal_s)
        self.expect = nodes if nodes < 5 or self.dice.random() < 0.75 else nodes - 2
        """How many found the mesh; more than half, so that there is but one. The others join it."""
        self.voters_wanted = self.dice.choice([size for size in (1, 3, 5, 7) if size <= nodes])
        self.grace_s = self.dice.choice([1.0, 5.0, 300.0])
        self.has_discovery = self.dice.random() < 0.5
        self.slots = self.dice.choice([1, 2, 8])
        self.done_share, self.slow_ms = self.dice.choice([(0.75, 1_000), (0.0, 200)])
        """When a second attempt is due; as the product has it, few are."""
        self.think_s = self.dice.choice([0.1, 0.5, 2.0])
        self.lives = 0
        self.snapshots_installed = 0
        self.parts = {i: bytearray() for i in self.ids}
        """What each machine has received of a snapshot."""
        self.clients = Clients(self)
        self.clock.loop.run_on_thread = self._run_on_thread

    def run(self) -> None:
        with (
            contextlib.closing(self.clock),
            virtual_time(self.clock, self._wrong_by, self.dice.randbytes),
            mock.patch.object(node.share, "Group", SimulatedGroup),
            mock.patch.multiple(speculation, DONE_SHARE=self.done_share, SLOW_MS=self.slow_ms),
        ):
            self.clock.at(0.0, self.clients.start)
            super().run()

    def next_life(self) -> int:
        self.lives += 1
        return self.lives

    def make_checks(self) -> MeshChecks:
        return MeshChecks(lambda: self.clock.now)

    def make(self, i: NodeId) -> Node:
        return Daemon(self, i)

    def stop(self, i: NodeId, *, restart_s: float) -> None:
        ended = self.running[i].ended
        super().stop(i, restart_s=restart_s)
        ended.set_result(None)

    def fetch_snapshot(self, i: NodeId, source: NodeId) -> None:
        """Nobody does."""

    def observe(self, i: NodeId, output: Output) -> None:
        driver = self.running[i].driver
        assert driver is not None
        assert isinstance(driver.observed, ObservedDomain)
        self.checks.follow(i, driver.observed.applied)
        driver.observed.applied.clear()

    def _wrong_by(self, life: virtual.Life | None) -> float:
        return self.wall_s[life.node_id] if isinstance(life, Life) else 0.0

    def _run_on_thread(self, life: virtual.Life | None, do: Callable[[], Any]) -> None:
        """Only the founding record is written by another thread: the disk strikes here too."""
        assert isinstance(life, Life)
        delay_s = self.dice.random() * (0.5 if self.mix.happens("slow_disk", 0.3) else 0.01)
        fails = life.node_id in self.full_disks or self.mix.happens("torn_commit", 0.05)
        self.clock.at(delay_s, self._write, life, do, fails)

    def _write(self, life: Life, do: Callable[[], Any], fails: bool) -> None:
        if not life.is_alive:
            return
        if fails and self.dice.random() < 0.5:
            life.die()
            return
        if fails:
            self.stores[life.node_id].fail_next_commit(DiskFull("planned"))
        do()
        self.stores[life.node_id].fail_next_commit(None)  # type: ignore[arg-type]  # it wrote nothing
        if self.mix.happens("lost_output", 0.05):
            life.die()

    # -- the end --

    def is_converged(self) -> bool:
        """Everybody is a member, everything is done, and all hold the same."""
        members = [daemon for daemon in self.running.values() if daemon.is_member]
        if len(self.running) < len(self.ids) or len(members) < len(self.ids):
            return False
        status = [daemon.share.group.status() for daemon in self.running.values() if daemon.share is not None]
        if len({s.applied_index for s in status}) > 1 or not any(s.role is Role.LEADER for s in status):
            return False
        with members[0].store.read() as txn:
            alive = [member for member in queries.members(txn) if member.status == "alive"]
            return queries.open_sessions(txn) == 0 and len(alive) == len(self.ids)

    def check_end(self) -> None:
        digests = {}
        members = [i for i in self.ids if self.running[i].is_member]
        for i in members:
            with self.stores[i].read() as txn:
                check_invariants(txn)
                digests[i] = digest(txn)
                if digests[i] != tables.recomputed_digest(txn):
                    raise Violation(f"{i}: its digest is not that of its tables")
                for identity in self.clients.submitted:
                    if queries.get_session(txn, identity) is None:
                        raise Violation(f"{i}: the acknowledged session {identity} is lost")
                for identity in self.clients.cancelled:
                    session = queries.get_session(txn, identity)
                    if session is None or session.status != "cancelled":
                        raise Violation(f"{i}: the cancellation of {identity} is lost")
        if len(set(digests.values())) != 1:
            raise Violation(f"tables differ: {digests}")
        self._check_watcher(members[0])

    def _check_watcher(self, i: NodeId) -> None:
        while self.clients.watch_once(i):
            pass
        with self.stores[i].read() as txn:
            everything = [(one.index, one.position) for one in queries.events_since(txn, 0, -1, 1 << 30)]
        if self.clients.seen != everything:
            raise Violation("a watcher that moved between nodes has missed events, or got some twice")

    def describe(self) -> str:
        parts = []
        for i in self.ids:
            daemon = self.running.get(i)
            if daemon is None:
                parts.append(f"{i} is down")
            elif daemon.share is None:
                parts.append(f"{i} is not founded: {daemon._founder.status}")
            else:
                s = daemon.share.group.status()
                parts.append(f"{i} {s.role.name} term {s.term} applied {s.applied_index} member {daemon.is_member}")
        with self.stores[self.ids[0]].read() as txn:
            parts.append(f"{queries.open_sessions(txn)} sessions are open, {queries.leases(txn)} leased")
        return "; ".join(parts)

    @property
    def acknowledged(self) -> int:
        return len(self.clients.submitted) + len(self.clients.cancelled) + self.checks.branches_ended
