"""Keeps a stream (`mesh.links.stream`) beside every link whose two ends want one.

The end that dialled the link dials its stream too, to the same address, so a node behind NAT has one as well. The
stream must come from the very instance that the link is with.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mesh.errors import HandshakeRefused, MeshError
from mesh.handshake import STREAMS, Refuse, StreamHello, read_refuse, read_stream_hello
from mesh.limits import HANDSHAKE_TIMEOUT_S, STREAM_RETRY_S
from mesh.links.frames import Kind
from mesh.links.link import Link
from mesh.links.stream import Stream
from mesh.supervise import Supervisor
from storage.ids import InstanceId, NodeId

OnStream = Callable[[NodeId, Stream], None]
"""Takes a stream over: it closes it, whatever happens."""

Connect = Callable[[str], Awaitable[tuple[Link, NodeId]]]
"""TCP and TLS to an address: a link that has said nothing yet, and who presented its key there. Raises OSError."""


class Streams:
    """Streams are refused until `start`."""

    def __init__(
        self, instance_id: InstanceId, links: Mapping[NodeId, Link], connect: Connect, tasks: Supervisor
    ) -> None:
        self._instance_id = instance_id
        self._links = links
        self._connect = connect
        self._tasks = tasks
        self._on_stream: OnStream | None = None
        self._kept: set[NodeId] = set()
        self.open: dict[NodeId, Stream] = {}

    def start(self, on_stream: OnStream) -> None:
        """Hand a stream to every linked peer to `on_stream`, now and whenever a link comes up."""
        self._on_stream = on_stream
        for peer in tuple(self._links):
            self.link_up(peer)

    def link_up(self, peer: NodeId) -> None:
        if self._on_stream is not None and peer not in self._kept and self._is_ours(peer):
            self._kept.add(peer)
            task = self._tasks.spawn(self._keep(peer), f"mesh stream {peer}")
            if task is None:
                self._kept.discard(peer)
            else:
                task.add_done_callback(lambda _: self._kept.discard(peer))

    def renew(self, peer: NodeId) -> None:
        """The link to `peer` has been made anew by this end: so is its stream, when it is used next."""
        if (stream := self.open.get(peer)) is not None:
            stream.is_outdated = True

    async def accept(self, link: Link, presented: NodeId, body: bytes) -> None:
        """A caller's first frame was STREAM. Raises HandshakeRefused, OSError."""
        hello = read_stream_hello(body)
        if isinstance(hello, Refuse):
            raise HandshakeRefused(hello.code, hello.message)
        if self._on_stream is None or not self._is_of_link(presented, hello):
            raise HandshakeRefused("no_streams", "no stream is wanted now, or the link it belongs to is gone")
        link.hello_out(Kind.STREAM, StreamHello(self._instance_id))
        self._hand_over(presented, link, [])

    def counters(self, peer: NodeId) -> dict[str, int]:
        """Of the stream to `peer`; zeros if there is none."""
        stream = self.open.get(peer)
        return {
            "stream_frames_in": 0 if stream is None else stream.frames_in,
            "stream_frames_out": 0 if stream is None else stream.frames_out,
            "stream_bytes_in": 0 if stream is None else stream.bytes_in,
            "stream_bytes_out": 0 if stream is None else stream.bytes_out,
            "stream_dropped": 0 if stream is None else stream.dropped,
        }

    def _is_ours(self, peer: NodeId) -> bool:
        """Whether this end is the one to dial."""
        link = self._links.get(peer)
        return link is not None and link.is_dialled and link.hello is not None and STREAMS in link.hello.features

    def _is_of_link(self, peer: NodeId, hello: StreamHello) -> bool:
        link = self._links.get(peer)
        return link is not None and link.peer_instance == hello.instance_id

    async def _keep(self, peer: NodeId) -> None:
        while self._is_ours(peer):
            ended = None
            # Whatever is wrong, the link says so too; and without a stream everything works, only slower.
            with contextlib.suppress(OSError, MeshError, TimeoutError):
                async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                    ended = await self._dial(peer, self._links[peer].remote)
            if ended is not None:
                await ended
            await asyncio.sleep(STREAM_RETRY_S)

    async def _dial(self, peer: NodeId, address: str) -> asyncio.Future[None]:
        link, presented = await self._connect(address)
        try:
            first: asyncio.Future[tuple[Kind, bytes]] = asyncio.get_running_loop().create_future()
            early: list[bytes] = []

            def arrived(kind: Kind, body: bytes) -> None:
                if not first.done():
                    link.pause_reading()  # what follows is for the stream's owner
                    first.set_result((kind, body))
                elif kind is Kind.RAFT:
                    early.append(body)

            link.on_first_frame = arrived
            link.hello_out(Kind.STREAM, StreamHello(self._instance_id))
            ends: list[asyncio.Future[Any]] = [first, link.closed]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                raise ConnectionResetError("the peer closed the connection")
            kind, body = first.result()
            hello = read_stream_hello(body) if kind is Kind.STREAM else read_refuse(body)
            if isinstance(hello, Refuse) or presented != peer or not self._is_of_link(peer, hello):
                raise ConnectionRefusedError("no stream")
            return self._hand_over(peer, link, early)
        except BaseException:
            link.abort("no_stream")
            raise

    def _hand_over(self, peer: NodeId, link: Link, early: list[bytes]) -> asyncio.Future[None]:
        """Answers a future that is done when the stream is closed."""
        assert self._on_stream is not None
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            if self.open.get(peer) is stream:
                del self.open[peer]
            ended.set_result(None)

        def on_closed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(end)

        stream = link.detach(early, on_closed)
        self.open[peer] = stream
        self._on_stream(peer, stream)
        return ended
