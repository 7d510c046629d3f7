"""`GET /v1/backup`: one stream that is whole or visibly broken, and that no foreign page sets off."""

from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient

from node.http.backup import CONTENT_TYPE
from node.service.errors import ServiceError
from storage.dump import DumpDecoder
from tests.unit.http.twin import TwinNode, run

Client = TestClient[Any, Any]


def test_the_whole_backup_is_the_answer() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        answer = await client.get("/v1/backup")
        assert answer.status == 200
        assert answer.headers["Content-Type"] == CONTENT_TYPE
        assert answer.headers["Content-Disposition"] == 'attachment; filename="home-5.backup"'
        decoder = DumpDecoder()
        decoder.feed(await answer.read())
        decoder.finish()

    run(check)


def test_what_breaks_off_does_not_look_whole() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        node.backups.breaks_after = 1
        answer = await client.get("/v1/backup")
        with pytest.raises(aiohttp.ClientError):
            await answer.read()

    run(check)


def test_refusals_come_before_the_stream() -> None:
    async def check(client: Client, node: TwinNode) -> None:
        node.backups.refusal = ServiceError("disk_low", "No room.", "Make some.")
        answer = await client.get("/v1/backup")
        assert (answer.status, (await answer.json())["code"]) == (507, "disk_low")
        foreign = await client.get("/v1/backup", headers={"Origin": "http://evil.example"})
        assert (foreign.status, (await foreign.json())["code"]) == (403, "foreign_origin")

    run(check)
