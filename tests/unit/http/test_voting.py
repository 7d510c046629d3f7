"""Who votes, asked for over HTTP."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from consensus.changes import ChangeRefused
from consensus.errors import ProposalTimeout
from consensus.membership import Change, Configuration, Plan, Standing, plan
from storage.ids import NodeId
from tests.unit.http.twin import NODE, TwinNode, run

Client = TestClient[Any, Any]

B, C, D, OLD = (NodeId(name * 26) for name in "bcdo")
FOUR = Configuration((NODE, B, C), (D,))


class TwinChanges:
    """A leader that hears all but `silent`."""

    def __init__(self, silent: set[NodeId]) -> None:
        self.configuration = FOUR
        self.fails: Exception | None = None
        self._standing = Standing(NODE, frozenset({B, C, D} - silent))

    async def ask(self, changes: Sequence[Change], *, is_dry_run: bool = False, deadline_s: float = 10.0) -> Plan:
        if self.fails is not None:
            raise self.fails
        found = plan(self.configuration, changes, self._standing)
        if not is_dry_run:
            if found.refusal is not None:
                raise ChangeRefused(found.refusal.code, found.refusal.message)
            self.configuration = found.configuration
        return found


def given(node: TwinNode, *silent: NodeId) -> TwinChanges:
    """`beta` was there before, under another id; two are called `twin`."""
    changes: Any = TwinChanges(set(silent))
    node.group.state.configuration = FOUR
    node.service.changes = changes
    named = ((B, "beta"), (OLD, "beta"), (C, "twin"), (D, "twin"))
    mesh: Any = SimpleNamespace(peers=lambda: [SimpleNamespace(node_id=i, name=name) for i, name in named])
    node.service.mesh = mesh
    return changes  # type: ignore[no-any-return]


async def ask(client: Client, member: str, **body: Any) -> tuple[int, Any]:
    answer = await client.post(f"/v1/members/{member}/change", json=body)
    return answer.status, await answer.json()


def test_a_dry_run_says_what_becomes_of_the_quorum_and_changes_nothing() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        changes = given(node)
        status, found = await ask(client, "beta", action="remove", dry_run=True)
        assert (status, found["allowed"], found["refusal"]) == (200, True, None)
        assert found["steps"] == [{"kind": "remove", "node_id": B, "name": "beta"}]
        assert found["before"] == {"voters": 3, "majority": 2, "healthy": 3, "survives": 1}
        assert found["after"] == {"voters": 2, "majority": 2, "healthy": 2, "survives": 0}
        assert changes.configuration == FOUR

    run(check)


def test_a_dry_run_of_what_is_refused_says_why() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        given(node, C)
        status, found = await ask(client, "beta", action="remove", dry_run=True)
        assert (status, found["allowed"], found["refusal"]["code"]) == (200, False, "quorum_lost")

    run(check)


def test_replacing_promotes_first_and_repeating_changes_nothing() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        changes = given(node)
        status, found = await ask(client, "beta", action="replace", by=D)
        assert status == 200
        assert [step["kind"] for step in found["steps"]] == ["promote", "remove"]
        assert changes.configuration == Configuration((NODE, C, D), (), (B,))
        node.group.state.configuration = changes.configuration
        status, found = await ask(client, B, action="replace", by=D)
        assert (status, found["steps"]) == (200, [])

    run(check)


def test_who_is_demoted_rests() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        changes = given(node)
        assert (await ask(client, B, action="demote"))[0] == 200
        assert changes.configuration.resting == (B,)

    run(check)


@pytest.mark.parametrize(
    ("member", "body", "status", "code", "reason"),
    [
        ("beta", {"action": "remove"}, 409, "change_refused", "quorum_lost"),
        (C, {"action": "promote"}, 200, None, None),
        ("nobody", {"action": "remove"}, 404, "unknown_node", None),
        ("twin", {"action": "promote"}, 409, "ambiguous_node", None),
        ("beta", {"action": "replace"}, 400, "invalid_argument", None),
        ("beta", {"action": "replace", "by": "nobody"}, 404, "unknown_node", None),
        ("beta", {"action": "explode"}, 400, "invalid_argument", None),
        ("beta", {"action": "remove", "other": 1}, 400, "invalid_argument", None),
        ("beta", {}, 400, "invalid_argument", None),
    ],
)
def test_what_is_refused(member: str, body: Any, status: int, code: str | None, reason: str | None) -> None:
    async def check(client: Client, node: TwinNode) -> None:
        given(node, C)
        found, problem = await ask(client, member, **body)
        assert (found, problem.get("code"), problem.get("reason")) == (status, code, reason)
        assert code is None or problem["fix"]

    run(check)


def test_what_is_not_known_in_time() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        given(node).fails = ProposalTimeout("no_leader", 15)
        status, problem = await ask(client, "beta", action="remove")
        assert (status, problem["code"]) == (503, "no_leader")

    run(check)


def test_nobody_takes_its_own_place() -> None:
    """It would only be removed."""

    async def check(client: Client, node: TwinNode) -> None:
        given(node)
        status, problem = await ask(client, "beta", action="replace", by="beta", dry_run=True)
        assert (status, problem["code"]) == (400, "invalid_argument")

    run(check)


def test_a_removed_node_is_not_ready_and_says_what_to_do() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        node.group.state.is_removed = True
        answer = await client.get("/readyz")
        assert answer.status == 503
        assert "this node was removed from the mesh: stop it" in await answer.text()

    run(check)
