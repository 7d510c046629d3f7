"""`GET /v1/events`: what happens in the mesh, as server-sent events with ids that mean the same on every node.

A client resumes with `Last-Event-ID` (browsers do so by themselves) or `?after=`, here or on another node, without gap
or repeat. Without either it sees what comes from now on; `?after=0` starts at the oldest event kept. With
`?session=ID` other sessions' events are left out. If events were pruned between the client's id and the oldest one
kept, the answer is 410 `events_gone`; if a slow client falls behind while it watches, the stream ends with an event
`gap` that says so.
"""

import asyncio
import socket
from contextlib import aclosing
from typing import Any

import msgspec
import structlog
from aiohttp import ClientConnectionResetError, web

from consensus.state.events import Numbered
from node.http import limits, render
from node.http.arguments import Arguments, parse_event_id
from node.http.keys import SERVICE
from node.service.errors import ServiceError
from node.service.watching import WHOLE_INDEX, Cursor

log = structlog.get_logger()

RETRY_MS = 1_000
"""After which a browser reconnects."""


async def watch_events(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    arguments = Arguments(request.query, ("after", "session"))
    session = (arguments.text("session") or "").lower() or None
    last_id = request.headers.get("Last-Event-ID")
    name = "Last-Event-ID" if last_id is not None else "after"
    text = last_id if last_id is not None else arguments.text("after")
    cursor = service.newest_cursor() if text is None else parse_event_id(text, name)
    service.check_cursor(cursor)

    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    await response.prepare(request)
    if request.transport is not None:
        bound_buffers(request.transport)
    try:
        # tells the client where the stream starts, so that even one that never saw an event resumes without a gap
        await _write(response, f": watching from here\nretry: {RETRY_MS}\nid: {_cursor_id(cursor)}\n\n".encode())
        async with aclosing(service.watch(cursor, limits.HEARTBEAT_S)) as pages:
            async for page in pages:
                chunk = b"".join(_frame(item) for item in page.events if session is None or _is_of(item, session))
                if chunk:
                    await _write(response, chunk)
                else:  # nothing for this client, but seen: its place moves on
                    await _write(response, f": still here\nid: {_cursor_id(page.cursor)}\n\n".encode())
        await _write(response, _closing("stopping", "This node is stopping; reconnect to another one."))
    except ServiceError as error:
        await _write_last(response, _closing("gap", error.detail, code=error.code, fix=error.fix))
    except TimeoutError:
        service.hub.count_slow()
        log.warning("watcher_too_slow", remote=request.remote, write_s=limits.WRITE_S)
        if request.transport is not None:
            request.transport.abort()
    except ClientConnectionResetError:
        pass  # gone; it will resume
    return response


def bound_buffers(transport: asyncio.Transport) -> None:
    """Here and in the kernel, which would otherwise keep megabytes for each client that does not read."""
    transport.set_write_buffer_limits(high=limits.STREAM_BUFFER_BYTES)
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.STREAM_BUFFER_BYTES)


async def _write(response: web.StreamResponse, chunk: bytes) -> None:
    async with asyncio.timeout(limits.WRITE_S):
        await response.write(chunk)


async def _write_last(response: web.StreamResponse, chunk: bytes) -> None:
    try:
        await _write(response, chunk)
    except (TimeoutError, ClientConnectionResetError):
        return  # nobody is listening any more


def _frame(numbered: Numbered) -> bytes:
    document = render.event(numbered)
    data = msgspec.json.encode(document)
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (document["id"].encode(), document["event"].encode(), data)


def _closing(kind: str, detail: str, **values: Any) -> bytes:
    data = msgspec.json.encode({"event": kind, "detail": detail, **values})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _cursor_id(cursor: Cursor) -> str:
    return str(cursor[0]) if cursor[1] >= WHOLE_INDEX else f"{cursor[0]}.{cursor[1]}"


def _is_of(numbered: Numbered, session: str) -> bool:
    return getattr(numbered.event, "session_id", None) == session
