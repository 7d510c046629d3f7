"""Servers that are closed while somebody connects leave no socket behind."""

import asyncio
import contextlib
import gc
import socket

import pytest

from node.http.guard import Guard
from node.http.server import HttpServer
from node.leaf.http import LeafHttp
from tests.unit.http.twin import TwinNode


async def nobody(method: str, payload: bytes, timeout_s: float) -> bytes:
    raise AssertionError("nothing is asked here")


@pytest.mark.parametrize("is_leaf", [True, False])
@pytest.mark.parametrize("turns", range(5))
def test_what_is_being_accepted_is_closed_with_the_server(is_leaf: bool, turns: int) -> None:
    async def main() -> None:
        node = TwinNode()
        guard = Guard("127.0.0.1", None, False)
        server = (
            LeafHttp(guard, "127.0.0.1", 0, {}, nobody) if is_leaf
            else HttpServer(node.service, bind="127.0.0.1", port=0)
        )  # fmt: skip
        address = await server.start()
        clients = [socket.socket() for _ in range(3)]
        for client in clients:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(address)
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.stop()
        await asyncio.sleep(0)
        for client in clients:
            client.close()
        await node.service.stop()

    asyncio.run(main())
    gc.collect()  # an unclosed socket warns here, and warnings are errors
