"""Keeps what this node knows of its links, tells the leader, and hears what the others know of theirs."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from node.scheduler.damping import Damping
from node.scheduler.judgement import CLOSED_MS, SUSPECT_MS, LinkView, Outlook
from node.scheduler.testimony import TOPIC, Testimony, decode_testimony, encode_testimony
from storage.ids import InstanceId, NodeId

TELL_S = 0.05
"""What changes together is told together: when a mesh starts, or a switch fails."""

TELL_AGAIN_S = 0.5
"""When the link to the leader had no room for it."""

LOST_S = 600.0
"""So long a link that is down is remembered: far longer than anybody is still judged by it."""

_ORDERLY = ("stopping", "replaced")


@dataclass(frozen=True, slots=True)
class LinkState:
    """As last told by the mesh; `since` is monotonic."""

    is_up: bool
    since: float
    is_closed_by_peer: bool = False
    instance_id: InstanceId | None = None
    is_suspect: bool = False
    is_silent: bool = False

    def view(self, now: float, rests_s: float = 0.0) -> LinkView:
        return LinkView(
            is_up=self.is_up,
            since_ms=int((now - self.since) * 1000),
            is_closed_by_peer=self.is_closed_by_peer,
            instance_id=self.instance_id,
            is_suspect=self.is_suspect,
            is_silent=self.is_silent,
            rests_ms=int(rests_s * 1000),
        )


class Lookout:
    """`notify(peer, topic, payload)` sends, or answers False; `on_change` is called when members may have to be judged
    anew."""

    def __init__(
        self,
        node_id: NodeId,
        notify: Callable[[NodeId, str, bytes], bool],
        is_doubting: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._node_id = node_id
        self._notify = notify
        self.is_doubting = is_doubting
        self._on_change = on_change
        self._links: dict[NodeId, LinkState] = {}
        self._damping = Damping()
        self._leader: NodeId | None = None
        self._told: tuple[NodeId, Testimony] | None = None
        self._telling: asyncio.TimerHandle | None = None
        self.testimonies: dict[NodeId, Testimony] = {}
        """Of the nodes that are linked here, as far as they take this one for the leader."""

    # -- what the mesh brings --

    def link_up(self, peer: NodeId, instance_id: InstanceId) -> None:
        self._links[peer] = LinkState(is_up=True, since=time.monotonic(), instance_id=instance_id)
        if peer == self._leader:
            self._told = None
        self._changed()

    def link_down(self, peer: NodeId, reason: str, *, closed_by_peer: bool) -> None:
        now = time.monotonic()
        before = self._links.get(peer)
        self._links[peer] = LinkState(
            is_up=False,
            since=now,
            is_closed_by_peer=closed_by_peer,
            instance_id=None if before is None else before.instance_id,
            is_silent=reason == "silent" and not closed_by_peer,
        )
        self.testimonies.pop(peer, None)
        if reason not in _ORDERLY:
            self._damping.lost(peer, now)
        for other, link in tuple(self._links.items()):
            if not link.is_up and now - link.since > LOST_S:
                del self._links[other]
        self._changed()
        loop = asyncio.get_running_loop()
        for patience_ms in (SUSPECT_MS, CLOSED_MS):
            loop.call_later(patience_ms / 1000, self._on_change)

    def suspicion(self, peer: NodeId, is_suspect: bool) -> None:
        """Nothing was heard on its link for a while, or something was heard again."""
        link = self._links.get(peer)
        if link is not None and link.is_up:
            self._links[peer] = LinkState(
                is_up=True, since=link.since, instance_id=link.instance_id, is_suspect=is_suspect
            )
            self._changed()

    def doubt(self) -> None:
        """This node has begun to doubt itself, or ended it."""
        self._changed()

    def receive(self, peer: NodeId, payload: bytes) -> None:
        testimony = decode_testimony(payload)
        if testimony is not None:
            self.testimonies[peer] = testimony
            self._on_change()

    def turn_to(self, leader: NodeId | None) -> None:
        """The one that judges."""
        if leader != self._leader:
            self._leader = leader
            self._told = None
            self._changed()

    # -- what is known --

    def is_up(self, peer: NodeId) -> bool:
        link = self._links.get(peer)
        return link is not None and link.is_up

    def linked(self) -> list[NodeId]:
        return [peer for peer, link in self._links.items() if link.is_up]

    def outlook(self) -> Outlook:
        """Of links that are up, or were lately."""
        now = time.monotonic()
        links = {peer: link.view(now, self._damping.rests_s(peer, now)) for peer, link in self._links.items()}
        return Outlook(links, self.testimonies, self.is_doubting())

    def testimony(self) -> Testimony:
        """Of this node."""
        heard: dict[NodeId, InstanceId] = {}
        lost: dict[NodeId, InstanceId] = {}
        for peer, link in self._links.items():
            if link.instance_id is not None and not link.is_suspect:
                (heard if link.is_up else lost)[peer] = link.instance_id
        return Testimony(self.is_doubting(), heard, lost)

    # -- within --

    def _changed(self) -> None:
        self._on_change()
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(TELL_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        leader = self._leader
        if leader is None or leader == self._node_id or not self.is_up(leader):
            return
        testimony = self.testimony()
        if self._told != (leader, testimony):
            if self._notify(leader, TOPIC, encode_testimony(testimony)):
                self._told = (leader, testimony)
            else:
                self._telling = asyncio.get_running_loop().call_later(TELL_AGAIN_S, self._tell)
