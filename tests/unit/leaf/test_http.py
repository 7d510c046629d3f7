"""Requests that a Leaf passes on, and what becomes of the answers that nobody waits for any more."""

import asyncio
import contextlib
import socket

import pytest

from node.http.guard import Guard
from node.leaf.http import LeafHttp
from node.uplinks import messages
from node.uplinks.proxy import Proxy
from storage.ids import NodeId
from tests.unit.node.test_uplinks import FakeMesh

LEAF = NodeId("a" * 26)
GET = b"GET /v1/backup HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"


class Way:
    """A Leaf's port, the proxy of its parent, and an application that answers without end. `holds`: a method whose
    answers are on the wire and do not arrive."""

    def __init__(self, holds: str) -> None:
        self.mesh = FakeMesh()
        self.holds = holds
        self.asked: list[str] = []
        self.ended = asyncio.Event()
        self.proxy = Proxy(self.mesh, self._connect, lambda peer: True)
        self.http = LeafHttp(Guard("127.0.0.1", None, False), "127.0.0.1", 0, {}, self._ask)
        self.serving: list[asyncio.Task[None]] = []

    async def _ask(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        answer = await self.mesh.servers[method](LEAF, payload)
        self.asked.append(method)
        if method == self.holds:
            await asyncio.Event().wait()
        return answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=theirs)
        self.serving.append(asyncio.create_task(self._answer(reader, writer)))
        return await asyncio.open_connection(sock=ours)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HEAD)
            while True:
                writer.write(CHUNK)
                await writer.drain()
        writer.close()
        self.ended.set()


@pytest.mark.parametrize("holds", [messages.HTTP_OPEN, messages.HTTP_MORE])
def test_a_client_that_goes_away_ends_its_answer_at_the_parent_at_once(holds: str) -> None:
    async def main() -> None:
        way = Way(holds)
        host, port = await way.http.start()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(GET)
        if holds == messages.HTTP_MORE:
            assert (await reader.readexactly(15)) == b"HTTP/1.1 200 OK"
        while holds not in way.asked:
            await asyncio.sleep(0.001)
        writer.close()
        await way.ended.wait()
        assert way.proxy._streams == {}
        await way.http.stop()
        await asyncio.gather(*way.serving)

    asyncio.run(asyncio.wait_for(main(), 20))
