"""The status port of a Leaf: `/status`, `/healthz` and `/readyz` are answered here, everything else by the parent.

Its own small server, because aiohttp would take a quarter of what a Leaf may weigh. A request is read whole, judged by
the same guard as on other nodes, and its bytes go up; those of the answer come down part by part, as the client takes
them, so long-polls, event streams and backups work as on the parent itself.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

import msgspec
import structlog

from mesh.errors import MeshError
from mesh.links.listener import stop_accepting
from mesh.supervise import Supervisor
from node.http.guard import Guard, HttpConfigError
from node.http.problems import Problem
from node.leaf import limits
from node.leaf.request import Malformed, Passage, Request, read_request
from node.uplinks import messages
from node.uplinks.messages import HttpOpen, HttpPart
from storage.errors import CodecError

Ask = Callable[[str, bytes, float], Awaitable[bytes]]
"""A request to the parent. Raises MeshError, also when there is no parent."""

Local = Callable[[], tuple[int, dict[str, Any]]]
"""Status and document of what is answered here."""

log = structlog.get_logger()


class Client:
    """One connection. While an answer is passed on it watches for the client's hanging up, and keeps what it says
    instead: a byte of its next request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.is_gone = asyncio.Event()
        self._ahead = b""
        self._watching: asyncio.Task[None] | None = None

    async def read_head(self) -> bytes:
        """Up to the empty line."""
        rest = await self.reader.readuntil(b"\r\n\r\n")
        ahead, self._ahead = self._ahead, b""
        return ahead + rest

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        self._watching = asyncio.create_task(self._watch(), name="client watched")
        try:
            yield
        finally:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)  # only then somebody else may read

    async def _watch(self) -> None:
        with contextlib.suppress(OSError):
            self._ahead = await self.reader.read(1)
        if not self._ahead:
            self.is_gone.set()

    async def write(self, data: bytes) -> None:
        """Waits while the client takes nothing. Raises TimeoutError, OSError."""
        self.writer.write(data)
        async with asyncio.timeout(limits.WRITE_S):
            await self.writer.drain()


