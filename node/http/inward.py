"""HTTP without a port: requests that came over an uplink, from clients that a Leaf has let in, answered by the same
application. Each has one end of a socket pair, so buffers, back-pressure and hang-ups are those of any connection."""

import asyncio
import socket

from aiohttp import web

from node.http import limits
from node.http.app import build_app
from node.service.service import NodeService


class Inward:
    """`connect` answers the other end of a new connection."""

    def __init__(self, service: NodeService) -> None:
        self._runner = web.AppRunner(
            build_app(service, None), access_log=None, handle_signals=False, keepalive_timeout=limits.IDLE_S,
            shutdown_timeout=limits.SHUTDOWN_S, auto_decompress=False,
        )  # fmt: skip

    async def start(self) -> None:
        await self._runner.setup()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises OSError."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        server = self._runner.server
        assert server is not None, "start it first"
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(server, theirs)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        try:
            return await asyncio.open_connection(sock=ours, limit=limits.STREAM_BUFFER_BYTES)
        except BaseException:
            ours.close()
            transport.abort()  # closing its socket here would leave the loop deaf to the next one of the same number
            raise
