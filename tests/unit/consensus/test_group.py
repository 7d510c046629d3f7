"""Groups in one process, each with its replica thread, joined by a transport that is only function calls."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from consensus.courier import PROPOSE, READ_INDEX
from consensus.driver import ReplicaDriver
from consensus.engine import Role
from consensus.errors import ProposalTimeout, Unavailable
from consensus.group import Group
from consensus.journal import TABLES
from consensus.limits import RaftSettings
from consensus.machine import DomainMachine
from consensus.state.apply import digest
from consensus.state.commands import Applied, Canary
from consensus.state.encoding import encode_command, is_submission
from consensus.state.events import Numbered
from consensus.state.tables import TABLES as DOMAIN_TABLES
from storage.environment import Environment
from storage.errors import DiskFailed, DiskFull, MapExhausted, StorageError
from storage.ids import NodeId
from storage.memory import MemoryStore
from storage.transactions import Store
from tests.unit.state.model import register, submit

ALL_TABLES = (*TABLES, *DOMAIN_TABLES)
IDS = [NodeId(name) for name in "abc"]
QUICK = RaftSettings(heartbeat_s=0.02, election_min_s=0.1, election_max_s=0.2, leader_fallback_s=0.25)


class Net:
    """All groups, and who can reach whom."""

    def __init__(self) -> None:
        self.groups: dict[NodeId, Group] = {}
        self.is_cut: set[NodeId] = set()

    def end(self, node: NodeId) -> "End":
        return End(self, node)

    def reaches(self, source: NodeId, target: NodeId) -> bool:
        return target in self.groups and not self.is_cut & {source, target}

    def cut(self, node: NodeId) -> None:
        self.is_cut.add(node)
        for other in self.groups:
            if other != node:
                self.groups[other].on_link_down(node, closed_by_peer=True)
                self.groups[node].on_link_down(other, closed_by_peer=False)

    def heal(self, node: NodeId) -> None:
        self.is_cut.discard(node)
        for other in self.groups:
            if other != node:
                self.groups[other].on_link_up(node)
                self.groups[node].on_link_up(other)


class End:
    def __init__(self, net: Net, node: NodeId) -> None:
        self.net = net
        self.node = node

    def send(self, peer: NodeId, payload: bytes) -> bool:
        if not self.net.reaches(self.node, peer):
            return False
        self.net.groups[peer].on_peer_message(self.node, payload)
        return True

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        if not self.net.reaches(self.node, peer):
            raise ConnectionError(peer)
        group = self.net.groups[peer]
        async with asyncio.timeout(timeout_s):
            answer = {PROPOSE: group.on_request, READ_INDEX: group.on_read_request}[method]
            return await answer(self.node, payload)


@asynccontextmanager
async def running(stores: dict[NodeId, Store]) -> AsyncIterator[Net]:
    net = Net()
    for node, store in stores.items():
        net.groups[node] = Group(node, list(stores), store, DomainMachine(), net.end(node), settings=QUICK)
    try:
        for group in net.groups.values():
            group.start()
        for node in stores:
            for other in stores:
                if node != other:
                    net.groups[node].on_link_up(other)
        yield net
    finally:
        for group in net.groups.values():
            await group.stop()


def memory_stores(ids: list[NodeId] = IDS) -> dict[NodeId, Store]:
    return {node: MemoryStore(ALL_TABLES) for node in ids}


async def leader_of(net: Net, *, but: NodeId | None = None) -> NodeId:
    async with asyncio.timeout(10):
        while True:
            for node, group in net.groups.items():
                if node != but and node not in net.is_cut and group.status().role is Role.LEADER:
                    return node
            await asyncio.sleep(0.005)


def canary(payload: bytes) -> Canary:
    return Canary(node_id=NodeId("a"), payload=payload, at_ms=1)


def test_a_proposal_on_any_node_is_applied_there_when_it_is_answered() -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            await leader_of(net)
            for round_ in range(5):
                for group in net.groups.values():
                    answer = await group.propose(canary(b"%d" % round_))
                    assert isinstance(answer, Applied)
                    assert group.status().applied_index >= answer.index

    asyncio.run(main())


def test_a_proposal_waits_for_the_first_leader() -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            assert isinstance(await net.groups[IDS[0]].propose(canary(b"early")), Applied)

    asyncio.run(main())


def test_without_a_majority_the_deadline_says_so() -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            for node in IDS:
                if node != leader:
                    net.cut(node)
            with pytest.raises(ProposalTimeout) as caught:
                await net.groups[leader].propose(canary(b"lost"), deadline_s=0.6)
            assert caught.value.code == "no_leader"

    asyncio.run(main())


def test_a_proposal_survives_the_loss_of_the_leader() -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            follower = next(node for node in IDS if node != leader)
            await net.groups[follower].propose(canary(b"before"))
            net.cut(leader)
            answers = await asyncio.gather(*(net.groups[follower].propose(canary(b"%d" % i)) for i in range(20)))
            assert all(isinstance(answer, Applied) for answer in answers)
            net.heal(leader)
            await net.groups[leader].barrier()
            assert net.groups[leader].status().applied_index >= max(answer.index for answer in answers)

    asyncio.run(main())


def test_leadership_is_transferred() -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            await net.groups[leader].barrier()
            assert await net.groups[leader].transfer_leadership()
            assert await leader_of(net, but=leader) != leader

    asyncio.run(main())


def test_events_and_status_are_told() -> None:
    async def main() -> None:
        async with running(memory_stores([IDS[0]])) as net:
            group = net.groups[IDS[0]]
            seen: list[Numbered] = []
            roles: list[Role] = []
            group.subscribe_events(seen.extend)
            unsubscribe = group.subscribe_status(lambda status: roles.append(status.role))
            await group.barrier()
            unsubscribe()
            assert Role.LEADER in roles

    asyncio.run(main())


def test_a_stopped_group_refuses() -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            group = net.groups[IDS[0]]
            waiting = asyncio.create_task(group.barrier())
            await asyncio.sleep(0)
            await group.stop()
            with pytest.raises(Unavailable) as caught:
                await waiting
            assert caught.value.code == "stopped"
            with pytest.raises(Unavailable):
                await group.propose(canary(b"late"))

    asyncio.run(main())


def test_garbage_requests_are_answered() -> None:
    async def main() -> None:
        async with running(memory_stores([IDS[0]])) as net:
            group = net.groups[IDS[0]]
            await group.barrier()
            for payload in (b"", b"\xc1", b"x" * (2 << 20)):
                assert b"malformed" in await group.on_request(IDS[0], payload) or len(payload) > 1 << 20

    asyncio.run(main())


def test_what_a_member_cannot_apply_is_not_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            follower = next(net.groups[node] for node in IDS if node != leader)
            newer = b"\x02" + encode_command(canary(b""))[1:]
            assert isinstance(await follower.propose(register(IDS[0], name="ann")), Applied)
            # What a follower of the next version forwards to a leader of this one does not reach its log.
            request = msgspec.msgpack.encode([[newer], 5.0])
            assert b"newer_command" in await net.groups[leader].on_request(IDS[0], request)
            monkeypatch.setattr("consensus.group.encode_command", lambda command: newer)
            with pytest.raises(Unavailable, match=r"version 2 is not known to ann \(meshnode") as raised:
                await follower.propose(canary(b""))
            assert raised.value.code == "newer_command"

    asyncio.run(main())


@pytest.mark.parametrize("error", [DiskFull("full"), MapExhausted("map"), RuntimeError("bug")])
def test_the_replica_is_replaced_when_a_step_fails(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consensus.driver.DISK_FULL_RETRY_S", 0.01)

    async def main() -> None:
        stores = memory_stores()
        async with running(stores) as net:
            leader = await leader_of(net)
            await net.groups[leader].barrier()
            store = stores[leader]
            assert isinstance(store, MemoryStore)
            store.fail_next_commit(error)  # type: ignore[arg-type]  # any exception will do
            assert isinstance(await net.groups[leader].propose(canary(b"again")), Applied)

    asyncio.run(main())


def test_a_failed_disk_ends_it_for_good() -> None:
    async def main() -> None:
        store = MemoryStore(ALL_TABLES)
        failures: list[tuple[Exception, bool]] = []
        loop = asyncio.get_running_loop()
        failed = loop.create_future()

        def on_failure(error: Exception, is_final: bool) -> None:
            failures.append((error, is_final))
            failed.set_result(None)

        store.fail_next_commit(DiskFailed("io"))
        driver = ReplicaDriver(
            IDS[0], IDS[:1], store, DomainMachine(), QUICK, lambda frames: None, lambda output: None, on_failure
        )
        driver.start()
        await asyncio.wait_for(failed, 10)
        await driver.stop()
        assert isinstance(failures[-1][0], StorageError)
        assert failures[-1][1]

    asyncio.run(main())


def test_over_lmdb_with_a_restart(tmp_path: Path) -> None:
    async def main() -> int:
        stores: dict[NodeId, Store] = {node: Environment.open(tmp_path / node, ALL_TABLES) for node in IDS}
        try:
            async with running(stores) as net:
                await leader_of(net)
                await asyncio.gather(*(net.groups[IDS[0]].propose(canary(b"%d" % i)) for i in range(200)))
                indexes = [await net.groups[node].barrier() for node in IDS]
                digests = set()
                for node in IDS:
                    with net.groups[node].read() as txn:
                        digests.add(digest(txn))
                assert len(digests) == 1
                return max(indexes)
        finally:
            for store in stores.values():
                store.close()

    first = asyncio.run(main())
    assert asyncio.run(main()) > first


def test_row_13_an_outcome_lost_with_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader applies a forwarded proposal and is gone before it answers. Asking once would leave it unknown."""

    async def scenario() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            follower = next(node for node in IDS if node != leader)
            await net.groups[follower].barrier()
            answer = net.groups[leader].on_request

            async def lose_the_answer(peer: NodeId, payload: bytes) -> bytes:
                await answer(peer, payload)
                net.cut(leader)
                raise ConnectionResetError(leader)

            net.groups[leader].on_request = lose_the_answer  # type: ignore[method-assign]
            assert isinstance(await net.groups[follower].propose(canary(b"lost")), Applied)

    asyncio.run(scenario())

    async def ask_once(self: Group, payload: bytes, until: float) -> Applied:
        leader = self.status().leader
        assert leader is not None
        outcome = await self._courier.forward(payload, until) if leader != self.node_id else None
        return Applied(index=1) if leader == self.node_id else Applied(index=outcome.index)  # type: ignore[union-attr]

    monkeypatch.setattr(Group, "_propose_until_known", ask_once)
    with pytest.raises((AssertionError, AttributeError)):
        asyncio.run(scenario())


