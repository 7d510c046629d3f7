"""Who may ask: tokens, foreign hosts, foreign pages, and doors that must not be left open."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from node.http.guard import Guard, HttpConfigError, load_token
from tests.unit.http.twin import TwinNode, body, run

Client = TestClient[Any, Any]
TOKEN = "0123456789abcdef0123456789abcdef"


def test_token_is_asked_for_everywhere_but_at_the_probes() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        for path in ("/", "/status", "/v1/sessions", "/nothing", "/openapi.json"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
                response = await client.get(path, headers=headers)
                assert (response.status, (await response.json())["code"]) == (401, "unauthorized")
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
        assert (await client.get("/healthz")).status == 200
        assert (await client.get("/readyz")).status == 200
        assert (await client.get("/status", headers={"Authorization": f"Bearer {TOKEN}"})).status == 200
        assert (await client.get("/status", headers={"Authorization": f"bearer {TOKEN}"})).status == 200

    run(check, token=TOKEN)


def test_foreign_hosts_are_refused_on_loopback() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        for host in ("evil.example", "evil.example:7780", "127.0.0.1.evil.example", "", "[::2]:1"):
            response = await client.get("/status", headers={"Host": host})
            assert (response.status, (await response.json())["code"]) == (403, "foreign_host")
        for host in ("localhost", "LOCALHOST:7780", "127.0.0.1:1", "[::1]:7780"):
            assert (await client.get("/status", headers={"Host": host})).status == 200

    run(check)


def test_other_hosts_may_be_asked_for_beyond_loopback() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        assert (await client.get("/status", headers={"Host": "node-1.lan"})).status == 200

    run(check, bind="0.0.0.0")


def test_foreign_pages_may_not_command() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        for origin in ("http://evil.example", "null", "http://[", "http://localhost:1"):
            response = await client.post("/v1/sessions", json=body(), headers={"Origin": origin})
            assert (response.status, (await response.json())["code"]) == (403, "foreign_origin")
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            for data in (b"{}", b""):
                response = await client.post("/v1/sessions", data=data, headers={"Content-Type": kind})
                assert (response.status, (await response.json())["code"]) == (415, "unsupported_media_type")
        own = f"http://{client.host}:{client.port}"
        assert (await client.post("/v1/sessions", json=body(), headers={"Origin": own})).status == 201

    run(check)


@pytest.mark.parametrize("bind", ["0.0.0.0", "192.168.1.5", "::", "node-1.lan"])
def test_an_open_door_is_refused_at_start(bind: str) -> None:
    with pytest.raises(HttpConfigError, match=r"token_file.*allow_unauthenticated") as caught:
        Guard(bind, None, allow_unauthenticated=False)
    assert caught.value.code == "exposed"
    Guard(bind, TOKEN, allow_unauthenticated=False)
    Guard(bind, None, allow_unauthenticated=True)


@pytest.mark.parametrize("bind", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_loopback_needs_no_token(bind: str) -> None:
    Guard(bind, None, allow_unauthenticated=False)


def test_token_files(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(HttpConfigError, match="cannot read"):
        load_token(path)
    for text in ("", "short\n", "with spaces in the middle of it\n", "ümlaut" * 10):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(HttpConfigError, match="openssl"):
            load_token(path)
    path.write_text(f"{TOKEN}\ncomment\n")
    path.chmod(0o644)
    with pytest.raises(HttpConfigError, match="chmod 600"):
        load_token(path)
    path.chmod(0o600)
    assert load_token(path) == TOKEN
