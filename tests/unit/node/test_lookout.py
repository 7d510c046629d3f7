"""What a node tells the leader of its links, when, and what it makes of what others tell."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest

from node import lookout as module
from node.app import Node
from node.lookout import Lookout
from node.scheduler.testimony import TOPIC, Testimony, decode_testimony, encode_testimony
from storage.ids import InstanceId, NodeId

A, B, C = (NodeId(name) for name in "abc")
ONE, TWO = InstanceId("1"), InstanceId("2")


class World:
    def __init__(self) -> None:
        self.told: list[tuple[NodeId, Testimony]] = []
        self.changes = 0
        self.sheds = 0
        self.is_doubting = False
        self.lookout = Lookout(A, self._notify, lambda: self.is_doubting, self._changed)

    def _notify(self, peer: NodeId, topic: str, payload: bytes) -> bool:
        assert topic == TOPIC
        if self.sheds:
            self.sheds -= 1
            return False
        said = decode_testimony(payload)
        assert said is not None
        self.told.append((peer, said))
        return True

    def _changed(self) -> None:
        self.changes += 1

    async def settle(self) -> None:
        async with asyncio.timeout(10):
            while self.lookout._telling is not None:
                await asyncio.sleep(0)


def run(scenario: Callable[[World], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(module, "TELL_S", 0.001)
    monkeypatch.setattr(module, "TELL_AGAIN_S", 0.001)
    world = World()
    asyncio.run(asyncio.wait_for(scenario(world), 20))
    return world


def test_the_leader_is_told_everything_once_and_again_only_when_it_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: World) -> None:
        lookout = world.lookout
        lookout.link_up(B, ONE)
        lookout.link_up(C, ONE)
        await world.settle()
        assert world.told == [], "nobody leads"
        lookout.turn_to(B)
        await world.settle()
        assert world.told == [(B, Testimony(heard={B: ONE, C: ONE}))]
        lookout.turn_to(B)
        lookout.suspicion(C, True)
        lookout.suspicion(C, False)
        await world.settle()
        assert len(world.told) == 1
        lookout.suspicion(C, True)
        await world.settle()
        assert world.told[-1] == (B, Testimony(heard={B: ONE}))
        lookout.link_down(C, "silent", closed_by_peer=False)
        await world.settle()
        assert world.told[-1] == (B, Testimony(heard={B: ONE}, lost={C: ONE}))
        world.is_doubting = True
        lookout.doubt()
        await world.settle()
        assert world.told[-1][1].is_doubting

    run(scenario, monkeypatch)


def test_what_the_link_had_no_room_for_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        world.sheds = 2
        world.lookout.link_up(B, ONE)
        world.lookout.turn_to(B)
        await world.settle()
        assert (world.sheds, world.told) == (0, [(B, Testimony(heard={B: ONE}))])

    run(scenario, monkeypatch)


def test_a_new_leader_and_one_whose_link_was_made_anew_are_told_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        lookout = world.lookout
        lookout.link_up(B, ONE)
        lookout.link_up(C, ONE)
        lookout.turn_to(B)
        await world.settle()
        lookout.turn_to(C)
        await world.settle()
        lookout.link_down(C, "closed_by_peer", closed_by_peer=True)
        lookout.link_up(C, ONE)
        await world.settle()
        assert [peer for peer, _ in world.told] == [B, C, C]
        lookout.turn_to(A)
        await world.settle()
        assert len(world.told) == 3, "to itself it says nothing"

    run(scenario, monkeypatch)


def test_what_others_say_is_kept_while_they_are_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        lookout = world.lookout
        lookout.link_up(B, ONE)
        before = world.changes
        lookout.receive(B, encode_testimony(Testimony(heard={C: ONE})))
        lookout.receive(B, b"garbage")
        assert world.changes == before + 1
        assert lookout.outlook().testimonies == {B: Testimony(heard={C: ONE})}
        lookout.link_down(B, "closed_by_peer", closed_by_peer=True)
        assert lookout.outlook().testimonies == {}

    run(scenario, monkeypatch)


def test_a_link_that_flaps_makes_its_node_rest_and_an_orderly_end_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        for reason, rests in (("stopping", False), ("closed_by_peer", True)):
            for _ in range(4):
                world.lookout.link_up(B, ONE)
                world.lookout.link_down(B, reason, closed_by_peer=True)
            assert (world.lookout.outlook().links[B].rests_ms > 0) is rests

    run(scenario, monkeypatch)


def test_links_that_ended_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        monkeypatch.setattr(module, "LOST_S", -1.0)
        world.lookout.link_up(B, ONE)
        world.lookout.link_down(B, "closed_by_peer", closed_by_peer=True)
        assert world.lookout.outlook().links == {}

    run(scenario, monkeypatch)


def test_a_leaf_accuses_nobody() -> None:
    heard: list[NodeId] = []
    lookout = SimpleNamespace(receive=lambda peer, payload: heard.append(peer))
    node = cast(Node, SimpleNamespace(_leaves={B}, lookout=lookout))
    for peer in (B, C):
        Node._on_notice(node, peer, TOPIC, encode_testimony(Testimony()))
    assert heard == [C]
