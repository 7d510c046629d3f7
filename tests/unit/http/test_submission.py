"""Bodies to commands, and pages that are bounded in what they read."""

import uuid
from typing import Any

import pytest

from consensus.state.commands import SubmitSession
from node.service import paging
from node.service.errors import ServiceError
from node.service.paging import scan
from node.service.submission import ATTEMPTS_DEFAULT, parse_submission, session_id_of
from storage.ids import SessionId
from tests.unit.http.twin import NODE, REGISTRY, body

FRESH = SessionId(str(uuid.UUID(int=7)))


def parse(document: Any, key: str | None = None, fresh: SessionId = FRESH, now_ms: int = 1) -> SubmitSession:
    return parse_submission(
        document,
        key=key,
        fresh_id=fresh,
        find_ritual=REGISTRY.get,
        offered=lambda: frozenset({*REGISTRY, "elsewhere"}),
        submitted_by=NODE,
        now_ms=now_ms,
    ).command


def test_seeds_follow_from_id_and_index_alone() -> None:
    first, again = parse(body(3)), parse(body(3), now_ms=9)
    assert [spec.seed for spec in first.branches] == [spec.seed for spec in again.branches]
    assert len({spec.seed for spec in [*first.branches, first.consolidation]}) == 4
    assert all(0 <= spec.seed < 1 << 53 for spec in first.branches)
    other = parse(body(3), fresh=SessionId(str(uuid.UUID(int=8))))
    assert other.branches[0].seed != first.branches[0].seed
    assert parse(body(branches=[{"ritual": "echo", "task": "t", "seed": 5}])).branches[0].seed == 5


def test_defaults_come_from_branch_session_ritual_in_this_order() -> None:
    command = parse(
        {
            "thought": "t",
            "ritual": "echo",
            "timeout_s": 2,
            "attempts_max": 7,
            "branches": [
                {"task": "a"},
                {"task": "b", "ritual": "wait", "timeout_s": 1.5, "attempts_max": 1, "parameters": {"seconds": 0}},
            ],
        }
    )
    first, second = command.branches
    assert (first.ritual, first.timeout_ms, first.attempts_max) == ("echo", 2000, 7)
    assert (second.ritual, second.timeout_ms, second.attempts_max) == ("wait", 1500, 1)
    plain = parse(body()).branches[0]
    assert plain.timeout_ms == int(REGISTRY["echo"].timeout_s * 1000)
    assert plain.attempts_max == ATTEMPTS_DEFAULT
    assert parse(body()).consolidation.ritual == "consolidate"


def test_rituals_of_other_members_are_accepted() -> None:
    assert parse(body(ritual="elsewhere", branches=[{"task": "t"}])).branches[0].ritual == "elsewhere"


def test_keys_and_ids() -> None:
    chosen = str(uuid.UUID(int=99))
    assert session_id_of(chosen.upper()) == chosen
    assert session_id_of("order 17") == session_id_of("order 17") != session_id_of("order 18")
    assert parse(body(id=chosen.upper())).session_id == chosen
    assert parse(body(id=chosen), key=chosen).session_id == chosen
    assert parse(body()).session_id == FRESH
    with pytest.raises(ServiceError, match="differs"):
        parse(body(id=chosen), key="order 17")


def test_scans_are_bounded_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "SCAN_BATCH_ROWS", 10)
    monkeypatch.setattr(paging, "SCAN_ROWS_MAX", 30)
    rows = list(range(1, 101))
    read = 0

    def fetch(after: int | None, count: int) -> list[int]:
        nonlocal read
        found = [row for row in rows if after is None or row > after][:count]
        read += len(found)
        return found

    after: int | None = None
    seen: list[int] = []
    for _ in range(10):
        read = 0
        page = scan(fetch, after, 5, lambda row: row, lambda row: row % 20 == 0)
        assert read <= 30
        seen += page.rows
        if page.next is None:
            break
        after = int(page.next)
    assert seen == [20, 40, 60, 80, 100]