class LeafHttp:
    """`start` answers the address in use."""

    def __init__(self, guard: Guard, bind: str, port: int, local: dict[str, Local], ask: Ask) -> None:
        self._guard = guard
        self._bind = bind
        self._port = port
        self._local = local
        self._ask = ask
        self._server: asyncio.Server | None = None
        self._tasks = Supervisor(log)
        self._open = 0
        self._numbers = itertools.count(1)

    async def start(self) -> tuple[str, int]:
        """Raises HttpConfigError `bind_failed`."""
        try:
            self._server = await asyncio.start_server(
                self._accept, self._bind, self._port, limit=limits.HEAD_BYTES_MAX, backlog=limits.CONNECTIONS_MAX
            )
        except (OSError, OverflowError) as error:
            raise HttpConfigError(
                "bind_failed",
                f"http.bind = {self._bind!r}, http.port = {self._port}: cannot listen there: {error}; "
                "choose another port, or stop whoever uses it",
            ) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def stop(self) -> None:
        if self._server is not None:
            await stop_accepting(self._server)
        await self._tasks.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._tasks.spawn(self._attend(Client(reader, writer)), "http client")
        if task is None:
            writer.transport.abort()
            return
        self._open += 1

        def end(task: asyncio.Task[None]) -> None:  # also of a task that was cancelled before it began
            self._open -= 1
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()  # what is left would wait for a client that takes nothing
            else:
                writer.close()

        task.add_done_callback(end)

    async def _attend(self, client: Client) -> None:
        # Gone, or too slow.
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            if self._open <= limits.CONNECTIONS_MAX:
                while await self._serve(client):
                    pass

    async def _serve(self, client: Client) -> bool:
        """One request; whether another may follow."""
        try:
            async with asyncio.timeout(limits.IDLE_S):
                request = read_request(await client.read_head())
            if request.body_bytes > limits.BODY_BYTES_MAX:
                raise Malformed(f"a body of {request.body_bytes} bytes; at most {limits.BODY_BYTES_MAX}", 413)
            self._guard.check(request)
        except asyncio.LimitOverrunError:
            return await self._refuse(client, Malformed(f"a head of more than {limits.HEAD_BYTES_MAX} bytes", 431))
        except Malformed as error:
            return await self._refuse(client, error)
        except Problem as problem:
            await self._answer_problem(client, problem, keeps_open=False)
            return False
        if request.headers.get("expect", "").lower() == "100-continue":
            client.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async with asyncio.timeout(limits.BODY_S):
            body = await client.reader.readexactly(request.body_bytes)
        local = self._local.get(request.path)
        if local is None or request.method not in ("GET", "HEAD"):
            return await self._pass_on(request, body, client)
        status, document = local()
        content = msgspec.json.encode(document, enc_hook=str)
        if "pretty" in request.query:
            content = msgspec.json.format(content, indent=2) + b"\n"
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
        await self._answer(
            client, status, headers, content, keeps_open=request.keeps_open, has_body=request.method == "GET"
        )
        return request.keeps_open

    async def _pass_on(self, request: Request, body: bytes, client: Client) -> bool:
        stream = next(self._numbers)
        opening = messages.encode(HttpOpen(stream=stream, request=request.passed_on(body)))
        async with client.watched():
            try:
                part = await self._part(messages.HTTP_OPEN, opening, client)
                return part is not None and await self._relay(request, part, client)
            except (MeshError, CodecError) as error:
                problem = Problem(
                    "unavailable", f"The parent of this Leaf cannot be asked: {error}.",
                    "See /status of this node; ask a Core or Edge node.",
                )  # fmt: skip
                await self._answer_problem(client, problem, keeps_open=request.keeps_open)
                return request.keeps_open
            finally:
                self._tasks.spawn(self._close(stream), "close an answer")

    async def _relay(self, request: Request, part: HttpPart, client: Client) -> bool:
        """Until the answer is over, the client is gone, or the parent is."""
        passage = Passage(request.method)
        try:
            while True:
                data = passage.take(part.data)
                if data:
                    await client.write(data)
                if passage.is_whole:
                    return request.keeps_open
                if part.is_end:
                    return False
                more = await self._part(messages.HTTP_MORE, messages.encode(part.stream), client)
                if more is None:
                    return False
                part = more
        except (MeshError, CodecError, Malformed) as error:
            log.info("answer_broken_off", path=request.path, reason=str(error))
            return False

    async def _part(self, method: str, payload: bytes, client: Client) -> HttpPart | None:
        """What the parent answers, or nothing when the client hangs up first."""
        asking = asyncio.ensure_future(self._ask(method, payload, limits.HTTP_ANSWER_S))
        gone = asyncio.create_task(client.is_gone.wait(), name="client gone")
        try:
            await asyncio.wait((asking, gone), return_when=asyncio.FIRST_COMPLETED)
            return messages.decode(await asking, HttpPart) if asking.done() else None
        finally:
            asking.cancel()
            gone.cancel()
            await asyncio.gather(asking, gone, return_exceptions=True)

    async def _close(self, stream: int) -> None:
        with contextlib.suppress(MeshError):
            await self._ask(messages.HTTP_CLOSE, messages.encode(stream), limits.ATTACH_S)

    async def _refuse(self, client: Client, error: Malformed) -> bool:
        problem = Problem("bad_request", f"{error}.", "See GET /.", status=error.status)
        await self._answer_problem(client, problem, keeps_open=False)
        return False

    async def _answer_problem(self, client: Client, problem: Problem, *, keeps_open: bool) -> None:
        body, headers = problem.rendered()
        await self._answer(client, problem.status, headers, body, keeps_open=keeps_open)

    async def _answer(
        self, client: Client, status: int, headers: dict[str, str], body: bytes, *, keeps_open: bool,
        has_body: bool = True,
    ) -> None:  # fmt: skip
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines.append(f"Connection: {'keep-alive' if keeps_open else 'close'}")
        await client.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body if has_body else b""))
