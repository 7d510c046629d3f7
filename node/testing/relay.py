"""Connections between daemons, cut and slowed on demand, without root: they dial each other through this relay.

A daemon that is started by `node.testing.relayed` says to the relay who it is and where it wants to go, and then goes
on as if it had arrived there. Who is cut off is not told: bytes and new connections wait, as in a network that drops
packets and a TCP that repeats them, and go on when it is healed.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping

from mesh.links.listener import stop_accepting
from node.testing.relayed import MADE

CHUNK_BYTES = 64 * 1024
CHUNKS_WAITING_MAX = 32
"""Of one direction of one connection: about what kernels would hold."""


class Relay:
    """One for a mesh, on a thread of its own. `names`: port -> the node that listens there."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._cut: set[tuple[str, str]] = set()
        self._delay_s: dict[tuple[str, str], float] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="mesh-relay", daemon=True)
        self._thread.start()
        self._is_up.wait()

    address: tuple[str, int]

    def cut(self, source: str, target: str) -> None:
        """Nothing goes from the one to the other."""
        self._change(lambda: self._cut.add((source, target)))

    def slow(self, source: str, target: str, delay_s: float) -> None:
        def change() -> None:
            self._delay_s[source, target] = delay_s

        self._change(change)

    def heal(self) -> None:
        def change() -> None:
            self._cut.clear()
            self._delay_s.clear()

        self._change(change)

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    # -- on the thread --

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # which also ends what is being accepted
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = server.sockets[0].getsockname()[:2]
        self._is_up.set()
        await self._stopping.wait()
        await stop_accepting(server)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _change(self, do: Callable[[], object]) -> None:
        done = threading.Event()

        def change() -> None:
            do()
            self._changed.set()
            self._changed = asyncio.Event()
            done.set()

        self._loop.call_soon_threadsafe(change)
        done.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        task = asyncio.create_task(self._join(reader, writers), name="joined connections")
        self._tasks.add(task)

        def end(task: asyncio.Task[None]) -> None:  # also of a task that was cancelled before it began
            for one in writers:
                one.transport.abort()
            self._tasks.discard(task)

        task.add_done_callback(end)

    async def _join(self, reader: asyncio.StreamReader, writers: list[asyncio.StreamWriter]) -> None:
        writer = writers[0]
        try:
            source, host, port = (await reader.readline()).decode().split()
            target = self._names.get(int(port), "")
            await self._until_open(source, target)
            await self._until_open(target, source)
            there, back = await asyncio.open_connection(host, int(port))
            writers.append(back)
            writer.write(MADE)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._carry(reader, back, source, target))
                directions.create_task(self._carry(there, writer, target, source))
        except* (OSError, ValueError, asyncio.CancelledError):
            pass  # refused, reset by one side, or the end of the test: the other side sees it

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str, target: str
    ) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_WAITING_MAX)

        async def take() -> None:
            while True:
                data = b""
                with contextlib.suppress(ConnectionError):  # the end of a process comes after what it said
                    data = await reader.read(CHUNK_BYTES)
                await waiting.put((loop.time() + self._delay_s.get((source, target), 0.0), data))
                if not data:
                    return

        async with asyncio.TaskGroup() as group:
            group.create_task(take())
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(due - loop.time(), 0.0))
                await self._until_open(source, target)
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    async def _until_open(self, source: str, target: str) -> None:
        while (source, target) in self._cut:
            await self._changed.wait()
