"""A stranger on the LAN announces thousands of names: real peers are found all the same, and nobody loses his place."""

import asyncio
import random
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import limits
from mesh.discovery.remembered import load_peers
from mesh.links import book as book_module
from mesh.links.book import AddressBook, Standing
from mesh.links.dialler import Dialled, Dialler
from storage.ids import NodeId
from tests.unit.mesh.support import KeptLog, address, linked, run, site, until

ME = NodeId("me")
NOWHERE = "127.0.0.1:1"


def made_up(count: int, first: int = 0) -> list[NodeId]:
    return [NodeId(f"x{number}") for number in range(first, first + count)]


class Reachable:
    """Peers that answer at the address of their name; whoever was made up never does."""

    def __init__(self, peers: set[NodeId]) -> None:
        self.peers = peers
        self.links: set[NodeId] = set()
        self.dialled: list[str] = []
        self.dialling = self.dialling_max = 0
        rng = random.Random(3)
        self.book = AddressBook(ME, self.links.__contains__, lambda peer: self.dialler.end(peer), rng)
        self.dialler = Dialler(ME, self.book, self.dial, self.links.__contains__, rng, KeptLog())

    def hint(self, node_id: NodeId, standing: Standing = Standing.HEARD) -> None:
        is_new = self.book.note(node_id, [f"{node_id}:1"], standing=standing)
        if self.book.addresses(node_id):
            self.dialler.hint(node_id, is_new=is_new)

    async def dial(self, address: str) -> Dialled:
        peer = NodeId(address.partition(":")[0])
        self.dialled.append(peer)
        self.dialling += 1
        self.dialling_max = max(self.dialling_max, self.dialling)
        try:
            await asyncio.sleep(0 if peer in self.peers else 3600)
        finally:
            self.dialling -= 1
        self.links.add(peer)
        self.book.note(peer, [address], standing=Standing.PROVEN)
        return Dialled(peer, True, None)


def test_peers_are_linked_while_a_stranger_announces_thousands_of_names() -> None:
    async def scenario() -> None:
        peers = {NodeId(f"peer{number}") for number in range(20)}
        world = Reachable(peers)
        try:
            for first in range(0, 6_000, 100):
                for name in made_up(100, first):
                    world.hint(name)
                for peer in sorted(peers - world.links)[:3]:  # heard now and then, each before the next hundred names
                    world.hint(peer)
                await asyncio.sleep(0)
            await until(lambda: world.links == peers, "not all are found")
            assert world.dialling_max <= limits.PEERS_KNOWN_MAX
            assert len(world.book.peers()) == limits.PEERS_KNOWN_MAX
            for name in made_up(6_000):
                world.hint(name)
            assert {peer.node_id for peer in world.book.lasting()} == peers
        finally:
            await world.dialler.stop()

    asyncio.run(scenario())


def test_who_is_not_heard_any_more_and_never_answered_is_not_dialled_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.links.dialler.HEARD_LASTS_S", 0.05)
    monkeypatch.setattr("mesh.links.dialler.BACKOFF_MAX_S", 0.01)

    async def scenario() -> None:
        peer, told, heard = NodeId("peer"), NodeId("told"), NodeId("y-heard")
        world = Reachable({peer})

        async def refused(address: str) -> Dialled:
            world.dialled.append(NodeId(address.partition(":")[0]))
            return Dialled(None, False, None, "nobody there")

        try:
            world.hint(peer)
            await until(lambda: peer in world.links)
            world.dialler._dial = refused
            for name in (*made_up(100), heard):
                world.hint(name)
            world.hint(told, Standing.TOLD)
            world.links.discard(peer)
            world.dialler.unlinked(peer)

            def only_lasting() -> bool:
                world.hint(heard)
                return len(world.book.peers()) == 3

            await until(only_lasting, "strangers are dialled for ever")
            world.dialled.clear()
            await until(lambda: only_lasting() and {peer, told, heard} == set(world.dialled), "they are given up")
            await until(lambda: {known.node_id for known in world.book.peers()} == {peer, told}, "it is never given up")
        finally:
            await world.dialler.stop()

    asyncio.run(scenario())


@run
async def test_two_nodes_meet_in_a_flood_and_remember_only_each_other(directory: Path) -> None:
    async with site(directory) as here:
        a, b = await here.start("a"), await here.start("b")
        first = 0

        def meets() -> bool:
            nonlocal first
            for one, other in ((a, b), (b, a)):
                for name in made_up(20, first):
                    one.add_hint("zeroconf", name, (NOWHERE,))
                one.add_hint("zeroconf", other.node_id, (address(other),))
            first += 20
            return first > 2 * limits.PEERS_KNOWN_MAX and a.is_up(b.node_id) and b.is_up(a.node_id)

        await until(meets, "they do not find each other")
        await linked(a, b)
        await here.stop()
        for one, other in ((a, b), (b, a)):
            assert [peer.node_id for peer in load_peers(one.settings.data_dir)] == [other.node_id]


def test_false_addresses_of_a_peer_do_not_keep_the_true_one_out_nor_push_out_the_one_that_worked() -> None:
    peer, true = NodeId("peer"), "10.0.0.1:7781"
    book = AddressBook(ME, lambda peer: False, lambda peer: None, random.Random(1))
    made_up_ones = [f"10.9.9.{number}:1" for number in range(50)]
    book.note(peer, made_up_ones)
    heard = next(count for count in range(100) if book.note(peer, [true]) and true in book.addresses(peer))
    assert heard < 10
    book.note(peer, [true], standing=Standing.PROVEN)
    for number in range(50):
        book.note(peer, made_up_ones[number:])
        assert book.addresses(peer)[0] == true
        assert len(book.addresses(peer)) == limits.ADDRESSES_PER_PEER_MAX


peers = st.sampled_from([NodeId(name) for name in "abcdefghij"])
said = st.tuples(st.just("note"), peers, st.sampled_from(Standing))
turned = st.tuples(st.just("turn"), peers, st.just(Standing.HEARD))


@given(st.lists(said | turned, max_size=60), st.integers(0, 9))
def test_nobody_is_forgotten_for_less(steps: list[tuple[str, NodeId, Standing]], seed: int) -> None:
    """Whatever is said by whom, and whoever comes and goes."""
    links: set[NodeId] = set()
    gone: list[NodeId] = []
    best: dict[NodeId, Standing] = {}
    book = AddressBook(ME, links.__contains__, gone.append, random.Random(seed))
    with mock.patch.object(book_module, "PEERS_KNOWN_MAX", 4):
        for what, peer, standing in steps:
            if what == "turn":
                links.symmetric_difference_update({peer} & set(best))
                continue
            gone.clear()
            is_new = book.note(peer, [f"{peer}:1"], standing=standing)
            assert is_new == (peer not in best and bool(book.addresses(peer)))
            assert len(gone) <= is_new
            for lost in gone:
                assert lost not in links
                assert best.pop(lost) <= standing, "a better founded one went"
            if book.addresses(peer):
                best[peer] = max(standing, best.get(peer, standing))
            else:
                assert all(other in links or best[other] > standing for other in best), "there was room"
            assert {known.node_id for known in book.peers()} == set(best)
            assert {known.node_id for known in book.lasting()} == {one for one in best if best[one] > Standing.HEARD}
            assert len(best) <= 4
