"""Makes links anew when this node's trust has changed, one at a time and without anybody noticing.

A link is made anew by the end that dialled it: a second connection, under the new certificate, takes its place, and
the old one retires (`manager`). So no certificate in use is ever older than two renewals, and a link that is up never
has to end because a certificate did. What cannot be made anew stays as it is and is tried again, with one exception:
a link to a peer that was admitted by a secret that is accepted no more ends soon. That is how a member is shut out.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from mesh.handshake import Refuse
from mesh.limits import REMAKE_PAUSE_S, REMAKE_RETRY_S, SHUT_OUT_AFTER_S
from mesh.links.link import Link
from mesh.supervise import Supervisor
from mesh.trust import Trust
from storage.ids import NodeId


class Remaking:
    """`redial(link)` tries to put a new connection in the link's place."""

    def __init__(
        self, links: Mapping[NodeId, Link], redial: Callable[[Link], Awaitable[None]], tasks: Supervisor
    ) -> None:
        self._links = links
        self._redial = redial
        self._tasks = tasks
        self._trust: Trust | None = None
        self._is_running = False

    def begin(self, trust: Trust) -> None:
        """The trust is `trust` from now on."""
        self._trust = trust
        if any(_is_shut_out(link, trust) for link in self._links.values()):
            self._tasks.spawn(self._shut_out(), "mesh shut out")
        if not self._is_running:
            self._is_running = self._tasks.spawn(self._run(), "mesh make links anew") is not None

    async def _run(self) -> None:
        while old := self._old():
            for link in old:
                if self._links.get(link.peer) is link:
                    await self._redial(link)
                await asyncio.sleep(REMAKE_PAUSE_S)
            if self._old():
                await asyncio.sleep(REMAKE_RETRY_S)
        self._is_running = False

    async def _shut_out(self) -> None:
        """A peer that knows the new secret makes its link anew within this time."""
        await asyncio.sleep(SHUT_OUT_AFTER_S)
        for link in tuple(self._links.values()):
            if self._trust is not None and _is_shut_out(link, self._trust):
                why = "the mesh secret by which this node was admitted has been replaced"
                link.close("wrong_secret", Refuse("wrong_secret", f"{why}: copy the secret file of another node to it"))

    def _old(self) -> list[Link]:
        return [link for link in self._links.values() if link.is_dialled and link.trust is not self._trust]


def _is_shut_out(link: Link, trust: Trust) -> bool:
    return trust.has_secret and link.admission is not None and link.admission.secret not in trust.accepted
