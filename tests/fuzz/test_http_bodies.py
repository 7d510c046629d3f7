"""Whatever a client sends, the answer is a session or a problem with a known code; never a fault of ours."""

import asyncio
import json
from typing import Any

from aiohttp.test_utils import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from node.http.problems import CONTENT_TYPE, FACE_CODES
from node.service.errors import CODES, ServiceError
from node.service.submission import parse_submission
from storage.ids import SessionId
from tests.unit.http.twin import NODE, REGISTRY, TwinNode, client_of

Client = TestClient[Any, Any]

KEYS = st.sampled_from(
    ["id", "thought", "main_session_id", "branches", "consolidation", "ritual", "task", "parameters", "seed",
     "timeout_s", "attempts_max", "reason", "seconds"]
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["echo", "wait", "consolidate", "00000000-0000-4000-8000-000000000001"])
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=8), inner, max_size=6),
    max_leaves=20,
)
BRANCH = st.fixed_dictionaries(
    {"task": st.text(max_size=9) | JSON, "ritual": st.sampled_from(["echo", "wait", "ecko"]) | JSON},
    optional={"parameters": st.dictionaries(st.text(max_size=5), JSON, max_size=3) | JSON, "seed": JSON,
              "timeout_s": JSON, "attempts_max": JSON},
)  # fmt: skip
ALMOST = st.fixed_dictionaries(
    {"thought": st.text(min_size=1, max_size=9) | JSON, "branches": st.lists(BRANCH, max_size=3) | JSON},
    optional={"id": JSON, "consolidation": BRANCH | JSON, "main_session_id": JSON, "timeout_s": JSON},
)
BODIES = st.binary(max_size=60) | (JSON | ALMOST).map(lambda value: json.dumps(value).encode())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(BODIES, st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=10))
def test_no_request_is_answered_with_a_fault(requests: list[tuple[bytes, str, str]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), client_of(TwinNode()) as client:
            for raw, word, value in requests:
                await _check(client, raw, word, value)

    asyncio.run(main())


async def _check(client: Client, raw: bytes, word: str, value: str) -> None:
    headers = {"Content-Type": "application/json"}
    answers = [
        await client.post("/v1/sessions", data=raw, headers=headers),
        await client.post("/v1/sessions/00000000-0000-4000-8000-000000000001/cancel", data=raw, headers=headers),
        await client.get("/v1/sessions", params={"after": value, "limit": word}),
        await client.get("/v1/insights", params={"after": value}),
        await client.get("/v1/sessions/x", params={"wait": word or "0", "rev": value}),
        await client.get("/v1/events", headers={"Last-Event-ID": "x" + word.encode("ascii", "ignore").hex()}),
    ]
    for answer in answers:
        assert answer.status != 500, await answer.text()
        if answer.status >= 400:
            assert answer.content_type == CONTENT_TYPE
            assert (await answer.json())["code"] in {*CODES, *FACE_CODES}
        else:
            await answer.json()


@settings(max_examples=400, deadline=None)
@given(ALMOST | JSON)
def test_a_submission_is_a_command_or_refused_and_the_same_each_time(document: Any) -> None:
    def parse() -> object:
        try:
            return parse_submission(
                document,
                key="key",
                fresh_id=SessionId("00000000-0000-4000-8000-000000000002"),
                find_ritual=REGISTRY.get,
                offered=lambda: frozenset(REGISTRY),
                submitted_by=NODE,
                now_ms=1,
            ).command
        except ServiceError as error:
            return error.code, error.detail

    assert parse() == parse()
