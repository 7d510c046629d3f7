"""Draining a node, ending that, and leaving the mesh, asked for on any node."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from consensus.errors import ConsensusError
from consensus.membership import Change, Refusal
from consensus.state import queries
from consensus.state.commands import DrainMember
from consensus.state.rows import Lease, Member
from node.service import voting
from node.service.errors import ServiceError, of_consensus
from node.service.ports import GroupStatus
from node.service.service import NodeService
from node.service.times import iso
from storage.ids import NodeId

ACTIONS: Final = ("drain", "undrain", "leave")
GRACE_S: Final = 60.0
GRACE_S_MAX: Final = 86_400.0
"""A day. Longer work is better waited for: undrain, or cancel it."""


async def change(
    service: NodeService, name: str, action: str, grace_s: float | None, *, is_dry_run: bool
) -> dict[str, Any]:
    """Raises ServiceError. How the member stands after it; with `is_dry_run` what it would have to finish. Leaving is
    refused if the mesh could not do without its vote."""
    if grace_s is not None and not 0 <= grace_s <= GRACE_S_MAX:
        raise ServiceError(
            "invalid_argument", f"grace_s: {grace_s:g} is not allowed.", f"Allowed: 0 to {GRACE_S_MAX:g} seconds."
        )
    node = voting.find(service, name)
    member = service.read(lambda txn: queries.get_member(txn, node))
    if member is None:
        raise ServiceError("unknown_node", f"{name[:80]} has not registered.", "See meshnode nodes.")
    plan = await _departure(service, node) if action == "leave" else None
    refusal = plan.get("refusal") if plan is not None else None
    grace_ms = int((GRACE_S if grace_s is None else grace_s) * 1000)
    hand_back_at_ms = None if action == "undrain" else service.now_ms() + grace_ms
    has_left = action == "leave" and member.status == "left"
    if not is_dry_run and not has_left:
        if refusal is not None:
            raise ServiceError(
                "change_refused", f"The change was refused: {refusal['message']}.", "See meshnode nodes.",
                reason=refusal["code"],
            )  # fmt: skip
        await service.propose(
            DrainMember(
                node_id=node,
                instance_id=member.instance_id,
                is_draining=action != "undrain",
                is_leaving=action == "leave",
                hand_back_at_ms=hand_back_at_ms,
                at_ms=service.now_ms(),
            )
        )
    running = service.read(lambda txn: running_by_node(queries.leases(txn)))
    return {
        "dry_run": is_dry_run,
        "allowed": refusal is None,
        "refusal": refusal,
        "action": action,
        "node_id": node,
        "name": member.name,
        "running": running[node],
        "hand_back_at": iso(hand_back_at_ms),
        "quorum": None if plan is None else {"before": plan["before"], "after": plan["after"]},
    }


async def _departure(service: NodeService, node: NodeId) -> dict[str, Any] | None:
    """What it does to the quorum; None for a member that holds no replica."""
    if service.changes is None or node not in service.status.configuration.members:
        return None
    try:
        plan = await service.changes.ask([Change("leave", node)], is_dry_run=True, deadline_s=voting.DEADLINE_S)
    except ConsensusError as error:
        raise of_consensus(error) from error
    refusal: Refusal | None = plan.refusal if plan.refusal is None or not plan.refusal.is_passing else None
    return {
        "refusal": None if refusal is None else {"code": refusal.code, "message": refusal.message},
        "before": voting.quorum(plan.before),
        "after": voting.quorum(plan.after),
    }


def running_by_node(leases: Sequence[Lease]) -> Counter[NodeId]:
    """How many attempts each node has been given and not answered yet."""
    return Counter(lease.node_id for lease in leases)


def state_of(member: Member, running: Mapping[NodeId, int]) -> str | None:
    """`draining`, `drained`, `leaving`, or None; in words for a table."""
    if not member.is_draining or member.status == "left":
        return None
    if member.is_leaving:
        return "leaving"
    return "draining" if running.get(member.node_id) else "drained"


def has_left(member: Member, status: GroupStatus, own: NodeId) -> bool:
    """And is out of the configuration. Who has left itself is not told how that went on: it is sent nothing more."""
    return member.status == "left" and (member.node_id == own or member.node_id not in status.configuration.members)
