"""Connections to the application without a port."""

import asyncio
import gc
import socket

import pytest

from node.http.inward import Inward
from tests.unit.http.twin import TwinNode


@pytest.mark.parametrize("turns", range(6))
def test_a_connection_that_is_given_up_while_it_is_made_leaves_the_others_alone(turns: int) -> None:
    async def main() -> None:
        node = TwinNode()
        inward = Inward(node.service)
        await inward.start()
        made = asyncio.create_task(inward.connect())
        for _ in range(turns):
            await asyncio.sleep(0)
        made.cancel()
        (answer,) = await asyncio.gather(made, return_exceptions=True)
        if isinstance(answer, tuple):
            answer[1].close()
        ends = socket.socketpair()  # of the same numbers
        (one_reader, one), (other_reader, other) = [await asyncio.open_connection(sock=end) for end in ends]
        async with asyncio.timeout(10):
            for writer, reader in ((one, other_reader), (other, one_reader)):
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
        one.close()
        other.close()
        await inward.stop()
        await node.service.stop()

    asyncio.run(main())
    gc.collect()  # an unclosed socket warns here, and warnings are errors
