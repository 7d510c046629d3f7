"""Rows 14 to 16 of the table of known faults, as far as they are about snapshots: see `test_guard_scenarios`."""

from collections.abc import Callable, Sequence

import msgspec
import pytest

from consensus import snapshot
from consensus.errors import SnapshotInstalled
from consensus.journal import read_hard_state, write_hard_state
from consensus.membership import Change
from consensus.replica import Replica
from consensus.snapshot import InstallSnapshot, Quarantine
from consensus.steps import ProposeChange
from storage.dump import Header, encode_dump
from storage.ids import NodeId
from storage.memory import MemoryStore
from storage.transactions import Store
from tests.simulation.machine import RecordingMachine
from tests.simulation.planting import Patch, caught
from tests.simulation.test_guard_scenarios import conflicted, expect_caught
from tests.simulation.transfers import Transfers
from tests.simulation.world import ReplicaWorld
from tests.unit.consensus.cluster import IDS, Cluster


def snapshot_of(cluster: Cluster, i: NodeId) -> InstallSnapshot:
    machine = RecordingMachine()
    with cluster.stores[i].read() as txn:
        header = snapshot.make_header(txn, machine)
        assert header is not None
        data = b"".join(encode_dump(txn, header))
    filled = MemoryStore(cluster.stores[i].tables)
    snapshot.fill(filled, [data], machine)
    return InstallSnapshot(header, lambda: filled)


def test_row_14_a_snapshot_that_commits_what_comes_after_it(monkeypatch: Patch) -> None:
    def scenario() -> None:
        cluster, old, new = conflicted()
        taken = snapshot_of(cluster, new)
        store = cluster.stores[old]
        with store.read() as txn:
            held = read_hard_state(txn).applied_index
        assert taken.header.index > held
        cluster.kill(old)
        snapshot.install(store, taken.open_filled(), taken.header, RecordingMachine.tables)
        with store.read() as txn:
            assert read_hard_state(txn).commit_index == taken.header.index

    def plant() -> None:
        real = snapshot.install

        def commits(store: Store, filled: Store, header: Header, tables: Sequence[str]) -> None:
            real(store, filled, header, tables)
            with store.write() as txn:
                hard = read_hard_state(txn)
                write_hard_state(txn, msgspec.structs.replace(hard, commit_index=hard.commit_index + 30))

        monkeypatch.setattr(snapshot, "install", commits)

    expect_caught(scenario, plant)


def test_row_15_a_snapshot_that_takes_the_log_away(monkeypatch: Patch) -> None:
    """Of a replica that has acknowledged more than the snapshot holds: one in quarantine, which applies nothing."""

    def scenario() -> None:
        cluster = Cluster()
        leader = cluster.elect()
        cluster.run()
        damaged = next(i for i in IDS if i != leader)
        cluster.inboxes[damaged].append(Quarantine("planned"))
        for token in range(10):
            cluster.propose(leader, token, b"before %d" % token)
            cluster.run()
        taken = snapshot_of(cluster, leader)
        for token in range(10, 20):
            cluster.propose(leader, token, b"after %d" % token)
            cluster.run()
        last_index = cluster.replicas[leader].status.last_index
        assert cluster.replicas[leader].status.withdrawn == (damaged,)
        assert cluster.replicas[damaged].status.applied_index < taken.header.index
        cluster.inboxes[damaged].append(taken)
        with pytest.raises(SnapshotInstalled):
            cluster.step(damaged)
        cluster.kill(damaged)
        cluster.restart(damaged)
        assert cluster.replicas[damaged].status.last_index == last_index
        cluster.run_until(lambda: cluster.replicas[damaged].status.applied_index >= last_index)
        assert len(cluster.digests()) == 1
        assert cluster.replicas[leader].status.withdrawn == ()

    def plant() -> None:
        monkeypatch.setattr(snapshot, "_append_log", lambda filled, rows: None)

    expect_caught(scenario, plant)


def test_a_sole_voter_is_repaired_by_a_learner() -> None:
    """It cannot hand leadership over first."""
    voter, learner = NodeId("a"), NodeId("b")
    cluster = Cluster([voter])
    cluster.elect()
    cluster.stores[learner] = MemoryStore(cluster.stores[voter].tables)
    cluster.ids = []
    cluster.start(learner)
    for i in (voter, learner):
        cluster.link(i)
    cluster.inboxes[voter].append(ProposeChange(1, Change("add", learner)))
    cluster.propose(voter, 2, b"before")
    cluster.run_until(lambda: cluster.replicas[learner].status.applied_index == cluster.resolved[2].index)
    cluster.inboxes[voter].append(Quarantine("planned"))
    cluster.run()
    assert cluster.leader == voter
    cluster.inboxes[voter].append(snapshot_of(cluster, learner))
    with pytest.raises(SnapshotInstalled):
        cluster.step(voter)
    cluster.kill(voter)
    cluster.restart(voter)
    cluster.run_until(lambda: cluster.leader == voter)
    cluster.propose(voter, 3, b"after")
    cluster.run_until(lambda: 3 in cluster.resolved and len(cluster.digests()) == 1)
    assert cluster.resolved[3].error is None


def test_row_16_an_older_snapshot(monkeypatch: Patch) -> None:
    def back(self: Replica, header: Header, open_filled: Callable[[], Store]) -> None:
        if self.engine.is_leader:
            return
        snapshot.install(self._store, open_filled(), header, RecordingMachine.tables)
        raise SnapshotInstalled(header.index)

    monkeypatch.setattr(Replica, "_install", back)
    assert caught(range(60), Refetching)


def test_row_16_chunks_without_identity(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Transfers, "_continues", lambda self, part, identity, offset: True)
    violation = caught(range(60), Refetching)
    assert violation is not None
    assert "DamagedDump" in violation


class Refetching(ReplicaWorld):
    """Snapshots are fetched all the time, in small chunks, and processes die."""

    def __init__(self, seed: int, nodes: int) -> None:
        super().__init__(seed, nodes)
        self.mix.weights = {"needless_snapshot": 10, "crash": 1, "break_link": 1, "partition": 1}
        self.mix.every_s = 0.1
        self.transfers.chunk_bytes = 400
