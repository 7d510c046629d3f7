"""Opens and closes the port: `HttpServer` is the thin shell around the application.

Bounded: open connections (refused beyond a cap), idle and half-sent requests (closed after a while, which also ends
those who send a header byte by byte), header sizes; bodies and writes have deadlines of their own.
"""

import asyncio
import errno
import os
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_request import BaseRequest

from mesh.links.listener import stop_accepting
from node.http import limits
from node.http.answers import answer_problem
from node.http.app import build_app
from node.http.guard import Guard, HttpConfigError
from node.http.problems import Problem
from node.service.service import NodeService

log = structlog.get_logger()


class HttpServer:
    """`start` answers the address in use (port 0 takes any). `stop` gives open requests a moment, then closes them;
    call `NodeService.stop` first, so that watchers and waiters end by themselves."""

    def __init__(
        self,
        service: NodeService,
        *,
        bind: str,
        port: int,
        token: str | None = None,
        allow_unauthenticated: bool = False,
    ) -> None:
        """Raises `HttpConfigError` if the port would be open to everybody."""
        self._bind = bind
        self._port = port
        self._app = build_app(service, Guard(bind, token, allow_unauthenticated))
        self._runner: _Runner | None = None
        self._listening: asyncio.Server | None = None

    async def start(self) -> tuple[str, int]:
        """Raises `HttpConfigError` `bind_failed`."""
        runner = _Runner(
            self._app, access_log=None, handle_signals=False, keepalive_timeout=limits.IDLE_S,
            shutdown_timeout=limits.SHUTDOWN_S, max_line_size=limits.HEADER_LINE_BYTES_MAX,
            max_field_size=limits.HEADER_LINE_BYTES_MAX, max_headers=limits.HEADERS_MAX, auto_decompress=False,
        )  # fmt: skip
        await runner.setup()
        assert runner.server is not None
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                runner.server, self._bind, self._port, backlog=128
            )
        except (OSError, OverflowError) as error:
            await runner.cleanup()
            raise HttpConfigError("bind_failed", _cannot_listen(self._bind, self._port, error)) from error
        self._runner = runner
        host, port = self._listening.sockets[0].getsockname()[:2]
        return host, port

    async def stop(self) -> None:
        if self._listening is not None:
            await stop_accepting(self._listening)
            self._listening = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


def _cannot_listen(bind: str, port: int, error: OSError | OverflowError) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"port {port} on {bind} is in use: stop the other program or set another [http] port"
    if number == errno.EACCES:
        return f"port {port} on {bind} is for privileged users: set [http] port to one above 1023"
    # asyncio's own text repeats the address; the system's is enough
    reason = os.strerror(number) if number is not None and number > 0 else str(error)
    return f"cannot listen on {bind} port {port}: {reason}; check [http] bind and port"


class _Runner(web.AppRunner):
    """Puts our own server in place of the usual one, with the same settings."""

    async def _make_server(self) -> web.Server:
        usual = await super()._make_server()
        return _BoundedServer(
            usual.request_handler,
            request_factory=usual.request_factory,
            loop=asyncio.get_running_loop(),
            **usual._kwargs,
        )


class _BoundedServer(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ("_server",)

    def __init__(self, server: _BoundedServer, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._server.connections) > limits.CONNECTIONS_MAX:
            log.warning("http_connection_refused", connections_max=limits.CONNECTIONS_MAX)
            self.force_close()

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What the parser refused never reaches the application: the same kind of answer, and no log line, because
        anybody may send garbage."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun")
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("request_failed", path=request.path, exc_info=exc)
            problem = Problem("internal", "This is a fault of meshnode.", "The log of this node has the story.")
        else:
            problem = Problem(
                "bad_request", (message or "The request is malformed.")[:500], "See GET /.", status=status
            )
        response = answer_problem(problem)
        response.force_close()
        return response
