"""A mesh that has done a million branches: how soon its daemon serves again, and how much memory it takes.

The tables are filled by the state machine itself, command by command, in bounded transactions, as a replica would; only
the log is left out, since it would have been compacted.
"""

import asyncio
import http.client
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from consensus.group import Group
from consensus.journal import TABLES as JOURNAL_TABLES
from consensus.journal import read_configuration, read_hard_state, write_base
from consensus.machine import DomainMachine
from consensus.state import queries, tables
from consensus.state.apply import apply
from consensus.state.commands import (
    AnyCommand,
    AssignBranches,
    Assignment,
    BranchSpec,
    Canary,
    CompleteBranches,
    Outcome,
    SubmitSession,
)
from consensus.state.encoding import encode_command
from consensus.state.rows import Knowledge, Member
from node.testing import Daemon, LocalMesh
from scripts.bench.report import Figure
from storage.environment import Environment
from storage.ids import NodeId, SessionId

BRANCHES = 1_000_000
BRANCHES_PER_SESSION = 100
SESSIONS_PER_TRANSACTION = 20


def measure(folder: Path, runs: int) -> list[Figure]:
    replica = Figure(f"replica with {BRANCHES:,} finished branches: opened to first commit", "s", "1.0")
    replica_memory = Figure("the same: resident memory of its process", "MB", "120")
    start = Figure("daemon over it: process start to ready", "s", "", note="with links, HTTP, registration")
    at_start = Figure("the same: resident memory when ready", "MB", "120")
    later = Figure("the same: resident memory at most, until all rows are checked", "MB", "120")
    with LocalMesh(folder / "large", cores=1, zeroconf=False) as mesh:
        mesh.start()
        daemon = mesh["node-1"]
        daemon.stop()
        store = daemon.directory / "data" / "consensus"
        fill(store)
        for _ in range(runs):
            seconds, megabytes = json.loads(
                subprocess.check_output([sys.executable, "-m", "scripts.bench.large", str(store)])
            )
            replica.values.append(seconds)
            replica_memory.values.append(megabytes)
            started = time.perf_counter()
            daemon.start()
            wait_ready(daemon)
            start.values.append(time.perf_counter() - started)
            at_start.values.append(memory_mb(daemon, "VmRSS"))
            mesh.wait("the rows are checked", lambda: (daemon.status() or {}).get("rows_checked_s_ago"), 600.0)
            later.values.append(memory_mb(daemon, "VmHWM"))
            daemon.stop()
    return [replica, replica_memory, start, at_start, later]


def wait_ready(daemon: Daemon) -> None:
    """Asked all the time: a pause would be added to what is measured."""
    while True:
        try:
            if daemon.call("GET", "/readyz", timeout_s=5).status == 200:
                return
        except (OSError, http.client.HTTPException):
            time.sleep(0.002)


def memory_mb(daemon: Daemon, what: str) -> float:
    assert daemon.process is not None
    return memory_of(daemon.process.pid, what)


def memory_of(process: int, what: str) -> float:
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == what:
            return int(value.split()[0]) / 1024
    raise LookupError(what)


def fill(directory: Path) -> None:
    """The store of the only voter of a mesh that is stopped."""
    store = Environment.open(directory, (*JOURNAL_TABLES, *tables.TABLES))
    with store.read() as txn:
        hard = read_hard_state(txn)
        member = queries.members(txn)[0]
    index = hard.applied_index
    for first in range(0, BRANCHES // BRANCHES_PER_SESSION, SESSIONS_PER_TRANSACTION):
        with store.write() as txn:
            for number in range(first, first + SESSIONS_PER_TRANSACTION):
                for command in one_session(member, number):
                    index += 1
                    apply(txn, index, encode_command(command))
            write_base(txn, index, hard.term)
    with store.read() as txn:
        assert txn.count(tables.BRANCHES) == BRANCHES + BRANCHES // BRANCHES_PER_SESSION  # consolidations too
        assert not queries.open_sessions(txn), "all are finished"
    store.close()


def one_session(member: Member, number: int) -> list[AnyCommand]:
    """Its commands from submission to insight."""
    identity = SessionId(str(uuid.UUID(int=number + 1)))
    everything = range(BRANCHES_PER_SESSION)
    specs = [spec("echo", f"look at it from side {i}", i) for i in everything]
    submission = SubmitSession(
        session_id=identity,
        thought=f"what is the meaning of {number}?",
        branches=specs,
        consolidation=spec("consolidate", "consolidate", 0),
        submitted_by=member.node_id,
        at_ms=1,
    )
    rest = [BRANCHES_PER_SESSION]
    return [submission, *run(member, identity, list(everything)), *run(member, identity, rest)]


def spec(ritual: str, task: str, side: int) -> BranchSpec:
    return BranchSpec(ritual=ritual, task=task, parameters={"side": side}, seed=side, timeout_ms=1000, attempts_max=3)


def run(member: Member, identity: SessionId, branches: list[int]) -> list[AnyCommand]:
    assignments = [
        Assignment(
            session_id=identity,
            branch_index=branch,
            attempt=1,
            node_id=member.node_id,
            instance_id=member.instance_id,
            deadline_ms=10_000,
        )
        for branch in branches
    ]
    outcomes = [
        Outcome(
            session_id=identity,
            branch_index=branch,
            attempt=1,
            node_id=member.node_id,
            duration_ms=10,
            ritual_version="1",
            knowledge=Knowledge(
                patterns=[f"pattern {branch}"], novelty=0.5, summary="seen", result={"text": "x" * 100}
            ),
        )
        for branch in branches
    ]
    return [AssignBranches(assignments=assignments, at_ms=2), CompleteBranches(outcomes=outcomes, at_ms=3)]


class NoPeers:
    """There are none."""

    def send(self, peer: NodeId, payload: bytes) -> bool:
        return False

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        raise LookupError(peer)


async def start_replica(directory: Path) -> tuple[float, float]:
    """Of the store's only voter: seconds until it has committed a command, and this process's memory then."""
    started = time.perf_counter()
    store = Environment.open(directory, (*JOURNAL_TABLES, *tables.TABLES))
    with store.read() as txn:
        stored = read_configuration(txn)
    assert stored is not None, "a replica ran on this store"
    (node_id,) = stored[1].voters
    group = Group(node_id, [node_id], store, DomainMachine(), NoPeers())
    group.start()
    await group.propose(Canary(node_id=node_id, payload=b"", at_ms=1))
    seconds = time.perf_counter() - started
    megabytes = memory_of(os.getpid(), "VmRSS")
    await group.stop()
    store.close()
    return seconds, megabytes


if __name__ == "__main__":
    print(json.dumps(asyncio.run(start_replica(Path(sys.argv[1])))))
