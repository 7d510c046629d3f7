"""Which secrets every node accepts, as one node gathers it."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from consensus.state.rows import Member
from mesh.errors import RequestTimedOut
from mesh.keeper import TrustStatus
from node.service import secrets
from node.service.readings import Reading, Wanted
from node.service.secrets import Accepting, all_nodes
from storage.ids import NodeId

OLD, NEW = ("old",), ("old", "new")


def node(name: str) -> NodeId:
    return NodeId(name * 26)


def accepting(name: str, accepts: tuple[str, ...] = OLD) -> Accepting:
    return Accepting(node_id=node(name), name=name, address=f"10.0.0.1:{ord(name)}", accepts=accepts)


def member(name: str, tier: str = "leaf", status: str = "alive") -> Member:
    return cast(Member, SimpleNamespace(node_id=node(name), name=name, tier=tier, status=status))


def found(*rows: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row["accepts"] or row["unknown"] for row in rows}


CORES = [member(name, "core") for name in "abc"]
LINKED = [accepting("b"), accepting("c")]


def test_leaf_nodes_of_other_parents_are_told_of() -> None:
    told = {node("b"): [accepting("x", NEW)], node("c"): [accepting("y")]}
    rows = all_nodes(accepting("a", NEW), [*LINKED, accepting("z")], told, [*CORES, *map(member, "xyz")])
    assert found(*rows) == {"a": [*NEW], "b": [*OLD], "c": [*OLD], "x": [*NEW], "y": [*OLD], "z": [*OLD]}
    assert {row["name"]: row["address"] for row in rows}["x"] == "10.0.0.1:120"


def test_of_whom_nobody_tells_now_nothing_is_known() -> None:
    told = {node("b"): [accepting("x")], node("c"): []}
    members = [*CORES, member("x"), member("y"), member("z", status="left")]
    rows = all_nodes(accepting("a"), LINKED, told, members)
    assert found(*rows)["y"] == secrets.NO_PARENT
    assert "z" not in found(*rows)
    rows = all_nodes(accepting("a"), LINKED[:1], {node("b"): None}, members)
    assert found(*rows)["c"] == secrets.NO_LINK
    assert found(*rows)["y"] == f"{secrets.NO_PARENT}; it may hang on b, c (no answer)"
    assert all(row["accepts"] is None for row in rows if row["name"] in "cxy")


def test_who_says_nothing_and_who_is_told_of_differently_is_not_known() -> None:
    told = {node("b"): [accepting("x", NEW), accepting("y")], node("c"): [accepting("x", OLD), accepting("y")]}
    rows = all_nodes(accepting("a"), [*LINKED, accepting("z", ())], told, [*CORES, *map(member, "xyz")])
    assert found(*rows)["x"].startswith("b, c do not say the same of it")
    assert found(*rows)["y"] == [*OLD]
    assert found(*rows)["z"] == secrets.NONE_SAID


class Mesh:
    """Two linked Core nodes, of which `c` does not answer, a linked Leaf, and a node that is away."""

    def __init__(self) -> None:
        self.asked: list[NodeId] = []
        states = (("b", "core", "up"), ("c", "core", "up"), ("z", "leaf", "up"), ("d", "core", "down"))
        self._peers = [
            SimpleNamespace(node_id=node(name), name=name, address="", tier=tier, state=state, secrets=OLD)
            for name, tier, state in states
        ]

    def peers(self) -> list[SimpleNamespace]:
        return self._peers

    def trust_status(self) -> TrustStatus:
        return TrustStatus(OLD, None, None, 0, 0, ())

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        self.asked.append(peer)
        if peer == node("c"):
            raise RequestTimedOut("timeout", "no answer")
        other = Mesh()
        other._peers[2].node_id, other._peers[2].name = node("x"), "x"
        return await secrets.serving(cast(Any, other))(node("a"), payload)


def test_every_linked_node_that_may_have_leaf_nodes_is_asked() -> None:
    async def members(wanted: Wanted) -> Reading[list[Member]]:
        return Reading([*CORES, member("y")], 7, wanted.level, 0, None)

    mesh = Mesh()
    facts = SimpleNamespace(node_id=node("a"), name="a")
    reading = asyncio.run(secrets.gather(cast(Any, SimpleNamespace(mesh=mesh, facts=facts, members=members))))
    assert sorted(mesh.asked) == [node("b"), node("c")]
    assert [row["name"] for row in reading.value] == ["a", "b", "c", "x", "y", "z"]
    assert found(*reading.value)["y"].endswith("it may hang on c (no answer)")
    assert reading.as_of_index == 7
