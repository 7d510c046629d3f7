"""The in-process twin behaves as links do."""

import asyncio

import pytest

from mesh.errors import PeerUnavailable, RemoteFailed, RequestTimedOut
from mesh.links.inprocess import InProcessNetwork
from storage.ids import NodeId

A, B = NodeId("a"), NodeId("b")


def test_frames_requests_cuts_and_stop() -> None:
    async def scenario() -> None:
        network = InProcessNetwork()
        a, b = network.join(A), network.join(B)
        seen: list[object] = []
        b.on_raft = lambda peer, payload: seen.append((peer, payload))
        b.on_link_up = lambda hello: seen.append(("up", hello.node_id))
        b.on_link_down = lambda peer, reason, closed_by_peer: seen.append(("down", peer, closed_by_peer))

        async def echo(peer: NodeId, payload: bytes) -> bytes:
            return payload

        async def never(peer: NodeId, payload: bytes) -> bytes:
            return await asyncio.Future()

        b.serve("echo", echo)
        b.serve("never", never)
        await a.start()
        assert not a.send(B, b"early")
        await b.start()
        assert a.send(B, b"1")
        assert await a.request(B, "echo", b"x", 1.0) == b"x"
        with pytest.raises(RemoteFailed):
            await a.request(B, "unknown", b"", 1.0)
        with pytest.raises(RequestTimedOut):
            await a.request(B, "never", b"", 0.001)
        waiting = asyncio.create_task(a.request(B, "never", b"", 10.0))
        await asyncio.sleep(0)
        network.cut(A, B)
        with pytest.raises(PeerUnavailable):
            await waiting
        assert not a.send(B, b"lost")
        network.heal(A, B)
        await a.stop()
        await b.stop()
        assert seen == [("up", A), (A, b"1"), ("down", A, False), ("up", A), ("down", A, True)]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
