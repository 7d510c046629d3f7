"""Which mesh secrets every node accepts, by fingerprint; gathered over links when somebody asks.

A node knows this of whom it is linked to. A Leaf is linked to its parent alone, so every linked Core or Edge node is
asked for the Leaf nodes that hang on it. Nothing is kept: of whom nobody tells now, nothing is known.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from consensus.state.rows import Member
from mesh.errors import MeshError
from mesh.tiers import LEAF
from node.service.ports import MeshPort
from node.service.readings import STALE, Reading, Wanted
from node.service.service import NodeService
from storage import codec
from storage.errors import CodecError
from storage.ids import NodeId

METHOD: Final = "leaf_secrets"

ASK_S: Final = 2.0
"""For an answer of a linked node; a person waits. Without one its Leaf nodes are not known."""

ANSWER_BYTES_MAX: Final = 256 * 1024
"""Of one node: its 256 links of a kilobyte each."""

NONE_SAID: Final = "it has no secret, or runs a version that cannot rotate them: upgrade it first"
NO_LINK: Final = "no link to it: start it, or repair its network"
NO_PARENT: Final = "no node that was asked has a link to it: start it, or repair its network"


class Accepting(msgspec.Struct, frozen=True, kw_only=True):
    """A node, as another one has it on its link."""

    node_id: NodeId
    name: str
    address: str
    accepts: tuple[str, ...]
    """Fingerprints, the presented one first; empty: it says nothing of secrets."""


def all_nodes(
    own: Accepting,
    linked: Sequence[Accepting],
    told: Mapping[NodeId, Sequence[Accepting] | None],
    members: Sequence[Member],
) -> list[dict[str, Any]]:
    """Every node that is linked to any other, and every member that has not left. `told`: by each node that was asked,
    of its Leaf nodes; None: no answer. Pure."""
    names = {row.node_id: row.name for row in members} | {one.node_id: one.name for one in (own, *linked)}
    said: dict[NodeId, dict[NodeId, Accepting]] = {}
    """By whom it is about, then by who says it."""
    for teller, nodes in ((own.node_id, [own, *linked]), *told.items()):
        for one in nodes or ():
            said.setdefault(one.node_id, {})[teller] = one
    found = [_row(by_teller, names) for by_teller in said.values()]
    staying = [row for row in members if row.status != "left"]
    has_not_said = [node for node, nodes in told.items() if nodes is None]
    has_not_said += [row.node_id for row in staying if row.tier != LEAF and row.node_id not in said]
    might = _listed(names.get(node, node) for node in has_not_said)
    for row in staying:
        if row.node_id in said:
            continue
        unknown = (
            NO_LINK if row.tier != LEAF else NO_PARENT + (f"; it may hang on {might} (no answer)" if might else "")
        )
        found.append({"node_id": row.node_id, "name": row.name, "address": "", "accepts": None, "unknown": unknown})
    return sorted(found, key=lambda one: (one["name"], one["node_id"]))


def _row(by_teller: Mapping[NodeId, Accepting], names: Mapping[NodeId, str]) -> dict[str, Any]:
    any_of_them, *others = by_teller.values()
    accepts, unknown = any_of_them.accepts, NONE_SAID
    if any(other.accepts != accepts for other in others):
        tellers = _listed(names.get(teller, teller) for teller in by_teller)
        accepts, unknown = (), f"{tellers} do not say the same of it, as while it goes from one to the other: ask again"
    return {
        "node_id": any_of_them.node_id,
        "name": any_of_them.name,
        "address": any_of_them.address,
        "accepts": list(accepts) or None,
        "unknown": "" if accepts else unknown,
    }


def linked_here(mesh: MeshPort) -> dict[NodeId, list[str]]:
    """What the nodes that are linked to this one accept, as far as they say so."""
    return {peer.node_id: list(peer.secrets) for peer in mesh.peers() if peer.state == "up" and peer.secrets}


def serving(mesh: MeshPort) -> Callable[[NodeId, bytes], Awaitable[bytes]]:
    """Answers with the Leaf nodes that hang on this node."""

    async def on_request(peer: NodeId, payload: bytes) -> bytes:
        return codec.encode([_accepting(one) for one in mesh.peers() if one.state == "up" and one.tier == LEAF])

    return on_request


async def gather(service: NodeService, wanted: Wanted = STALE) -> Reading[list[dict[str, Any]]]:
    """`all_nodes`; what is asked of others is answered within `ASK_S`, or not known. `wanted`: of the members."""
    reading = await service.members(wanted)
    facts, mesh = service.facts, service.mesh
    linked = [peer for peer in mesh.peers() if peer.state == "up"]
    async with asyncio.TaskGroup() as tasks:
        asked = {one.node_id: tasks.create_task(_ask(mesh, one.node_id)) for one in linked if one.tier != LEAF}
    accepted = tuple(mesh.trust_status().accepted)
    own = Accepting(node_id=facts.node_id, name=facts.name, address="", accepts=accepted)
    told = {node: task.result() for node, task in asked.items()}
    return reading.of(all_nodes(own, [_accepting(peer) for peer in linked], told, reading.value))


async def _ask(mesh: MeshPort, peer: NodeId) -> list[Accepting] | None:
    try:
        answer = await mesh.request(peer, METHOD, b"", ASK_S)
        return codec.decode(answer, list[Accepting], ANSWER_BYTES_MAX)
    except (MeshError, CodecError):
        return None


def _accepting(peer: Any) -> Accepting:
    return Accepting(node_id=peer.node_id, name=peer.name, address=peer.address, accepts=tuple(peer.secrets))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
