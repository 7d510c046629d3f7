"""`nodes drain`, `undrain`, `leave`: what is asked for, what is waited for, how it ends."""

from typing import Any

import pytest

from node.cli import draining
from node.cli.exits import Exit
from node.cli.main import main
from tests.unit.cli.conftest import NODE, Answer, FakeNode

OTHER = "b" * 26
QUORUM = {"voters": 3, "majority": 2, "healthy": 3, "survives": 1}
CHANGE = "/v1/members/ben/change"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "POLL_S", 0.0)


def answer(action: str, *, is_dry_run: bool = False, refusal: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "dry_run": is_dry_run, "allowed": refusal is None, "refusal": refusal, "action": action, "node_id": OTHER,
        "name": "ben", "running": 2, "hand_back_at": "2026-01-01T00:00:00.000Z",
        "quorum": {"before": QUORUM, "after": QUORUM} if action == "leave" else None,
    }  # fmt: skip


def members(running: int, leader: str = NODE, **more: Any) -> dict[str, Any]:
    row = {
        "node_id": OTHER, "name": "ben", "status": "alive", "running": running, "is_draining": True,
        "standing": "voter", "draining": "draining",
    }  # fmt: skip
    return {"members": [row | more], "leader": leader}


def test_drain_waits_until_nothing_is_left_and_leadership_is_handed_over(
    node: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node.on(CHANGE, answer("drain"))
    node.on("/v1/members", members(2, OTHER), members(1), members(1), members(0))
    assert main(["nodes", "drain", "ben", "--grace", "5"]) == Exit.OK
    assert node.requests[0].body == {"action": "drain", "grace_s": 5.0, "dry_run": False}
    captured = capsys.readouterr()
    assert captured.out == "ben is drained\n"
    assert captured.err.splitlines() == [
        "ben: 2 attempts to finish, leadership to hand over",
        "ben: 1 attempt to finish",
    ]


def test_drain_gives_up_waiting_and_says_that_it_goes_on(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.on(CHANGE, answer("drain"))
    node.on("/v1/members", members(2))
    assert main(["nodes", "drain", "ben", "--timeout", "0.01"]) == Exit.TIMEOUT
    assert "it goes on" in capsys.readouterr().err
    assert main(["nodes", "drain", "ben", "--no-wait"]) == Exit.OK


def test_drain_notices_that_somebody_ended_it(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.on(CHANGE, answer("drain"))
    node.on("/v1/members", members(2), members(2, is_draining=False))
    assert main(["nodes", "drain", "ben"]) == Exit.FAILED
    assert "undrained" in capsys.readouterr().err


def test_leave_says_what_becomes_of_the_quorum_and_waits_until_it_is_let_go(
    node: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, done = answer("leave", is_dry_run=True), answer("leave")
    node.on(CHANGE, lambda request: plan if request.body["dry_run"] else done)
    node.on("/v1/members", members(1), members(0, status="left"), members(0, status="left", standing="left"))
    assert main(["nodes", "leave", "ben", "--dry-run"]) == Exit.OK
    assert "then it leaves the mesh" in capsys.readouterr().out
    assert main(["nodes", "leave", "ben"]) == Exit.USAGE, "nobody is there to confirm it"
    for command in (["leave", "ben"], ["drain", "ben", "--leave"]):
        assert main(["nodes", *command, "--yes"]) == Exit.OK
        assert "starting it brings it back" in capsys.readouterr().out


def test_leave_is_refused_with_the_reason(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    refusal = {"code": "quorum_lost", "message": "2 are needed"}
    node.on(CHANGE, answer("leave", is_dry_run=True, refusal=refusal))
    assert main(["nodes", "leave", "ben", "--yes"]) == Exit.FAILED
    assert "2 are needed" in capsys.readouterr().err
    assert main(["nodes", "leave", "ben", "--dry-run"]) == Exit.FAILED
    assert all(request.body["dry_run"] for request in node.requests)


def test_undrain_and_an_unknown_node(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.on(CHANGE, answer("undrain"))
    assert main(["nodes", "undrain", "ben"]) == Exit.OK
    assert capsys.readouterr().out == "ben gets work again\n"
    node.on(CHANGE, Answer({"code": "unknown_node", "detail": "No node is called ben."}, 404))
    assert main(["nodes", "drain", "ben"]) == Exit.NOT_FOUND
