"""What this node knows of the others: for the status page, and what an operator should be told of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from consensus.state.rows import Member
from node.scheduler.judgement import Evidence
from node.service.service import NodeService
from storage.ids import NodeId


def document(
    service: NodeService, members: Sequence[Member], names: Mapping[NodeId, str], *, is_leading: bool
) -> dict[str, Any] | None:
    """Of every other member: how its link stands, and on the leader what others say of theirs. None before this node
    has links."""
    if service.lookout is None:
        return None
    evidence = _evidence(service)
    lags, lag_s_max = service.mesh.lags()
    rows = []
    for member in members:
        if member.node_id == service.facts.node_id or member.status == "left":
            continue
        link = evidence.links.get(member.node_id)
        rows.append(
            {
                "node_id": member.node_id,
                "name": member.name,
                "status": member.status,
                "link": _link_of(evidence, member),
                "link_s": None if link is None else round(link.since_ms / 1000, 1),
                "rests_s": 0.0 if link is None else round(link.rests_ms / 1000, 1),
                "heard_by": _named(evidence.hearers(member), names) if is_leading else None,
                "lost_by": _named(evidence.accusers(member), names) if is_leading else None,
            }
        )
    return {"doubting": evidence.is_doubting, "lags": lags, "lag_s_max": round(lag_s_max, 3), "members": rows}


def warnings(
    service: NodeService, members: Sequence[Member], names: Mapping[NodeId, str], *, is_leading: bool
) -> list[str]:
    if service.lookout is None:
        return []
    evidence, found = _evidence(service), []
    if evidence.is_doubting:
        found.append("this node was late or its disk hung a moment ago: it accuses nobody")
    for member in members if is_leading else ():
        link = evidence.links.get(member.node_id)
        hearers = evidence.hearers(member)
        if member.status == "suspect" and hearers:
            found.append(
                f"{member.name} has no link to this leader, but {', '.join(_named(hearers, names))} still hear it: it "
                "keeps its work and gets nothing new; look at the network between the two"
            )
        if link is not None and link.rests_ms:
            found.append(f"the link to {member.name} came and went: it gets work again in {link.rests_ms / 1000:.0f} s")
    return found


def _evidence(service: NodeService) -> Evidence:
    assert service.lookout is not None
    outlook = service.lookout.outlook()
    return Evidence(service.facts.node_id, 0, outlook.links, outlook.testimonies, outlook.is_doubting)


def _link_of(evidence: Evidence, member: Member) -> str:
    link = evidence.links.get(member.node_id)
    if link is None:
        return "none"
    if not link.is_up:
        return "silent" if link.is_silent else "closed" if link.is_closed_by_peer else "broken"
    return "suspect" if link.is_suspect else "up" if evidence.is_linked(member) else "other instance"


def _named(nodes: Sequence[NodeId], names: Mapping[NodeId, str]) -> list[str]:
    return [names.get(node) or node for node in nodes]
