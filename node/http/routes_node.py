"""The node itself: status, health, readiness, members, rituals, and what there is to ask."""

from aiohttp import web

from consensus.state import queries
from consensus.state.rows import Member
from node.http import render
from node.http.answers import answer, answer_reading
from node.http.arguments import FRESHNESS, Arguments
from node.http.keys import SERVICE
from node.http.problems import Problem
from node.service import draining, secrets, status, voting
from node.service.errors import ServiceError
from node.service.ports import GroupStatus
from node.service.readings import STALE
from storage.ids import NodeId


async def get_status(request: web.Request) -> web.Response:
    """Answered whatever happens, unless a freshness is asked for that this node cannot give."""
    service = request.app[SERVICE]
    wanted = Arguments(request.query, FRESHNESS).wanted()
    if wanted != STALE:
        await service.fresh(wanted)
    document = status.document(service, wanted.level)
    document["peers"] = [{**peer, **render.software(peer["software"])} for peer in document["peers"]]
    return answer(request, document)


async def get_health(request: web.Request) -> web.Response:
    """200 while the process can do its work at all; a supervisor restarts it otherwise."""
    return _verdict(request, status.health(request.app[SERVICE]))


async def get_readiness(request: web.Request) -> web.Response:
    """200 while the mesh makes progress as seen from here; a load balancer goes elsewhere otherwise."""
    return _verdict(request, status.readiness(request.app[SERVICE]))


async def get_trust(request: web.Request) -> web.Response:
    """Asks every linked node, so that what is answered is so now."""
    reading = await secrets.gather(request.app[SERVICE], Arguments(request.query, FRESHNESS).wanted())
    return answer_reading(request, {"nodes": reading.value}, reading)


async def list_members(request: web.Request) -> web.Response:
    arguments = Arguments(request.query, FRESHNESS)
    service = request.app[SERVICE]
    reading = await service.members(arguments.wanted())
    accepted = {**secrets.linked_here(service.mesh), service.facts.node_id: service.mesh.trust_status().accepted}
    consensus = service.status_or_none
    running = service.read(lambda txn: draining.running_by_node(queries.leases(txn)))
    seen = {peer.node_id: peer.address for peer in service.mesh.peers()}
    members = [
        {
            **render.to_json(row),
            **render.software(row.software),
            "address": _address(row, seen.get(row.node_id, "")),
            "secrets": accepted.get(row.node_id),
            "standing": None if consensus is None else _standing(row, consensus, service.facts.node_id),
            "running": running[row.node_id],
            "draining": draining.state_of(row, running),
        }
        for row in reading.value
    ]
    return answer_reading(request, {"members": members}, reading)


def _address(member: Member, seen: str) -> str:
    """Of one that takes links on all its addresses: that under which it is known here."""
    host, _, port = member.address.rpartition(":")
    seen_host, _, seen_port = seen.rpartition(":")
    return f"{seen_host}:{seen_port if port == '0' else port}" if host == "auto" and seen_host else member.address


def _standing(member: Member, consensus: GroupStatus, own: NodeId) -> str:
    has_left = draining.has_left(member, consensus, own)
    return voting.standing_of(consensus, member.node_id, has_left=has_left)


async def list_rituals(request: web.Request) -> web.Response:
    arguments = Arguments(request.query, FRESHNESS)
    reading = await request.app[SERVICE].rituals(arguments.wanted())
    return answer_reading(
        request,
        {"rituals": [ritual.to_json() for ritual in reading.value], "problems": request.app[SERVICE].ritual_problems()},
        reading,
    )


async def get_ritual(request: web.Request) -> web.Response:
    arguments = Arguments(request.query, FRESHNESS)
    try:
        reading = await request.app[SERVICE].ritual(request.match_info["name"], arguments.wanted())
    except ServiceError as error:
        if error.code != "unknown_ritual":
            raise
        raise Problem.of(error, status=404) from error
    return answer_reading(request, {"ritual": reading.value.to_json()}, reading)


def _verdict(request: web.Request, checks: list[status.Check]) -> web.Response:
    is_ok = all(check.ok for check in checks)
    document = {
        "ok": is_ok,
        "checks": [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks],
    }
    if "application/json" in request.headers.get("Accept", "*/*") or "*/*" in request.headers.get("Accept", "*/*"):
        return answer(request, document, status=200 if is_ok else 503)
    lines = [f"{'ok ' if check.ok else 'NOT'} {check.name}: {check.detail}" for check in checks]
    return web.Response(text="\n".join(lines) + "\n", status=200 if is_ok else 503)
