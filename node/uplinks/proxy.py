"""Requests of a Leaf's clients, answered by this node. The Leaf opens one with the bytes of the request, and asks for
the answer part by part: what its client does not take stays here, and whoever writes it waits. When the client goes
away the Leaf says so (`close`)."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from node.uplinks import messages
from node.uplinks.errors import UplinkError
from node.uplinks.limits import HTTP_IDLE_S, HTTP_PART_BYTES_MAX, HTTP_STREAMS_MAX, HTTP_WAIT_S
from node.uplinks.messages import HttpOpen, HttpPart
from storage.ids import NodeId

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class MeshPort(Protocol):
    def serve(self, method: str, server: Callable[[NodeId, bytes], Coroutine[Any, Any, bytes]]) -> None: ...


class _Stream:
    """One answer on its way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.is_reading = False
        self.idle: asyncio.TimerHandle | None = None


class Proxy:
    """`is_attached` tells whose requests are answered."""

    def __init__(self, mesh: MeshPort, connect: Connect, is_attached: Callable[[NodeId], bool]) -> None:
        self._connect = connect
        self._is_attached = is_attached
        self._streams: dict[NodeId, dict[int, _Stream]] = {}
        mesh.serve(messages.HTTP_OPEN, self._open)
        mesh.serve(messages.HTTP_MORE, self._more)
        mesh.serve(messages.HTTP_CLOSE, self._close)

    def link_down(self, peer: NodeId) -> None:
        """Nobody asks for the rest of its answers any more."""
        for number in list(self._streams.get(peer, ())):
            self._end(peer, number)

    async def _open(self, peer: NodeId, payload: bytes) -> bytes:
        opened = messages.decode(payload, HttpOpen)
        self._check(peer, opened.stream)
        reader, writer = await self._connect()
        try:
            self._check(peer, opened.stream)  # the link may be gone, and others may have been opened meanwhile
        except UplinkError:
            writer.close()
            raise
        self._streams.setdefault(peer, {})[opened.stream] = _Stream(reader, writer)
        writer.write(opened.request)
        return await self._part(peer, opened.stream)

    def _check(self, peer: NodeId, number: int) -> None:
        if not self._is_attached(peer):
            raise UplinkError("not_attached", "attach first")
        if len(self._streams.get(peer, ())) >= HTTP_STREAMS_MAX:
            raise UplinkError("busy", f"{HTTP_STREAMS_MAX} requests of this Leaf are being answered")
        if number in self._streams.get(peer, ()):
            raise UplinkError("malformed", "this number is in use")

    async def _more(self, peer: NodeId, payload: bytes) -> bytes:
        return await self._part(peer, messages.decode(payload, int))

    async def _close(self, peer: NodeId, payload: bytes) -> bytes:
        self._end(peer, messages.decode(payload, int))
        return b""

    async def _part(self, peer: NodeId, number: int) -> bytes:
        """What there is, once there is something; empty after a while of nothing."""
        stream = self._streams.get(peer, {}).get(number)
        if stream is None or stream.is_reading:
            raise UplinkError("unknown_stream", "this answer has ended")
        if stream.idle is not None:
            stream.idle.cancel()
        stream.is_reading = True
        data = None
        try:
            async with asyncio.timeout(HTTP_WAIT_S):
                data = await stream.reader.read(HTTP_PART_BYTES_MAX)
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            self._end(peer, number)  # the Leaf waits no longer; what was read may be lost
            raise
        except OSError:
            data = b""
        finally:
            stream.is_reading = False
        if data == b"":
            self._end(peer, number)
        else:
            stream.idle = asyncio.get_running_loop().call_later(HTTP_IDLE_S, self._end, peer, number)
        return messages.encode(HttpPart(stream=number, data=data or b"", is_end=data == b""))

    def _end(self, peer: NodeId, number: int) -> None:
        streams = self._streams.get(peer, {})
        stream = streams.pop(number, None)
        if not streams:
            self._streams.pop(peer, None)
        if stream is not None:
            if stream.idle is not None:
                stream.idle.cancel()
            stream.writer.transport.abort()  # what is not taken yet is for nobody
