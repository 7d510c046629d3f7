"""JSON responses of the API."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from node.http.keys import SERVICE
from node.http.problems import Problem
from node.http.render import freshness
from node.service.readings import Reading
from node.service.service import INLINE_ROWS_MAX

T = TypeVar("T")

_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}
_ENCODER = msgspec.json.Encoder(enc_hook=str)


def wants_pretty(request: web.Request) -> bool:
    return request.rel_url.query.get("pretty", "0") in ("", "1", "true")


def answer(
    request: web.Request, document: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    body = _ENCODER.encode(document)
    if wants_pretty(request):
        body = msgspec.json.format(body, indent=2) + b"\n"
    return web.Response(body=body, status=status, headers=_HEADERS if headers is None else {**_HEADERS, **headers})


def answer_problem(problem: Problem, *, pretty: bool = False) -> web.Response:
    body, headers = problem.rendered(pretty=pretty)
    return web.Response(body=body, status=problem.status, headers=headers)


def answer_reading(request: web.Request, document: dict[str, Any], reading: Reading[Any]) -> web.Response:
    """With how fresh it is; and, if this node's replica has failed for good, that nothing newer will come."""
    document = {**document, **freshness(reading)}
    if (failure := request.app[SERVICE].replica_failure) is not None:
        document["replica_stopped"] = failure
    return answer(request, document)


async def rendered(count: int, build: Callable[[], T]) -> T:
    """`build` renders so many rows: a long page on another thread, at about 20 microseconds a row."""
    return build() if count <= INLINE_ROWS_MAX else await asyncio.to_thread(build)
