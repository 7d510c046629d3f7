"""The event stream: resumable at every event without gap or repeat, bounded, and clear about its end."""

import asyncio
import socket
from typing import Any

import msgspec
import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient

from consensus.state import queries
from consensus.state.commands import Canary
from node.http import limits
from node.service import paging
from tests.unit.http.twin import NODE, NOW_MS, TwinNode, body, run, until

Client = TestClient[Any, Any]


async def read_events(response: ClientResponse, count: int) -> list[dict[str, Any]]:
    """The next `count` events that carry data; blocks without data are heartbeats."""
    found: list[dict[str, Any]] = []
    fields: dict[str, str] = {}
    while len(found) < count:
        line = (await response.content.readline()).decode()
        assert line, f"the stream ended after {found}"
        line = line.rstrip("\n")
        if not line:
            if "data" in fields:
                document = msgspec.json.decode(fields["data"])
                assert document["event"] == fields["event"]
                found.append({**document, "id": fields.get("id")})
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
    return found


async def submit(client: Client, count: int = 2) -> str:
    return str((await (await client.post("/v1/sessions", json=body(count))).json())["id"])


def test_resumed_at_every_event_there_is_no_gap_and_no_repeat() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        node.run_to_end(await submit(client, 3))
        response = await client.get("/v1/events?after=0")
        assert response.content_type == "text/event-stream"
        with node.group.store.read() as txn:
            total = len(queries.events_since(txn, 0, -1, 1000))
        whole = await read_events(response, total)
        response.close()
        ids = [event["id"] for event in whole]
        assert len(set(ids)) == total > 8
        for place, last_id in enumerate(ids[:-1]):
            response = await client.get("/v1/events", headers={"Last-Event-ID": last_id})
            rest = await read_events(response, total - place - 1)
            response.close()
            assert rest == whole[place + 1 :]

    run(check)


def test_live_events_follow_stored_ones_and_a_broken_stream_resumes() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        session_id = await submit(client)
        response = await client.get("/v1/events?after=0")
        seen = await read_events(response, 2)
        acts = (node.assign, node.finish)
        steps = [(act, index) for index in range(3) for act in acts]
        for act, index in steps:  # the stream is cut after every step
            act(session_id, index)
            seen += await read_events(response, 1)
            response.close()
            response = await client.get("/v1/events", headers={"Last-Event-ID": seen[-1]["id"]})
        response.close()
        whole = await client.get("/v1/events?after=0")
        assert await read_events(whole, len(seen)) == seen
        whole.close()

    run(check)


def test_without_a_place_it_starts_now_and_filters_by_session() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        first, second = await submit(client), await submit(client)
        response = await client.get(f"/v1/events?session={second}")
        node.assign(first, 0)
        node.assign(second, 1)
        events = await read_events(response, 1)
        assert [(event["event"], event["session_id"]) for event in events] == [("branch_assigned", second)]
        response.close()

    run(check)


def test_heartbeats_move_an_idle_client_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_S", 0.01)

    async def check(client: Client, node: TwinNode) -> None:
        response = await client.get("/v1/events")
        node.group.apply(Canary(node_id=NODE, payload=b"", at_ms=NOW_MS))
        index = node.group.state.applied_index
        while (await response.content.readline()) != f"id: {index}\n".encode():
            pass
        response.close()

    run(check)


def test_pruned_events_are_said_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(client: Client, node: TwinNode) -> None:
        session_id = await submit(client)
        for number in range(6):
            node.group.apply(Canary(node_id=NODE, payload=bytes([number]), at_ms=NOW_MS))
        with node.group.store.write() as txn:  # as the state machine prunes, only sooner
            txn.delete_range("events", b"", (3).to_bytes(8, "big"))
        monkeypatch.setattr(paging, "EVENTS_RETAINED", 4)
        response = await client.get("/v1/events?after=1.0")
        document = await response.json()
        assert (response.status, document["code"]) == (410, "events_gone")
        stream = await client.get("/v1/events?after=0")
        node.assign(session_id, 0)
        assert [event["event"] for event in await read_events(stream, 1)] == ["branch_assigned"]
        stream.close()

    run(check)


def test_streams_end_with_a_reason_when_the_node_stops() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        response = await client.get("/v1/events")
        await node.service.stop()
        assert b"event: stopping" in await response.content.read()

    run(check)


def test_a_watcher_that_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    from node.http.server import HttpServer

    monkeypatch.setattr(limits, "WRITE_S", 0.05)
    monkeypatch.setattr(limits, "HEARTBEAT_S", 0.001)
    monkeypatch.setattr(limits, "STREAM_BUFFER_BYTES", 1)

    async def main() -> None:
        node = TwinNode()
        node.attach()
        server = HttpServer(node.service, bind="127.0.0.1", port=0)
        host, port = await server.start()
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, port))
        _, writer = await asyncio.open_connection(sock=connection, limit=1)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(20):
            await until(lambda: node.service.hub.watcher_count > 0)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            while node.service.hub.slow_count == 0:
                for _ in range(50):
                    await node.service.submit(msgspec.json.encode(body(1)))
                await asyncio.sleep(0)
        assert node.service.hub.watcher_count == 0
        writer.transport.abort()
        await node.service.stop()
        await server.stop()

    asyncio.run(main())


def test_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from node.service import watching

    monkeypatch.setattr(watching, "WATCHERS_MAX", 1)

    async def check(client: Client, node: TwinNode) -> None:
        response = await client.get("/v1/events")
        await until(lambda: node.service.hub.watcher_count > 0)
        refused = await client.get("/v1/events")
        assert (refused.status, (await refused.json())["code"]) == (503, "overloaded")
        response.close()

    run(check)
