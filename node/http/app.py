"""The application: the table of routes, and what happens around every request.

Around a request, from outside: bounded number at once, guard (host, origin, token), route, and every error becomes a
problem document. What is not foreseen is logged once with its story, and answered `internal` without it.
"""

import difflib
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from node.http import limits, routes_members, routes_node, routes_sessions
from node.http.answers import answer_problem, wants_pretty
from node.http.backup import get_backup
from node.http.guard import Guard
from node.http.index import get_index, get_openapi
from node.http.keys import GUARD, REQUESTS, SERVICE, RequestCounter
from node.http.problems import Problem
from node.http.routes import ROUTES
from node.http.sse import watch_events
from node.service.errors import ServiceError
from node.service.service import NodeService
from node.service.submission import BODY_BYTES_MAX

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HANDLERS: Final[dict[str, Handler]] = {
    "index": get_index,
    "openapi": get_openapi,
    "status": routes_node.get_status,
    "health": routes_node.get_health,
    "readiness": routes_node.get_readiness,
    "submit_session": routes_sessions.submit_session,
    "list_sessions": routes_sessions.list_sessions,
    "get_session": routes_sessions.get_session,
    "cancel_session": routes_sessions.cancel_session,
    "list_branches": routes_sessions.list_branches,
    "get_branch_at": routes_sessions.get_branch_at,
    "get_insight": routes_sessions.get_insight,
    "get_branch": routes_sessions.get_branch,
    "why_branch": routes_sessions.why_branch,
    "list_insights": routes_sessions.list_insights,
    "list_members": routes_node.list_members,
    "get_trust": routes_node.get_trust,
    "change_member": routes_members.change_member,
    "list_rituals": routes_node.list_rituals,
    "get_ritual": routes_node.get_ritual,
    "watch_events": watch_events,
    "get_backup": get_backup,
}
"""Route name -> handler; a test holds it to the table of routes."""


def build_app(service: NodeService, guard: Guard | None) -> web.Application:
    """Without a guard for those who have passed one elsewhere."""
    app = web.Application(middlewares=[answer_errors], client_max_size=BODY_BYTES_MAX)
    app[SERVICE] = service
    if guard is not None:
        app[GUARD] = guard
    app[REQUESTS] = RequestCounter()
    for route in ROUTES:
        app.router.add_route(route.method, route.path, HANDLERS[route.name])
    return app


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    counter = request.app[REQUESTS]
    is_counted = request.method != "GET" or ("wait" not in request.rel_url.query and request.path != "/v1/events")
    counter.open += is_counted
    try:
        if counter.open > limits.REQUESTS_MAX:
            counter.refused += 1
            raise ServiceError("overloaded", f"{limits.REQUESTS_MAX:,} requests are being answered.", "Try again.")
        if (guard := request.app.get(GUARD)) is not None:
            guard.check(request)
        return await handler(request)
    except Problem as problem:
        found = problem
    except ServiceError as error:
        found = Problem.of(error)
    except web.HTTPNotFound:
        found = _unknown_route(request)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        found = Problem(
            "method_not_allowed", f"{request.method[:20]} is not allowed at {request.path[:200]}.",
            f"Allowed: {allowed}.", headers={"Allow": allowed},
        )  # fmt: skip
    except web.HTTPException as error:
        found = Problem("bad_request", error.reason, "See GET /.", status=error.status)
    except ConnectionError:
        raise  # the client is gone: nobody to answer
    except Exception:
        log.exception("request_failed", method=request.method, path=request.path)
        found = Problem("internal", "This is a fault of meshnode.", "The log of this node has the story; report it.")
    finally:
        counter.open -= is_counted
    return answer_problem(found, pretty=wants_pretty(request))


def _unknown_route(request: web.Request) -> Problem:
    paths = sorted({route.path for route in ROUTES})
    near = difflib.get_close_matches(request.path, paths, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return Problem(
        "unknown_route", f"There is nothing at {request.path[:200]}.", f"{hint}GET / lists what there is.",
        values={"nearest": near},
    )  # fmt: skip
