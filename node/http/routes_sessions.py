"""Sessions, branches and insights: submit, read, wait, cancel."""

import asyncio

import msgspec
from aiohttp import web

from node.http import limits, render
from node.http.answers import answer, answer_reading, rendered
from node.http.arguments import FRESHNESS, Arguments
from node.http.keys import SERVICE
from node.http.problems import Problem
from node.service import explaining
from node.service.errors import ServiceError
from node.service.submission import BODY_BYTES_MAX, too_large
from storage.ids import BranchId, SessionId


async def submit_session(request: web.Request) -> web.Response:
    is_dry_run = Arguments(request.query, ("dry_run",)).flag("dry_run")
    key = request.headers.get("Idempotency-Key")
    if key is not None and not 0 < len(key.strip()) <= limits.KEY_CHARACTERS_MAX:
        raise ServiceError(
            "invalid_argument", "The Idempotency-Key is empty or too long.",
            f"Use a UUID, or any text of 1 to {limits.KEY_CHARACTERS_MAX} characters that is new for each session.",
        )  # fmt: skip
    service, body = request.app[SERVICE], await read_body(request)
    if is_dry_run:
        submission = await service.parse(body)
        return answer(request, await explaining.dry_run(service, submission))
    result = await service.submit(body, None if key is None else key.strip())
    return answer(
        request, render.submitted(result),
        status=201 if result.created else 200, headers={"Location": f"/v1/sessions/{result.command.session_id}"},
    )  # fmt: skip


async def list_sessions(request: web.Request) -> web.Response:
    arguments = Arguments(request.query, ("after", "limit", "status", *FRESHNESS))
    reading = await request.app[SERVICE].list_sessions(
        after=arguments.text("after"), limit=arguments.limit(), status=arguments.status(), wanted=arguments.wanted()
    )
    page = reading.value
    rows = await rendered(len(page.rows), lambda: [render.session(row) for row in page.rows])
    return answer_reading(request, {"sessions": rows, "next": page.next}, reading)


async def get_session(request: web.Request) -> web.Response:
    arguments = Arguments(request.query, ("wait", "until", "rev", *FRESHNESS))
    service, session_id = request.app[SERVICE], _session_id(request)
    wait_s = arguments.wait_s()
    if wait_s is None:
        reading = await service.get_session(session_id, arguments.wanted())
    else:
        reading = await service.wait_session(session_id, wait_s, arguments.until(), arguments.rev(), arguments.wanted())
    return answer_reading(request, {"session": render.session(reading.value)}, reading)


async def cancel_session(request: web.Request) -> web.Response:
    Arguments(request.query, ())
    reason = "cancelled by a client"
    body = await read_body(request)
    if body.strip():
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ServiceError("malformed_json", f"The body is not JSON: {error}.", "Send {} or nothing.") from None
        if not isinstance(document, dict) or not isinstance(document.get("reason", ""), str):
            raise ServiceError("invalid_argument", "The body must be an object.", 'Send {"reason": "why"} or nothing.')
        for name in document:
            if name != "reason":
                raise ServiceError("unknown_key", f"{name[:80]}: there is no such key.", "Allowed: reason.")
        reason = document.get("reason") or reason
    reading = await request.app[SERVICE].cancel(_session_id(request), reason)
    return answer_reading(request, {"session": render.session(reading.value)}, reading)


async def list_branches(request: web.Request) -> web.Response:
    arguments = Arguments(request.query, ("after", "limit", "status", *FRESHNESS))
    reading = await request.app[SERVICE].list_branches(
        _session_id(request), after=arguments.text("after"), limit=arguments.limit(), status=arguments.status(),
        wanted=arguments.wanted(),
    )  # fmt: skip
    page = reading.value
    rows = await rendered(len(page.rows), lambda: [render.branch(row, live) for row, live in page.rows])
    return answer_reading(request, {"branches": rows, "next": page.next}, reading)


async def get_branch(request: web.Request) -> web.Response:
    arguments = Arguments(request.query, FRESHNESS)
    branch_id = BranchId(request.match_info["branch_id"].lower())
    reading = await request.app[SERVICE].get_branch(branch_id, arguments.wanted())
    return answer_reading(request, render.branch_detail(reading.value), reading)


async def why_branch(request: web.Request) -> web.Response:
    arguments = Arguments(request.query, FRESHNESS)
    reading = await explaining.why(request.app[SERVICE], request.match_info["branch_id"].lower(), arguments.wanted())
    return answer_reading(request, reading.value, reading)


async def get_branch_at(request: web.Request) -> web.Response:
    arguments = Arguments(request.query, FRESHNESS)
    text = request.match_info["index"]
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ServiceError("unknown_branch", f"{text[:80]!r} is not an index.", "Branches are numbered from 0.")
    reading = await request.app[SERVICE].get_branch_at(_session_id(request), int(text), arguments.wanted())
    return answer_reading(request, render.branch_detail(reading.value), reading)


async def get_insight(request: web.Request) -> web.Response:
    arguments = Arguments(request.query, ("after", "limit", *FRESHNESS))
    reading = await request.app[SERVICE].get_insight(
        _session_id(request), after=arguments.text("after"), limit=arguments.limit(), wanted=arguments.wanted()
    )
    return answer_reading(request, render.insight_detail(reading.value), reading)


async def list_insights(request: web.Request) -> web.Response:
    arguments = Arguments(request.query, ("after", "limit", *FRESHNESS))
    reading = await request.app[SERVICE].list_insights(
        after=arguments.text("after"), limit=arguments.limit(), wanted=arguments.wanted()
    )
    page = reading.value
    rows = await rendered(len(page.rows), lambda: [render.insight(row) for row in page.rows])
    return answer_reading(request, {"insights": rows, "next": page.next}, reading)


async def read_body(request: web.Request) -> bytes:
    """The whole body, bounded in size and time. Raises `too_large` (before reading, if announced), `body_timeout`."""
    if request.content_length is not None and request.content_length > BODY_BYTES_MAX:
        raise too_large(request.content_length)
    if request.content.is_eof():  # all of it is here: nothing to wait for
        return await request.read()
    try:
        async with asyncio.timeout(limits.BODY_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large(request.content_length) from None
    except TimeoutError:
        raise Problem(
            "body_timeout", f"The body did not arrive within {limits.BODY_S:g} s.", "Send it faster, or split it."
        ) from None


def _session_id(request: web.Request) -> SessionId:
    return SessionId(request.match_info["session_id"].lower())
