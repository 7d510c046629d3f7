"""Keeps links warm, and says whose have fallen silent. What silence means is decided in `mesh.liveness`."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from mesh.limits import HEARTBEAT_S, LOOK_S_MIN
from mesh.links.link import Link
from mesh.liveness import Liveness
from storage.ids import NodeId


class SilenceUser(Protocol):
    """Who is told (`Mesh`)."""

    def suspicion(self, peer: NodeId, *, is_suspect: bool) -> None: ...

    def doubt(self) -> None:
        """It has begun or ended."""

    def is_stalled(self) -> bool:
        """Whether this node hangs in something else than its loop."""


class Heartbeat:
    def __init__(self, links: Mapping[NodeId, Link], liveness: Liveness, user: SilenceUser) -> None:
        self._links = links
        self._liveness = liveness
        self._user = user
        self._suspects: set[NodeId] = set()
        self._was_doubting = False

    async def run(self) -> None:
        """Pings every HEARTBEAT_S, and looks in between only when somebody's silence comes to mean something."""
        loop = asyncio.get_running_loop()
        ping_at = loop.time() + HEARTBEAT_S
        while True:
            now = loop.time()
            due_at = max(min(ping_at, self._liveness.next_look(now)), now + LOOK_S_MIN)
            await asyncio.sleep(due_at - now)
            now = loop.time()
            self._look(now, now - due_at)
            if now >= ping_at:
                ping_at = now + HEARTBEAT_S
                for link in tuple(self._links.values()):
                    link.ping()

    def forget(self, peer: NodeId) -> None:
        """Its link is gone, which says more than suspicion."""
        self._suspects.discard(peer)

    def _look(self, now: float, lag_s: float) -> None:
        links, liveness = tuple(self._links.items()), self._liveness
        for peer, link in links:
            liveness.heard(peer, link.last_heard_at)
        liveness.loop_was_late(lag_s, now)
        if self._user.is_stalled():
            liveness.doubt(now)
        if liveness.is_doubting(now) != self._was_doubting:
            self._was_doubting = not self._was_doubting
            self._user.doubt()
        verdicts = {peer: liveness.verdict(peer, now) for peer, _ in links}
        suspects = {peer for peer, verdict in verdicts.items() if verdict == "suspect"}
        changed, self._suspects = suspects ^ self._suspects, suspects
        for peer in sorted(changed):
            self._user.suspicion(peer, is_suspect=peer in suspects)
        for peer, link in links:
            if verdicts[peer] == "silent":
                link.close("silent")
