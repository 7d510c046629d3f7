"""Replica threads that speak over streams, each beside an event loop of its own: what a stalled loop means."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from consensus import driver as driver_module
from consensus.driver import ReplicaDriver
from consensus.engine import Role
from consensus.inbox import StreamUp
from consensus.journal import TABLES
from consensus.limits import RaftSettings
from consensus.machine import DomainMachine
from consensus.membership import Change
from consensus.state.commands import Applied, Canary, Refused
from consensus.state.encoding import encode_command
from consensus.state.events import Numbered
from consensus.state.tables import TABLES as DOMAIN_TABLES
from consensus.steps import LinkUp, Output, Propose, ProposeChange
from storage.errors import DiskFull
from storage.ids import NodeId
from storage.memory import MemoryStore
from storage.transactions import Transaction
from tests.unit.consensus.pipes import close_pipes, pipe

IDS = tuple(NodeId(name * 26) for name in "abc")
QUICK = RaftSettings(heartbeat_s=0.03, election_min_s=0.15, election_max_s=0.3, leader_fallback_s=0.4)


class Site:
    """One driver and the thread of its loop."""

    def __init__(self, node_id: NodeId) -> None:
        self.node_id = node_id
        self.role = Role.FOLLOWER
        self.answers: list[int] = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        store = MemoryStore((*TABLES, *DOMAIN_TABLES))
        self.driver = ReplicaDriver(
            node_id, IDS, store, DomainMachine(), QUICK, lambda frames: None, self._on_output, lambda error, final: None
        )
        self.thread.start()

    def _on_output(self, output: Output) -> None:
        self.role = output.status.role
        self.answers.extend(resolved.token for resolved in output.resolved if resolved.error is None)

    def run(self, call: Callable[[], object]) -> None:
        asyncio.run_coroutine_threadsafe(_call(call), self.loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.driver.stop(), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


async def _call(call: Callable[[], object]) -> None:
    call()


def until(condition: Callable[[], object]) -> None:
    ends_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.005)


@contextmanager
def connected() -> Iterator[dict[NodeId, Site]]:
    sites = {node_id: Site(node_id) for node_id in IDS}
    try:
        for site in sites.values():
            site.run(site.driver.start)
        for one, other in itertools.combinations(IDS, 2):
            ours, theirs = pipe()
            for here, peer, stream in ((one, other, ours), (other, one, theirs)):
                sites[here].driver.post(LinkUp(peer))
                sites[here].driver.post(StreamUp(peer, stream))
        yield sites
    finally:
        for site in sites.values():
            site.stop()
        close_pipes()


def leaders(sites: dict[NodeId, Site]) -> list[Site]:
    return [site for site in sites.values() if site.role is Role.LEADER]


def test_commands_are_agreed_over_streams_alone() -> None:
    with connected() as sites:
        until(lambda: leaders(sites))
        leader = leaders(sites)[0]
        for token in range(100):
            command = encode_command(Canary(node_id=leader.node_id, payload=b"x" * 100, at_ms=token))
            leader.driver.post(Propose(token, command))
        until(lambda: leader.answers == list(range(100)))


def test_a_leader_whose_loop_stalls_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "LOOP_STALL_S", 0.1)
    with connected() as sites:
        until(lambda: leaders(sites))
        stalled = leaders(sites)[0]
        goes_on = threading.Event()
        stalled.loop.call_soon_threadsafe(goes_on.wait)
        try:
            until(lambda: any(site.role is Role.LEADER for site in sites.values() if site is not stalled))
        finally:
            goes_on.set()
        until(lambda: stalled.role is Role.FOLLOWER)


def test_a_replica_waits_for_a_loop_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "DELIVERIES_MAX", 50)
    monkeypatch.setattr(driver_module, "LOOP_STALL_S", 60)
    with connected() as sites:
        until(lambda: leaders(sites))
        leader = leaders(sites)[0]
        goes_on = threading.Event()
        leader.loop.call_soon_threadsafe(goes_on.wait)
        try:
            until(lambda: len(leader.driver._deliveries) == 50)
        finally:
            goes_on.set()
        until(lambda: not leader.driver._deliveries)
        until(lambda: len(leaders(sites)) == 1)


class HangingMachine(DomainMachine):
    """Its disk hangs until `goes_on` is set."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def apply(self, txn: Transaction, index: int, command: bytes) -> tuple[Applied | Refused, list[Numbered]]:
        self.goes_on.wait(20)
        return super().apply(txn, index, command)


def test_a_step_that_takes_long_is_a_stall_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "DISK_STALL_S", 0.05)
    machine, site = HangingMachine(), Site(IDS[0])
    store = MemoryStore((*TABLES, *DOMAIN_TABLES))
    site.driver = ReplicaDriver(
        IDS[0], IDS[:1], store, machine, QUICK, lambda frames: None, site._on_output, lambda error, final: None
    )
    try:
        assert not site.driver.is_stalled()
        site.run(site.driver.start)
        until(lambda: site.driver.status.role is Role.LEADER)
        site.driver.post(Propose(1, encode_command(Canary(node_id=IDS[0], payload=b"", at_ms=1))))
        until(site.driver.is_stalled)
        machine.goes_on.set()
        until(lambda: not site.driver.is_stalled() and site.answers == [1])
    finally:
        machine.goes_on.set()
        site.stop()


def test_what_is_asked_while_there_is_no_replica_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "DISK_FULL_RETRY_S", 60.0)
    site, store = Site(IDS[0]), MemoryStore((*TABLES, *DOMAIN_TABLES))
    ends: dict[int, str | None] = {}
    failures: list[Exception] = []
    site.driver = ReplicaDriver(
        IDS[0],
        IDS[:1],
        store,
        DomainMachine(),
        QUICK,
        lambda frames: None,
        lambda output: ends.update((resolved.token, resolved.error) for resolved in output.resolved),
        lambda error, final: failures.append(error),
    )
    try:
        site.run(site.driver.start)
        until(lambda: site.driver.status.role is Role.LEADER)
        store.fail_next_commit(DiskFull("full"))
        site.driver.post(Propose(1, encode_command(Canary(node_id=IDS[0], payload=b"", at_ms=1))))
        until(lambda: failures)
        site.driver.post(ProposeChange(2, Change("add", IDS[1])))
        until(lambda: len(ends) == 2)
        assert ends == {1: "discarded", 2: "discarded"}
    finally:
        site.stop()
