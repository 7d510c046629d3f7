"""Who votes, for an operator: what a change would do, making it, and how each member stands."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from consensus.errors import ConsensusError
from consensus.membership import Change, Quorum
from node.service.errors import ServiceError, of_consensus
from node.service.ports import GroupStatus
from node.service.service import NodeService
from storage.ids import NodeId

ACTIONS: Final = ("remove", "replace", "promote", "demote")
DEADLINE_S: Final = 15.0

REMOVED: Final = (
    "this node was removed from the mesh: stop it; to let the machine take part again, move its data directory away "
    "and start it, it then joins as a new node"
)


async def change(service: NodeService, member: str, action: str, by: str, *, is_dry_run: bool) -> dict[str, Any]:
    """Raises ServiceError. What was done, or with `is_dry_run` what would be; the same document."""
    if service.changes is None:
        raise ServiceError("forming", "This node does not belong to a mesh yet.", "See /status for what it waits for.")
    node = find(service, member)
    match action:
        case "replace":
            if not by:
                raise ServiceError("invalid_argument", "It is not said by whom.", "Name a standby: by=NAME.")
            changes = [Change("promote", find(service, by)), Change("remove", node)]
        case "remove" | "promote" | "demote":
            changes = [Change(action, node, is_resting=action == "demote")]
        case _:
            raise ServiceError(
                "invalid_argument",
                f"There is no action {action[:40]!r}.",
                f"Allowed: {', '.join(ACTIONS)}, drain, undrain, leave.",
            )
    try:
        plan = await service.changes.ask(changes, is_dry_run=is_dry_run, deadline_s=DEADLINE_S)
    except ConsensusError as error:
        if error.code in ("no_leader", "timeout", "stopped", "replica_stopped", "quarantined"):
            raise of_consensus(error) from error
        raise ServiceError(
            "change_refused", f"The change was refused: {error}.", "See meshnode nodes.", reason=error.code
        ) from error
    names = service.names()
    return {
        "dry_run": is_dry_run,
        "allowed": plan.refusal is None,
        "refusal": None if plan.refusal is None else {"code": plan.refusal.code, "message": plan.refusal.message},
        "steps": [{"kind": step.kind, "node_id": step.node_id, "name": names.get(step.node_id)} for step in plan.steps],
        "before": quorum(plan.before),
        "after": quorum(plan.after),
    }


def document(status: GroupStatus | None, own: NodeId, names: Mapping[NodeId, str], actions: Iterable[Any]) -> Any:
    """How members stand, for the status page."""
    if status is None:
        return None
    configuration = status.configuration
    return {
        "standing": standing_of(status, own),
        "standbys": [
            {
                "node_id": node,
                "name": names.get(node),
                "standing": standing_of(status, node),
                "lag": max(status.last_index - status.match_index[node], 0) if node in status.match_index else None,
            }
            for node in configuration.learners
        ],
        "removed": list(configuration.removed),
        "autopilot": [msgspec.to_builtins(action) for action in actions],
    }


def standing_of(status: GroupStatus, node: NodeId, *, has_left: bool = False) -> str:
    """`left`, `voter`, `standby` (caught up, or not known as this node does not lead), `learner`, `removed`, `none`."""
    configuration = status.configuration
    if has_left:
        return "left"
    if node in configuration.removed or (node == status.node_id and status.is_removed):
        return "removed"
    if node in configuration.voters:
        return "voter"
    if node in configuration.learners:
        return "learner" if status.match_index and node not in status.caught_up else "standby"
    return "none"


def quorum(it: Quorum) -> dict[str, int]:
    return {
        "voters": it.voters,
        "majority": it.majority,
        "healthy": it.healthy,
        "survives": it.survives,
    }


def find(service: NodeService, text: str) -> NodeId:
    """An id, or a name that only one node has. Members of the mesh come before those that were: a machine that joined
    again, under a new id, has the name that it had."""
    names, configuration = service.names(), service.status.configuration
    if text in names or text in configuration.members or text in configuration.removed:
        return NodeId(text)
    named = sorted(node for node, name in names.items() if name == text)
    found = [node for node in named if node in configuration.members] or named
    if len(found) == 1:
        return found[0]
    if found:
        raise ServiceError(
            "ambiguous_node", f"{len(found)} nodes are called {text[:80]!r}.", f"Use an id: {', '.join(found)}."
        )
    raise ServiceError("unknown_node", f"No node is called {text[:80]!r}, nor is it an id.", "See meshnode nodes.")
