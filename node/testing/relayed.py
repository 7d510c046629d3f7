"""The `meshnode` command whose connections to other nodes go through a relay.

It is run as a file, so that a daemon under test does not import what only tests need.
"""

import asyncio
import os
import socket
import sys
from typing import Any

from node.cli.main import main

RELAY_VARIABLE = "MESHNODE_TEST_RELAY"
NAME_VARIABLE = "MESHNODE_TEST_NODE"

MADE = b"+"
"""What a dialling daemon is told when it is through."""

_create_connection = asyncio.BaseEventLoop.create_connection


async def _through_relay(
    loop: asyncio.BaseEventLoop, factory: Any, host: str | None = None, port: int | None = None, **options: Any
) -> Any:
    if host is None:  # a socket of its own
        return await _create_connection(loop, factory, **options)
    relay_host, _, relay_port = os.environ[RELAY_VARIABLE].rpartition(":")
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    connection.setblocking(False)
    try:
        await loop.sock_connect(connection, (relay_host, int(relay_port)))
        await loop.sock_sendall(connection, f"{os.environ[NAME_VARIABLE]} {host} {port}\n".encode())
        if await loop.sock_recv(connection, len(MADE)) != MADE:
            raise ConnectionRefusedError(f"nobody listens at {host}:{port}")
    except BaseException:
        connection.close()
        raise
    return await _create_connection(loop, factory, sock=connection, **options)


if __name__ == "__main__":
    asyncio.BaseEventLoop.create_connection = _through_relay  # type: ignore[assignment, method-assign]
    sys.exit(main())
