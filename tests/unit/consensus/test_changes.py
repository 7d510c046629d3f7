"""Changes of voters and learners, asked for on any node, over groups with their threads."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from consensus.changes import CHANGE, ChangeRefused, Changes
from consensus.errors import ProposalTimeout
from consensus.group import Group
from consensus.machine import DomainMachine
from consensus.membership import Change
from storage.ids import NodeId
from storage.memory import MemoryStore
from tests.unit.consensus.test_group import ALL_TABLES, IDS, QUICK, End, Net, leader_of, memory_stores, running

D = NodeId("d")


class ChangeEnd(End):
    """Also carries changes."""

    def __init__(self, net: Net, node: NodeId, changes: dict[NodeId, Changes]) -> None:
        super().__init__(net, node)
        self._changes = changes

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        if method != CHANGE:
            return await super().request(peer, method, payload, timeout_s)
        if not self.net.reaches(self.node, peer):
            raise ConnectionError(peer)
        async with asyncio.timeout(timeout_s):
            return await self._changes[peer].on_request(self.node, payload)


@contextlib.asynccontextmanager
async def mesh(tiers: dict[NodeId, str] | None = None) -> AsyncIterator[tuple[Net, dict[NodeId, Changes]]]:
    """`a`, `b` and `c` vote; `d` is linked and belongs to nothing yet."""
    async with running(memory_stores()) as net:
        changes: dict[NodeId, Changes] = {}
        newcomer = Group(D, (), MemoryStore(ALL_TABLES), DomainMachine(), net.end(D), settings=QUICK)
        net.groups[D] = newcomer

        def may_join(node: NodeId) -> bool:
            return (tiers or {}).get(node, "core") == "core"

        for node, group in net.groups.items():
            changes[node] = Changes(group, ChangeEnd(net, node, changes), may_join)
        newcomer.start()
        for node in IDS:
            newcomer.on_link_up(node)
            net.groups[node].on_link_up(D)
        await leader_of(net)
        yield net, changes


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def follower_of(net: Net) -> NodeId:
    leader = await leader_of(net)
    return next(node for node in IDS if node != leader)


def test_a_newcomer_is_taken_in_by_whomever_it_asks_and_then_promoted() -> None:
    async def main() -> None:
        async with mesh() as (net, changes):
            follower = await follower_of(net)
            await changes[D].ask([Change("add", D)], via=[follower])
            await until(lambda: D in net.groups[D].status().configuration.learners)
            leader = await leader_of(net)
            await until(lambda: D in net.groups[leader].status().caught_up)
            found = await changes[follower].ask([Change("promote", D)])
            assert (found.before.voters, found.after.voters) == (3, 4)
            await until(lambda: D in net.groups[D].status().voters)
            again = await changes[D].ask([Change("promote", D)])
            assert again.steps == ()

    asyncio.run(main())


def test_a_leader_that_is_to_vote_no_more_hands_over_first() -> None:
    async def main() -> None:
        async with mesh() as (net, changes):
            while True:
                leader = await leader_of(net)
                # On a busy machine the others may be silent for an election timeout just now: these are short.
                with contextlib.suppress(ChangeRefused):
                    await changes[leader].ask([Change("demote", leader, is_resting=True)])
                    break
            configuration = net.groups[await leader_of(net, but=leader)].status().configuration
            assert (configuration.learners, configuration.resting) == ((leader,), (leader,))

    asyncio.run(main())


def test_a_dry_run_changes_nothing_and_a_refusal_says_why() -> None:
    async def main() -> None:
        async with mesh() as (net, changes):
            follower = await follower_of(net)
            before = net.groups[follower].status().configuration
            await until(lambda: len(net.groups[net.groups[follower].status().leader or D].status().caught_up) == 2)
            found = await changes[follower].ask([Change("remove", follower)], is_dry_run=True)
            assert (found.refusal, found.after.voters, found.after.survives) == (None, 2, 0)
            assert net.groups[follower].status().configuration == before
            with pytest.raises(ChangeRefused) as refused:
                await changes[follower].ask([Change("promote", D)])
            assert refused.value.code == "unknown_node"

    asyncio.run(main())


def test_who_was_removed_is_not_taken_in_again() -> None:
    async def main() -> None:
        async with mesh() as (net, changes):
            follower = await follower_of(net)
            await changes[D].ask([Change("add", D)], via=[follower])
            removed = await changes[follower].ask([Change("remove", D)])
            assert (removed.steps, removed.refusal) == ((Change("remove", D),), None)
            with pytest.raises(ChangeRefused) as refused:
                await changes[follower].ask([Change("add", D)])
            assert refused.value.code == "removed"

    asyncio.run(main())


def test_only_a_core_node_may_learn() -> None:
    async def main() -> None:
        async with mesh({D: "leaf"}) as (net, changes):
            with pytest.raises(ChangeRefused) as refused:
                await changes[D].ask([Change("add", D)], via=[await follower_of(net)])
            assert refused.value.code == "only_replicas"

    asyncio.run(main())


def test_without_a_leader_it_is_not_known_in_time() -> None:
    async def main() -> None:
        async with mesh() as (net, changes):
            for node in IDS[:2]:
                net.cut(node)
            await until(lambda: net.groups[IDS[2]].status().leader is None)
            with pytest.raises(ProposalTimeout):
                await changes[IDS[2]].ask([Change("remove", IDS[0])], deadline_s=0.5)

    asyncio.run(main())


def test_a_leader_that_does_not_answer_has_refused_nothing() -> None:
    class Deaf:
        def send(self, peer: NodeId, payload: bytes) -> bool:
            return False

        async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
            raise ConnectionError("no link")

    async def main() -> None:
        async with mesh() as (net, _):
            changes = Changes(net.groups[await follower_of(net)], Deaf(), lambda node: True)
            with pytest.raises(ProposalTimeout) as raised:
                await changes.ask([Change("remove", IDS[0])], deadline_s=0.5)
            assert raised.value.code == "timeout"

    asyncio.run(main())


NO_TEXT = b"\x94\x91\x82\xa4kind\xa3add\xa7node_id\xa1\xff\xc2\x01\xc2"
"""A request whose node id is no UTF-8."""


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x90", b"\x94\x90\xc2\x01\xc2", NO_TEXT, b"x" * 5000])
def test_nonsense_is_refused(payload: bytes) -> None:
    async def main() -> None:
        async with mesh() as (net, changes):
            assert b"malformed" in await changes[await leader_of(net)].on_request(D, payload)

    asyncio.run(main())
