"""Changing members: who votes, who drains, who leaves."""

import msgspec
from aiohttp import web

from node.http.answers import answer
from node.http.arguments import Arguments
from node.http.keys import SERVICE
from node.http.routes_sessions import read_body
from node.service import draining, voting
from node.service.errors import ServiceError


class MemberChange(msgspec.Struct, forbid_unknown_fields=True):
    action: str
    by: str = ""
    dry_run: bool = False
    grace_s: float | None = None


async def change_member(request: web.Request) -> web.Response:
    Arguments(request.query, ())
    try:
        wanted = msgspec.json.decode(await read_body(request), type=MemberChange)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ServiceError(
            "invalid_argument", f"The body cannot be used: {error}.",
            'Send {"action": "remove", "dry_run": true}; with "replace" also "by".',
        ) from None  # fmt: skip
    service, member = request.app[SERVICE], request.match_info["member"]
    if wanted.by == member:
        raise ServiceError("invalid_argument", f"{member[:80]} cannot take its own place.", 'Name another one in "by".')
    if wanted.action in draining.ACTIONS:
        done = await draining.change(service, member, wanted.action, wanted.grace_s, is_dry_run=wanted.dry_run)
    else:
        done = await voting.change(service, member, wanted.action, wanted.by, is_dry_run=wanted.dry_run)
    return answer(request, done)
