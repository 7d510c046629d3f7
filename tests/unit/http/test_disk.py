"""A disk without room, and a replica that has stopped, as clients see them."""

from typing import Any

from aiohttp.test_utils import TestClient

from storage.limits import DISK_LOW_BYTES
from tests.unit.http.twin import TwinNode, body, run

Client = TestClient[Any, Any]


def test_new_sessions_are_refused_first_then_every_command_never_reads() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        session = (await (await client.post("/v1/sessions", json=body())).json())["session"]
        cancel, show = f"/v1/sessions/{session['id']}/cancel", f"/v1/sessions/{session['id']}"
        node.store.disk_free_bytes = DISK_LOW_BYTES - 1
        low = await client.post("/v1/sessions", json=body())
        assert (low.status, (await low.json())["code"]) == (507, "disk_low")
        assert "Make room" in (await low.json())["fix"]
        assert (await client.get("/readyz")).status == 200
        assert (await client.post(cancel, json={})).status == 200
        node.store.disk_free_bytes = 0
        for path in ("/v1/sessions", cancel):
            full = await client.post(path, json=body() if path == "/v1/sessions" else {})
            assert (full.status, (await full.json())["code"]) == (507, "disk_full")
        assert (await client.get(show)).status == 200
        assert (await client.get("/readyz")).status == 503
        assert (await client.get("/healthz")).status == 200
        assert (await (await client.get("/status")).json())["storage"]["space"] == "full"
        node.store.disk_free_bytes = 1 << 40
        assert (await client.post("/v1/sessions", json=body())).status == 201

    run(check)


def test_reads_of_a_stopped_replica_say_so() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        assert "replica_stopped" not in await (await client.get("/v1/sessions")).json()
        watching = await client.get("/v1/events")
        node.service.note_replica_failure("the disk has failed")
        assert (await (await client.get("/v1/sessions")).json())["replica_stopped"] == "the disk has failed"
        assert "event: stopping" in await watching.text()  # the stream has ended
        refused = await client.get("/v1/events")
        assert (refused.status, (await refused.json())["code"]) == (503, "replica_stopped")
        assert (await client.get("/healthz")).status == 503

    run(check)
