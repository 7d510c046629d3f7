"""Links between nodes as the mesh makes them: ordered, connected again by whoever can reach somebody, and unlucky.

A link is TCP: what arrives is what was sent, in order, until the link breaks, and then what was on its way is lost. Yet
frames may be shed (a full queue), in one direction for a while; and while two links that crossed are parted, frames of
the one overtake those of the other, or arrive once more (`retired`).
"""

import random
from collections import deque
from typing import Any, Protocol

from mesh.limits import SILENCE_S
from node.testing.virtual.loop import LoopClock
from storage.ids import NodeId
from tests.simulation.clock import Clock
from tests.simulation.faults import Mix

Link = frozenset[NodeId]

LANES = ("raft", "founding", "request", "response")

UNSHED = ("founding", "request", "response")
"""Lanes that shed nothing: what is lost on them is lost with the link, when its silence is noticed."""


class Endpoint(Protocol):
    """A running node."""

    def link_up(self, peer: NodeId) -> None: ...

    def link_down(self, peer: NodeId, *, closed_by_peer: bool) -> None: ...

    def received(self, peer: NodeId, frame: Any) -> None: ...


class Network:
    def __init__(self, clock: Clock | LoopClock, dice: random.Random, ids: list[NodeId], mix: Mix) -> None:
        self.clock, self.dice, self.ids, self.mix = clock, dice, ids, mix
        self.latency_s = dice.choice([0.001, 0.01, 0.05])
        self.cut: set[Link] = set()
        """Links that cannot be made."""
        self.deaf: set[tuple[NodeId, NodeId]] = set()
        """Directions in which everything is lost without a sound."""
        self.overtaken_s = 0.2
        """How late a frame may be that others overtake."""
        self.frames = 0
        self._nodes: dict[NodeId, Endpoint] = {}
        self._links: dict[Link, int] = {}
        self._link_count = 0
        self._channels: dict[tuple[NodeId, NodeId, str], deque[tuple[float, int, Any]]] = {}
        clock.at(0.0, self._connect)

    # -- what nodes do --

    def attach(self, i: NodeId, node: Endpoint) -> None:
        self._nodes[i] = node

    def detach(self, i: NodeId) -> None:
        """Its process is gone: all links to it are closed from its side. What it has said may have left the machine."""
        has_left = self.dice.random() < 0.5
        for link in self.links:
            if i in link:
                (peer,) = link - {i}
                if has_left:
                    self.flush(i, peer)
                self.break_link(link, closed_by=i)
        del self._nodes[i]

    def send(self, source: NodeId, target: NodeId, frame: Any, lane: str = "") -> bool:
        """False: there is no link. Frames of one lane stay in order."""
        self.frames += 1
        epoch = self._links.get(frozenset((source, target)))
        if epoch is None:
            return False
        if (source, target) in self.deaf:
            if lane in UNSHED:
                self.clock.at(self.dice.random() * SILENCE_S, self._fall_silent, frozenset((source, target)), epoch)
            return True
        delay_s = self.dice.random() * (1.0 if self.mix.happens("slow", 0.03) else self.latency_s)
        if self.mix.happens("retired", 0.01):
            self.clock.at(
                delay_s + self.dice.random() * self.overtaken_s, self._arrive_alone, source, target, epoch, frame
            )
            if self.dice.random() < 0.5:
                return True
        channel = self._channels.setdefault((source, target, lane), deque())
        arrival = self.clock.now + delay_s
        if channel:
            arrival = max(arrival, channel[-1][0])
        channel.append((arrival, epoch, frame))
        self.clock.at(arrival - self.clock.now, self._arrive, source, target, lane)
        return True

    def flush(self, source: NodeId, target: NodeId) -> None:
        """What is on its way arrives now."""
        for lane in ("", *LANES):
            for _, epoch, frame in self._channels.pop((source, target, lane), ()):
                self._arrive_alone(source, target, epoch, frame)

    # -- what happens to it --

    @property
    def links(self) -> list[Link]:
        return sorted(self._links, key=sorted)

    def break_link(self, link: Link, closed_by: NodeId | None = None) -> None:
        if self._links.pop(link, None) is None:
            return
        for i in sorted(link):
            (peer,) = link - {i}
            if i in self._nodes and i != closed_by:
                self._nodes[i].link_down(peer, closed_by_peer=closed_by == peer)

    def part(self, side: set[NodeId]) -> None:
        """Nothing goes between `side` and the rest, and links between them break."""
        self.cut = {frozenset((a, b)) for a in side for b in set(self.ids) - side}
        for link in self.links:
            if link in self.cut:
                self.break_link(link)

    def heal(self) -> None:
        self.cut.clear()
        self.deaf.clear()

    # -- on the clock --

    def _arrive(self, source: NodeId, target: NodeId, lane: str) -> None:
        channel = self._channels.get((source, target, lane), deque())
        while channel and channel[0][0] <= self.clock.now:
            _, epoch, frame = channel.popleft()
            self._arrive_alone(source, target, epoch, frame)

    def _arrive_alone(self, source: NodeId, target: NodeId, epoch: int, frame: Any) -> None:
        if self._links.get(frozenset((source, target))) == epoch:
            self._nodes[target].received(source, frame)

    def _fall_silent(self, link: Link, epoch: int) -> None:
        if self._links.get(link) == epoch:
            self.break_link(link)

    def _connect(self) -> None:
        """Whoever can reach somebody connects, after a while."""
        for position, a in enumerate(self.ids):
            for b in self.ids[position + 1 :]:
                link = frozenset((a, b))
                if link not in self._links and link not in self.cut and link <= self._nodes.keys():
                    self._link_count += 1
                    self._links[link] = self._link_count
                    self._nodes[a].link_up(b)
                    self._nodes[b].link_up(a)
        self.clock.at(0.02 + self.dice.random() * 0.2, self._connect)
