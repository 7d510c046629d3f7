"""Submitting, reading, waiting for and cancelling sessions over HTTP."""

import asyncio
import uuid
from typing import Any

from aiohttp.test_utils import TestClient

from consensus.errors import ProposalTimeout
from consensus.state.commands import SetMemberStatus
from node.rituals.registry import Registry
from tests.unit.http.twin import INSTANCE, NODE, NOW_MS, Live, TwinNode, body, run, until

Client = TestClient[Any, Any]


def test_submit_is_answered_with_session_location_and_index() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        response = await client.post("/v1/sessions", json=body(3))
        document = await response.json()
        assert response.status == 201
        assert response.headers["Location"] == f"/v1/sessions/{document['id']}"
        assert document["session"]["id"] == document["id"]
        assert document["session"]["status"] == "pending"
        assert document["session"]["total_branches"] == 3
        assert document["index"] == node.group.state.applied_index
        assert document["created"] is True
        assert "body_digest" not in document["session"]

    run(check)


def test_repeat_is_answered_and_another_body_refused() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        session_id = str(uuid.uuid4())
        first = await client.post("/v1/sessions", json=body(id=session_id))
        again = await client.post("/v1/sessions", json=body(id=session_id))
        other = await client.post("/v1/sessions", json=body(2, id=session_id))
        assert (first.status, again.status, other.status) == (201, 200, 409)
        assert (await again.json())["index"] == (await first.json())["index"]
        assert (await other.json())["code"] == "session_exists"

    run(check)


def test_a_repeat_is_recognised_by_nodes_that_know_other_rituals() -> None:
    """What was left out was filled in from the ritual, which the node that is asked now does not have."""

    async def check(client: Client, node: TwinNode) -> None:
        wanted = body(branches=[{"ritual": "wait", "task": "t"}], id=str(uuid.uuid4()))
        first = await client.post("/v1/sessions", json=wanted)
        node.service.registry = Registry({})
        again = await client.post("/v1/sessions", json=wanted)
        node.group.apply(SetMemberStatus(node_id=NODE, instance_id=INSTANCE, status="dead", at_ms=NOW_MS))
        nobody_has_it = await client.post("/v1/sessions", json=wanted)
        other = await client.post("/v1/sessions", json={**wanted, "timeout_s": 1.5})
        assert (first.status, again.status, nobody_has_it.status, other.status) == (201, 200, 200, 409)

    run(check)


def test_idempotency_key_makes_the_id() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        for key in ("order 17", str(uuid.uuid4())):
            first = await client.post("/v1/sessions", json=body(), headers={"Idempotency-Key": key})
            again = await client.post("/v1/sessions", json=body(), headers={"Idempotency-Key": key})
            assert (first.status, again.status) == (201, 200)
            assert (await first.json())["id"] == (await again.json())["id"]
        long = await client.post("/v1/sessions", json=body(), headers={"Idempotency-Key": "x" * 300})
        assert (await long.json())["code"] == "invalid_argument"

    run(check)


def test_whole_life_is_visible() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        session_id = (await (await client.post("/v1/sessions", json=body(2))).json())["id"]
        assert (await (await client.get(f"/v1/sessions/{session_id}/insight")).json())["code"] == "no_insight"
        node.assign(session_id, 0)
        node.live.states[session_id, 0] = Live()
        branches = await (await client.get(f"/v1/sessions/{session_id}/branches")).json()
        assert [row["status"] for row in branches["branches"]] == ["processing", "pending"]
        assert branches["branches"][0]["live"]["message"] == "half"
        assert branches["branches"][0]["started_at"].endswith("Z")
        node.finish(session_id, 0)
        node.assign(session_id, 1)
        node.finish(session_id, 1)
        node.assign(session_id, 2)
        node.finish(session_id, 2)
        session = (await (await client.get(f"/v1/sessions/{session_id}")).json())["session"]
        assert session["status"] == "completed"
        detail = await (await client.get(f"/v1/branches/{branches['branches'][0]['id']}")).json()
        assert detail["knowledge"]["result"] == {"n": 0}
        assert detail["attempts"][0]["status"] == "completed"
        assert detail == await (await client.get(f"/v1/sessions/{session_id}/branches/0")).json()
        insight = await (await client.get(f"/v1/sessions/{session_id}/insight")).json()
        assert insight["insight"]["session_id"] == session_id
        assert [row["branch_index"] for row in insight["provenance"]] == [0, 1]
        assert insight["provenance"][0]["ritual"] == "echo"
        insights = await (await client.get("/v1/insights")).json()
        assert [row["session_id"] for row in insights["insights"]] == [session_id]

    run(check)


