"""Every read takes a level and says how fresh it is."""

from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from consensus.errors import Unavailable
from node.http.arguments import FRESHNESS
from node.http.openapi import openapi_document
from node.http.routes import ROUTES
from tests.unit.http.twin import NODE, TwinNode, body, run

Client = TestClient[Any, Any]

WITHOUT_TABLES = {"index", "openapi", "health", "readiness", "watch_events", "get_backup"}
READS = [route for route in ROUTES if route.method == "GET" and route.name not in WITHOUT_TABLES]


async def paths(client: Client, node: TwinNode) -> list[str]:
    """Of every read, of a session that has all there is."""
    session_id = (await (await client.post("/v1/sessions", json=body())).json())["id"]
    node.run_to_end(session_id)
    branches = await (await client.get(f"/v1/sessions/{session_id}/branches")).json()
    names = {"session_id": session_id, "index": 0, "branch_id": branches["branches"][0]["id"], "name": "echo"}
    return [route.path.format(**names) for route in READS]


def test_every_read_takes_a_level_and_says_how_fresh_it_is() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        for path in await paths(client, node):
            for level in ("stale", "leader", "linearizable"):
                node.group.age = 0.25
                asked = (node.group.barriers, node.group.catch_ups)
                response = await client.get(f"{path}?level={level}")
                document = await response.json()
                assert response.status == 200, (path, document)
                assert document["level"] == level
                assert document["as_of_index"] == node.group.state.applied_index
                assert document["age_ms"] == (0 if level == "linearizable" else 250)
                leader = document["leader"]
                assert (leader["node_id"] if isinstance(leader, dict) else leader) == NODE
                more = (node.group.barriers - asked[0], node.group.catch_ups - asked[1])
                assert more == (level == "linearizable", level == "leader")

    run(check)


@pytest.mark.parametrize("age_s", [None, 3.0])
def test_what_may_be_too_old_is_refused(age_s: float | None) -> None:
    async def check(client: Client, node: TwinNode) -> None:
        for path in await paths(client, node):
            node.group.age = age_s
            refused = await client.get(f"{path}?max_age_ms=2999")
            document = await refused.json()
            assert (refused.status, document["code"]) == (503, "too_stale")
            assert document["age_ms"] == (None if age_s is None else 3000)
            assert refused.headers["Retry-After"] == "1"
            assert (await client.get(path)).status == 200
            node.group.age = 0.0
            assert (await client.get(f"{path}?level=stale&max_age_ms=0")).status == 200

    run(check)


def test_writes_say_how_fresh_their_answers_are() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        submitted = await (await client.post("/v1/sessions", json=body())).json()
        cancelled = await (await client.post(f"/v1/sessions/{submitted['id']}/cancel")).json()
        for document in (submitted, cancelled):
            assert document["as_of_index"] >= submitted["index"]
            assert document["age_ms"] == 0
            assert document["leader"] == NODE

    run(check)


@pytest.mark.parametrize(
    "query", ["level=strong", "level=leader&max_age_ms=5", "level=linearizable&max_age_ms=5", "max_age_ms=-1"]
)
def test_what_makes_no_sense_is_refused(query: str) -> None:
    async def check(client: Client, node: TwinNode) -> None:
        for path in ("/status", "/v1/sessions"):
            response = await client.get(f"{path}?{query}")
            assert (response.status, (await response.json())["code"]) == (400, "invalid_argument")

    run(check)


def test_a_quarantined_replica_refuses_every_level() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        node.group.fails = Unavailable("quarantined", "withdrawn")
        for level in ("leader", "linearizable"):
            response = await client.get(f"/v1/sessions?level={level}")
            assert (response.status, (await response.json())["code"]) == (503, "quarantined")

    run(check)


def test_a_read_that_waited_is_as_fresh_as_was_wanted() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        session_id = (await (await client.post("/v1/sessions", json=body())).json())["id"]
        before = node.group.barriers
        document = await (await client.get(f"/v1/sessions/{session_id}?wait=10ms&level=linearizable")).json()
        assert document["level"] == "linearizable"
        assert node.group.barriers == before + 2  # before it looked, and again before it answered

    run(check)


def test_openapi_knows_the_levels() -> None:
    document = openapi_document()
    for route in READS:
        parameters = {one["name"]: one for one in document["paths"][route.path]["get"]["parameters"]}
        assert set(FRESHNESS) <= set(parameters)
        assert parameters["level"]["schema"]["enum"] == ["stale", "leader", "linearizable"]
    assert document["components"]["schemas"]["SessionPage"]["properties"]["age_ms"]["type"] == ["integer", "null"]