def test_a_leader_may_turn_down_what_a_peer_forwards() -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            other = next(node for node in IDS if node != leader)
            net.groups[leader]._refuses = lambda command: "disk_low" if is_submission(command) else None
            with pytest.raises(Unavailable, match="disk of the leader") as refused:
                await net.groups[other].propose(submit(), 10)
            assert refused.value.code == "disk_low"
            assert isinstance(await net.groups[other].propose(canary(b""), 10), Applied)

    asyncio.run(main())


def test_too_many_proposals_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consensus.group.PROPOSALS_IN_FLIGHT_MAX", 10)

    async def main() -> None:
        async with running(memory_stores()) as net:
            group = net.groups[await leader_of(net)]
            results = await asyncio.gather(
                *(group.propose(canary(b"%d" % i)) for i in range(30)), return_exceptions=True
            )
            refused = [result for result in results if isinstance(result, Unavailable)]
            assert len(refused) == 20
            assert {error.code for error in refused} == {"overloaded"}

    asyncio.run(main())


def test_a_replica_with_other_tables_than_the_majority_is_quarantined() -> None:
    async def main() -> None:
        stores = memory_stores()
        async with running(stores) as net:
            leader = await leader_of(net)
            await net.groups[leader].barrier()
            odd = next(node for node in IDS if node != leader)
            # Only this replica sees other tables, as after a page that rotted.
            machine = net.groups[odd]._driver._machine
            assert isinstance(machine, DomainMachine)
            machine.digest = lambda txn: b"other"  # type: ignore[method-assign]
            async with asyncio.timeout(20):
                while not net.groups[odd].status().is_quarantined:
                    await net.groups[leader].propose(canary(b"compare"))
                    await asyncio.sleep(0.02)
            with pytest.raises(Unavailable) as caught:
                await net.groups[odd].propose(canary(b"x"))
            assert caught.value.code == "quarantined"
            with pytest.raises(Unavailable), net.groups[odd].read():
                pass
            assert not net.groups[leader].status().is_quarantined

    asyncio.run(main())
