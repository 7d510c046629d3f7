"""What goes down to a Leaf: its work in batches, and answers to its clients."""

import asyncio
import contextlib
import itertools
import socket

import pytest

from consensus.state.rows import Knowledge
from node.executor.work import BranchInput, Work
from node.uplinks import messages
from node.uplinks.errors import UplinkError
from node.uplinks.limits import WORK_BYTES_PER_MESSAGE_MAX, WORKS_PER_MESSAGE_MAX
from node.uplinks.line import Line
from node.uplinks.messages import Assigned, HttpOpen, HttpPart
from node.uplinks.proxy import Proxy
from tests.unit.node.test_uplinks import OTHER, SESSION, FakeMesh


def work(index: int, inputs: list[BranchInput] | None = None) -> Work:
    return Work(
        session_id=SESSION, branch_index=index, attempt=1, ritual="echo", task="x", parameters={}, seed=1,
        timeout_ms=1, inputs=inputs,
    )  # fmt: skip


def received(sent: list[bytes]) -> list[Assigned]:
    return [one for payload in sent for one in messages.decode(payload, list[Assigned])]


def test_work_goes_in_batches_and_large_inputs_in_parts() -> None:
    async def main() -> None:
        sent: list[bytes] = []

        async def request(method: str, payload: bytes, timeout_s: float) -> bytes:
            sent.append(payload)
            return b""

        line = Line(request, lambda topic, payload: None)
        for index in range(WORKS_PER_MESSAGE_MAX + 1):
            line.submit(work(index))
        big = [
            BranchInput(
                branch_index=i, task="t", ritual="echo", ritual_version="1", node_id="n", attempt=1,
                status="completed", duration_ms=1, knowledge=Knowledge(result="x" * 60_000),
            )
            for i in range(40)
        ]  # fmt: skip
        line.submit(work(1_000, big))
        task = asyncio.create_task(line.run())
        while not any(one.is_last and one.inputs for one in received(sent)):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert max(map(len, sent)) < WORK_BYTES_PER_MESSAGE_MAX + 70_000
        got = received(sent)
        assert [one.work.branch_index for one in got if one.is_last] == [*range(WORKS_PER_MESSAGE_MAX + 1), 1_000]
        parts = [one for one in got if one.work.branch_index == 1_000]
        assert [item.branch_index for part in parts for item in part.inputs] == list(range(40))

    asyncio.run(main())


def test_work_that_waits_for_a_later_batch_can_be_cancelled() -> None:
    async def main() -> None:
        sent: list[bytes] = []
        stopped: list[bytes] = []
        answered = asyncio.Event()

        async def request(method: str, payload: bytes, timeout_s: float) -> bytes:
            sent.append(payload)
            await answered.wait()
            return b""

        line = Line(request, lambda topic, payload: stopped.append(payload))
        for index in range(WORKS_PER_MESSAGE_MAX + 3):
            line.submit(work(index))
        task = asyncio.create_task(line.run())
        while not sent:
            await asyncio.sleep(0)
        for index in (WORKS_PER_MESSAGE_MAX, WORKS_PER_MESSAGE_MAX + 2):
            line.cancel(SESSION, index, 1)
        answered.set()
        while len(sent) < 2:
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert stopped == []
        assert [one.work.branch_index for one in received(sent)] == [
            *range(WORKS_PER_MESSAGE_MAX), WORKS_PER_MESSAGE_MAX + 1,
        ]  # fmt: skip

    asyncio.run(main())


def test_an_answer_begun_while_the_last_one_ends_is_kept_and_one_for_nobody_is_not() -> None:
    async def main() -> None:
        mesh = FakeMesh()
        attached = True
        gate = asyncio.Event()
        gate.set()
        ends: list[socket.socket] = []

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            await gate.wait()
            ours, theirs = socket.socketpair()
            if attached:
                theirs.send(b"x")
            ends.append(theirs)
            return await asyncio.open_connection(sock=ours)

        Proxy(mesh, connect, lambda peer: attached)

        async def open_one() -> HttpPart:
            opening = messages.encode(HttpOpen(stream=next(numbers), request=b"GET"))
            return messages.decode(await mesh.servers[messages.HTTP_OPEN](OTHER, opening), HttpPart)

        numbers = itertools.count(1)
        first = await open_one()
        gate.clear()
        second = asyncio.create_task(open_one())
        await asyncio.sleep(0)
        await mesh.servers[messages.HTTP_CLOSE](OTHER, messages.encode(first.stream))
        gate.set()
        part = await second
        assert part.data == b"x"
        await mesh.servers[messages.HTTP_CLOSE](OTHER, messages.encode(part.stream))
        gate.clear()
        third = asyncio.create_task(open_one())
        await asyncio.sleep(0)
        attached = False
        gate.set()
        with pytest.raises(UplinkError):
            await third
        ends[-1].setblocking(False)
        await asyncio.sleep(0)
        assert await asyncio.get_running_loop().sock_recv(ends[-1], 1) == b"", "closed"
        for end in ends:
            end.close()

    asyncio.run(main())
