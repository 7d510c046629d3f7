"""Every refusal is a problem document with a code that is listed, a cause and a fix."""

import ast
import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient

from node.http.app import HANDLERS
from node.http.problems import CONTENT_TYPE, FACE_CODES, STATUS_OF
from node.http.routes import ROUTES
from node.service.errors import CODES
from tests.unit.http.twin import TwinNode, body, run

Client = TestClient[Any, Any]
ROOT = Path(__file__).resolve().parents[3]


async def problem(response: ClientResponse) -> dict[str, Any]:
    assert response.content_type == CONTENT_TYPE
    document = await response.json()
    assert document["code"] in CODES or document["code"] in FACE_CODES
    assert document["status"] == response.status
    assert document["type"].endswith(document["code"])
    assert document["title"]
    assert document["detail"]
    assert isinstance(document["fix"], str)
    assert isinstance(document, dict)
    return document


def test_tables_agree() -> None:
    assert STATUS_OF.keys() == CODES.keys()
    assert not FACE_CODES.keys() & CODES.keys()
    assert {route.name for route in ROUTES} == HANDLERS.keys()


def test_every_code_raised_is_listed() -> None:
    known = CODES.keys() | FACE_CODES.keys()
    files = [*ROOT.glob("node/*.py"), *ROOT.glob("node/http/*.py")]
    raised = {
        node.args[0].value
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("ServiceError", "Problem")
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert raised
    assert raised <= known


BRANCH: dict[str, Any] = {"ritual": "echo", "task": "t"}
REFUSED: list[tuple[Any, str, str]] = [
    ([], "invalid_session", "object"),
    ({}, "invalid_session", "branches"),
    ({"thoght": "x"}, "unknown_key", "'thought'"),
    (body(branches=[]), "invalid_session", "branches"),
    (body(branches=[1]), "invalid_session", "branches[0]"),
    (body(branches=[{**BRANCH, "tsk": 1}]), "unknown_key", "'task'"),
    (body(branches=[{"task": "t"}]), "invalid_session", "ritual"),
    (body(branches=[{"ritual": "ecko", "task": "t"}]), "unknown_ritual", "'echo'"),
    (body(branches=[{"ritual": "echo"}]), "invalid_session", "branches[0].task"),
    (body(branches=[{**BRANCH, "task": " "}]), "invalid_session", "empty"),
    (body(branches=[{**BRANCH, "task": "x" * 70_000}]), "invalid_session", "longer"),
    (body(branches=[{**BRANCH, "seed": -1}]), "invalid_session", "seed"),
    (body(branches=[{**BRANCH, "seed": True}]), "invalid_session", "seed"),
    (body(branches=[{**BRANCH, "timeout_s": 0}]), "invalid_session", "timeout_s"),
    (body(branches=[{**BRANCH, "attempts_max": 0}]), "invalid_session", "attempts_max"),
    (body(branches=[{**BRANCH, "parameters": 3}]), "invalid_session", "parameters"),
    (body(branches=[{**BRANCH, "ritual": "wait", "parameters": {"secnds": 1}}]), "invalid_parameters", "secnds"),
    (body(thought=""), "invalid_session", "thought"),
    (body(thought=3), "invalid_session", "thought"),
    (body(id="x"), "invalid_session", "UUID"),
    (body(main_session_id=4), "invalid_session", "UUID"),
    (body(consolidation=3), "invalid_session", "consolidation"),
    (body(consolidation={"ritual": "nothing"}), "unknown_ritual", "consolidation"),
]


@pytest.mark.parametrize(("document", "code", "hint"), REFUSED)
def test_refused_submissions_say_where_and_what(document: Any, code: str, hint: str) -> None:
    async def check(client: Client, node: TwinNode) -> None:
        before = node.group.state.applied_index
        response = await client.post("/v1/sessions", json=document)
        found = await problem(response)
        assert (response.status, found["code"]) == (422, code)
        assert hint in found["detail"] + found["fix"]
        assert node.group.state.applied_index == before

    run(check)


def test_bodies_that_are_not_json() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        headers = {"Content-Type": "application/json"}
        for raw in (b"", b"{", b'{"a":1,}', b"\xff\xfe", b"nul", b"[" * 100_000, b'"\\ud800"', b"NaN"):
            found = await problem(await client.post("/v1/sessions", data=raw, headers=headers))
            assert found["code"] in ("malformed_json", "invalid_session")
        found = await problem(await client.post("/v1/sessions", data=b'{"a": x}', headers=headers))
        assert found["position"] == 6

    run(check)


def test_large_body_is_refused_with_how_to_split() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        raw = json.dumps(body(thought="x" * (1 << 20))).encode()
        response = await client.post("/v1/sessions", data=io.BytesIO(raw), headers={"Content-Type": "application/json"})
        found = await problem(response)
        assert (response.status, found["code"]) == (413, "too_large")
        assert "Split" in found["fix"]

    run(check)


def test_session_that_grows_beyond_a_command_is_refused() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        branches = [{"task": "x" * 90} for _ in range(9_900)]
        raw = json.dumps({"thought": "t", "ritual": "echo", "branches": branches}, separators=(",", ":")).encode()
        assert len(raw) < 1 << 20
        response = await client.post("/v1/sessions", data=io.BytesIO(raw), headers={"Content-Type": "application/json"})
        assert (response.status, (await problem(response))["code"]) == (413, "too_large")

    run(check)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/session", 404, "unknown_route"),
        ("DELETE", "/v1/sessions", 405, "method_not_allowed"),
        ("GET", "/v1/sessions?limit=0", 400, "invalid_argument"),
        ("GET", "/v1/sessions?limit=1001", 400, "invalid_argument"),
        ("GET", "/v1/sessions?limit=x", 400, "invalid_argument"),
        ("GET", "/v1/sessions?after=x", 400, "invalid_argument"),
        ("GET", "/v1/sessions?lmit=3", 400, "invalid_argument"),
        ("GET", "/v1/sessions?status=done", 400, "invalid_argument"),
        ("GET", "/v1/sessions?level=strong", 400, "invalid_argument"),
        ("GET", "/v1/sessions/nothing", 404, "unknown_session"),
        ("GET", "/v1/sessions/nothing/branches", 404, "unknown_session"),
        ("GET", "/v1/sessions/nothing/branches/x", 404, "unknown_branch"),
        ("GET", "/v1/sessions/nothing/insight", 404, "unknown_session"),
        ("GET", "/v1/sessions/nothing?wait=soon", 400, "invalid_argument"),
        ("GET", "/v1/branches/nothing", 404, "unknown_branch"),
        ("GET", "/v1/rituals/ecko", 404, "unknown_ritual"),
        ("GET", "/v1/events?after=x", 400, "invalid_argument"),
        ("POST", "/v1/sessions", 400, "malformed_json"),
    ],
)
def test_routes_refuse_with_a_problem(method: str, path: str, status: int, code: str) -> None:
    async def check(client: Client, node: TwinNode) -> None:
        response = await client.request(method, path)
        found = await problem(response)
        assert (response.status, found["code"]) == (status, code)

    run(check)


