"""What is carried to a leader, and what becomes of it when another one leads."""

import asyncio

import pytest

from consensus.courier import Courier
from storage.ids import NodeId

A, B = NodeId("a"), NodeId("b")


class Silent:
    """Peers that never answer."""

    def __init__(self) -> None:
        self.asked: list[NodeId] = []

    def send(self, peer: NodeId, payload: bytes) -> bool:
        return True

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        self.asked.append(peer)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        return await answer


@pytest.mark.parametrize("has_begun", [True, False])
def test_who_waits_for_a_leader_that_leads_no_more_is_told(has_begun: bool) -> None:
    """Also if the leader changes in the very turn of the loop in which the request is made."""

    async def main() -> None:
        peers = Silent()
        courier = Courier(peers)
        courier.turn_to(A)
        loop = asyncio.get_running_loop()
        waiting = courier.forward(b"command", loop.time() + 60)
        while has_begun and not peers.asked:
            await asyncio.sleep(0)
        loop.call_soon(courier.turn_to, B)
        async with asyncio.timeout(10):
            assert await waiting is None
        assert peers.asked == ([A] if has_begun else [])
        await courier.close()

    asyncio.run(main())