def test_lists_are_paged_and_filtered() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        ids = [(await (await client.post("/v1/sessions", json=body())).json())["id"] for _ in range(5)]
        node.run_to_end(ids[1])
        seen: list[str] = []
        after = ""
        while True:
            page = await (await client.get(f"/v1/sessions?limit=2{after}")).json()
            seen += [row["id"] for row in page["sessions"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert seen == ids[::-1]
        done = await (await client.get("/v1/sessions?status=completed")).json()
        assert [row["id"] for row in done["sessions"]] == [ids[1]]

    run(check)


def test_branches_are_paged() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        session_id = (await (await client.post("/v1/sessions", json=body(250))).json())["id"]
        node.assign(session_id, 7)
        page = await (await client.get(f"/v1/sessions/{session_id}/branches?limit=200")).json()
        rest = await (await client.get(f"/v1/sessions/{session_id}/branches?limit=200&after={page['next']}")).json()
        assert [row["branch_index"] for row in page["branches"] + rest["branches"]] == list(range(250))
        busy = await (await client.get(f"/v1/sessions/{session_id}/branches?status=processing")).json()
        assert [row["branch_index"] for row in busy["branches"]] == [7]

    run(check)


def test_wait_wakes_when_the_session_ends() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        session_id = (await (await client.post("/v1/sessions", json=body())).json())["id"]
        waiting = asyncio.create_task(client.get(f"/v1/sessions/{session_id}?wait=30s&until=terminal"))
        await until(lambda: node.service.hub.waiter_count > 0)
        node.run_to_end(session_id)
        assert (await (await waiting).json())["session"]["status"] == "completed"
        assert node.service.hub.waiter_count == 0

    run(check)


def test_wait_for_a_change_after_a_revision() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        document = await (await client.post("/v1/sessions", json=body())).json()
        url, rev = f"/v1/sessions/{document['id']}", document["session"]["rev"]
        missed = await (await client.get(f"{url}?wait=30s&rev={rev - 1}")).json()
        assert missed["session"]["rev"] == rev
        timed_out = await (await client.get(f"{url}?wait=1ms&rev={rev}")).json()
        assert timed_out["session"]["rev"] == rev
        waiting = asyncio.create_task(client.get(f"{url}?wait=30s&rev={rev}"))
        await until(lambda: node.service.hub.waiter_count > 0)
        node.assign(document["id"], 0)
        assert (await (await waiting).json())["session"]["status"] == "processing"

    run(check)


def test_waiters_are_told_when_the_node_stops() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        session_id = (await (await client.post("/v1/sessions", json=body())).json())["id"]
        waiting = asyncio.create_task(client.get(f"/v1/sessions/{session_id}?wait=30s"))
        await until(lambda: node.service.hub.waiter_count > 0)
        await node.service.stop()
        assert (await (await waiting).json())["code"] == "stopping"

    run(check)


def test_cancel() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        session_id = (await (await client.post("/v1/sessions", json=body())).json())["id"]
        for payload in ({"reason": "enough"}, None):
            response = await client.post(f"/v1/sessions/{session_id}/cancel", json=payload)
            assert (response.status, (await response.json())["session"]["status"]) == (200, "cancelled")
        unknown = await client.post(f"/v1/sessions/{uuid.uuid4()}/cancel")
        assert (unknown.status, (await unknown.json())["code"]) == (404, "unknown_session")
        odd = await client.post("/v1/sessions/x/cancel")
        assert (odd.status, (await odd.json())["code"]) == (404, "unknown_session")
        bad = await client.post(f"/v1/sessions/{session_id}/cancel", json={"why": 1})
        assert (await bad.json())["code"] == "unknown_key"

    run(check)


def test_linearizable_reads_pass_a_barrier() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        session_id = (await (await client.post("/v1/sessions", json=body())).json())["id"]
        for path in (f"/v1/sessions/{session_id}", "/v1/sessions", "/v1/members", "/v1/insights"):
            before = node.group.barriers
            document = await (await client.get(f"{path}?level=linearizable")).json()
            assert node.group.barriers == before + 1
            assert document["level"] == "linearizable"
            assert document["as_of_index"] == node.group.state.applied_index
            assert document["leader"] == node.group.state.leader
        node.group.fails = ProposalTimeout("no_leader", 5)
        response = await client.get("/v1/sessions?level=linearizable")
        assert (response.status, (await response.json())["code"]) == (503, "no_leader")
        assert response.headers["Retry-After"] == "1"
        assert (await client.get("/v1/sessions")).status == 200

    run(check)


def test_no_leader_and_timeout() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        for code, status in (("no_leader", 503), ("timeout", 504)):
            node.group.fails = ProposalTimeout(code, 10)
            response = await client.post("/v1/sessions", json=body())
            assert (response.status, (await response.json())["code"]) == (status, code)

    run(check)