def test_unknown_route_names_the_nearest() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        found = await problem(await client.get("/v1/sesions"))
        assert "/v1/sessions" in found["nearest"]

    run(check)


def test_a_fault_of_ours_is_answered_without_its_story(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(client: Client, node: TwinNode) -> None:
        monkeypatch.setattr(node.service, "members", None)
        response = await client.get("/v1/members")
        found = await problem(response)
        assert (response.status, found["code"]) == (500, "internal")
        assert "NoneType" not in await response.text()

    run(check)


def test_before_founding_only_the_node_itself_answers() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        for path in ("/v1/sessions", "/v1/members", "/v1/events"):
            response = await client.get(path)
            found = await problem(response)
            assert (response.status, found["code"]) == (503, "forming")
            assert "waiting for 2 more" in found["detail"]
        status = await (await client.get("/status")).json()
        assert (status["name"], status["role"], status["leader"]) == ("alpha", None, None)
        assert (await client.get("/healthz")).status == 200
        assert (await client.get("/readyz")).status == 503

    run(check, attached=False)


def test_what_the_parser_refuses_is_a_problem_too() -> None:
    from node.http.server import HttpServer

    async def main() -> None:
        node = TwinNode()
        node.attach()
        server = HttpServer(node.service, bind="127.0.0.1", port=0)
        host, port = await server.start()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GARBAGE\r\n\r\n")
        head, _, payload = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        await node.service.stop()
        await server.stop()
        assert head.startswith(b"HTTP/1.0 400")
        assert json.loads(payload)["code"] == "bad_request"

    asyncio.run(main())
