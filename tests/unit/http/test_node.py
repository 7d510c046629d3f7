"""What a node says of itself."""

import asyncio
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient

from consensus.state.commands import RegisterMember
from node.http.routes import ROUTES
from node.http.schemas import schemas
from node.http.server import HttpServer
from node.service.progress import ProgressClock
from storage.ids import InstanceId, NodeId
from tests.unit.http.twin import NODE, NOW_MS, TwinNode, run

Client = TestClient[Any, Any]


def test_status_document() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        status = await (await client.get("/status?pretty")).json()
        assert (status["name"], status["node_id"], status["tier"], status["mesh"]) == ("alpha", NODE, "core", "home")
        assert status["leader"] == {"node_id": NODE, "name": "alpha"}
        assert (status["role"], status["applied_index"]) == ("leader", 1)
        assert status["voters"][0]["name"] == "alpha"
        assert status["peers"][0] == {
            "node_id": "b" * 26, "name": "beta", "state": "down", "address": "10.0.0.2:50001",
            "software": "0.2", "command_version": 3,
        }  # fmt: skip
        assert status["slots"] == {"slots": 2, "slots_busy": 0}
        assert status["storage"]["data_dir"] == "/data"
        assert status["versions"]["software"]
        assert status["versions"]["libraries"]["aiohttp"]
        assert any("no link to beta" in text for text in status["warnings"])
        assert status["ready"] is True

    run(check)


def test_a_start_that_is_not_registered_is_not_ready() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        node.service.facts = msgspec.structs.replace(node.service.facts, instance_id=InstanceId("2" * 16))
        answer = await client.get("/readyz")
        assert answer.status == 503
        checks = {one["name"]: one["ok"] for one in (await answer.json())["checks"]}
        assert [name for name, ok in checks.items() if not ok] == ["membership"]

    run(check)


def test_readiness_is_progress_not_state() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        assert (await client.get("/readyz")).status == 200
        now = [0.0]
        node.service.progress = ProgressClock(lambda: node.group.state.applied_index, lambda: now[0])
        stale = await client.get("/readyz")
        assert stale.status == 503
        assert "nothing has been applied" in await stale.text()
        node.group.state.applied_index += 1
        assert (await client.get("/readyz")).status == 200
        now[0] = 15.1
        assert (await client.get("/readyz")).status == 503
        assert (await client.get("/healthz")).status == 200
        node.group.state.applied_index += 1
        node.group.state.is_quarantined = True
        text = await (await client.get("/readyz", headers={"Accept": "text/plain"})).text()
        assert "NOT agreement" in text
        node.service.note_replica_failure("the disk failed")
        assert (await client.get("/healthz")).status == 503

    run(check)


def test_what_a_former_life_applied_is_not_progress() -> None:
    index = 0
    clock = ProgressClock(lambda: index)
    index = 500
    assert clock.age_s() is None
    index = 501
    assert clock.age_s() is not None


def test_members_and_rituals() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        members = (await (await client.get("/v1/members")).json())["members"]
        assert [(row["name"], row["status"]) for row in members] == [("alpha", "alive")]
        assert members[0].keys() == schemas()["Member"]["properties"].keys()
        rituals = (await (await client.get("/v1/rituals")).json())["rituals"]
        echo = next(row for row in rituals if row["name"] == "echo")
        assert echo["here"] is True
        assert echo["offered_by"][0]["name"] == "alpha"
        assert (await (await client.get("/v1/rituals/echo")).json())["ritual"] == echo

    run(check)


@pytest.mark.parametrize(
    ("registered", "shown"),
    [("auto:7781", "10.0.0.2:7781"), ("auto:0", "10.0.0.2:50001"), ("10.9.9.9:7781", "10.9.9.9:7781"), ("", "")],
)
def test_a_member_on_all_addresses_is_shown_under_the_one_it_is_known_by(registered: str, shown: str) -> None:
    async def check(client: Client, node: TwinNode) -> None:
        beta = RegisterMember(
            node_id=NodeId("b" * 26), instance_id=InstanceId("2" * 16), name="beta", tier="core", address=registered,
            http_address="", slots=1, async_slots=1, rituals={}, software="1.2+local.commands.7", at_ms=NOW_MS,
        )  # fmt: skip
        node.group.apply(beta)
        members = (await (await client.get("/v1/members")).json())["members"]
        assert {row["name"]: row["address"] for row in members} == {"alpha": "127.0.0.1:1", "beta": shown}
        assert (members[1]["software"], members[1]["command_version"]) == ("1.2+local", 7)

    run(check)


def test_the_secrets_of_every_node() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        (own,) = (await (await client.get("/v1/trust")).json())["nodes"]
        assert own == {"node_id": NODE, "name": "alpha", "address": "", "accepts": ["0a1b2c3d"], "unknown": ""}
        assert own.keys() == schemas()["TrustList"]["properties"]["nodes"]["items"]["properties"].keys()
        before = (await (await client.get("/status")).json())["secret"]["accepts"]
        assert before == own["accepts"]

    run(check)


def test_index_and_openapi_name_every_route() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        index = await (await client.get("/")).text()
        document = await (await client.get("/openapi.json")).json()
        assert document["openapi"] == "3.1.0"
        for route in ROUTES:
            assert route.path in index
            assert route.method.lower() in document["paths"][route.path]
        names = set(document["components"]["schemas"])
        for reference in _references(document):
            assert reference.removeprefix("#/components/schemas/") in names

    run(check)


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for item in value.values() for found in _references(item)]
    return [found for item in value for found in _references(item)] if isinstance(value, list) else []


def test_a_taken_port_is_said_to_be_taken() -> None:
    from node.http.guard import HttpConfigError

    async def main() -> None:
        node = TwinNode()
        first = HttpServer(node.service, bind="127.0.0.1", port=0)
        _, port = await first.start()
        second = HttpServer(node.service, bind="127.0.0.1", port=port)
        with pytest.raises(HttpConfigError, match=f"^port {port} on 127.0.0.1 is in use: stop the other program"):
            await second.start()
        await second.stop()
        await first.stop()

    asyncio.run(main())


def test_connections_beyond_the_cap_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    from node.http import limits

    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 1)

    async def main() -> None:
        node = TwinNode()
        server = HttpServer(node.service, bind="127.0.0.1", port=0)
        host, port = await server.start()
        _, first = await asyncio.open_connection(host, port)
        first.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.sleep(0)
        reader, second = await asyncio.open_connection(host, port)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        for writer in (first, second):
            writer.close()
            await writer.wait_closed()
        await server.stop()
        await node.service.stop()

    asyncio.run(main())


def test_a_request_that_never_ends_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    from node.http import limits

    monkeypatch.setattr(limits, "IDLE_S", 0.05)

    async def main() -> None:
        node = TwinNode()
        server = HttpServer(node.service, bind="127.0.0.1", port=0)
        host, port = await server.start()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: local")
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        await server.stop()
        await node.service.stop()

    asyncio.run(main())


def test_a_body_that_never_ends_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    from node.http import limits

    monkeypatch.setattr(limits, "BODY_S", 0.05)

    async def main() -> None:
        node = TwinNode()
        server = HttpServer(node.service, bind="127.0.0.1", port=0)
        host, port = await server.start()
        reader, writer = await asyncio.open_connection(host, port)
        lines = ("POST /v1/sessions HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 9")
        writer.write("\r\n".join((*lines, "", "{")).encode())
        async with asyncio.timeout(20):
            assert b" 408 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
        await server.stop()
        await node.service.stop()

    asyncio.run(main())


def test_uptime_does_not_follow_the_wall_clock() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        node.service.now_ms = lambda: 0
        assert 0 <= (await (await client.get("/status")).json())["uptime_s"] < 3600

    run(check)
