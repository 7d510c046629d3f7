"""Submitting and following a session."""

import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.cli import drafts
from node.cli.exits import CommandError, Exit
from node.cli.main import build_parser, main
from tests.unit.cli.conftest import NODE, SESSION_ID, Answer, FakeNode, Request, insight_document, session


def accepting(node: FakeNode, **changes: Any) -> None:
    def accept(request: Request) -> Answer:
        if request.method == "GET":
            return Answer({"sessions": [session()], "next": None})
        return Answer({"session": session(status="pending", completed=0), "id": SESSION_ID, "created": True}, 201)

    node.on("/v1/sessions", accept)
    node.on(f"/v1/sessions/{SESSION_ID}", {"session": session(**changes)})
    node.on(f"/v1/sessions/{SESSION_ID}/insight", insight_document())
    node.on("/v1/events", Answer(stream=["id: 3.0", ""]))


def test_tasks_of_a_ritual(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    accepting(node)
    words = ["--ritual", "wait", "--task", "a", "--task", "b", "--param", "seconds=0.5", "--param", "text=hi there"]
    more = ["--thought", "why", "--attempts", "2", "--branch-timeout", "9"]
    assert main(["session", "submit", *words, *more]) == Exit.OK
    body = node.requests[0].body
    uuid.UUID(body.pop("id"))
    parameters = {"seconds": 0.5, "text": "hi there"}
    assert body == {
        "thought": "why",
        "ritual": "wait",
        "attempts_max": 2,
        "timeout_s": 9.0,
        "branches": [{"task": "a", "parameters": parameters}, {"task": "b", "parameters": parameters}],
    }
    assert f"meshnode session watch {SESSION_ID}" in capsys.readouterr().out


def test_a_file_and_standard_input(
    node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accepting(node)
    body = {"id": SESSION_ID, "thought": "t", "branches": [{"ritual": "echo", "task": "x"}]}
    path = tmp_path / "session.json"
    path.write_text(json.dumps(body))
    assert main(["session", "submit", str(path), "--json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["id"] == SESSION_ID
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(body).encode())))
    assert main(["session", "submit", "-"]) == Exit.OK
    assert node.requests[0].body == node.requests[1].body == body


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "one source of branches is needed"),
        (["x.json", "--ritual", "echo"], "one source of branches is needed"),
        (["--ritual", "echo"], "--task is missing"),
        (["--task", "x"], "--ritual is missing"),
        (["--ritual", "echo", "--task", "x", "--param", "oops"], "--param: found 'oops', allowed: NAME=VALUE"),
        (["/nonexistent.json"], "/nonexistent.json cannot be read: No such file or directory"),
        (["--branches-from", "echo"], "the ritual 'echo' proposes no branches"),
    ],
)
def test_what_cannot_be_submitted(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["session", "submit", *words]) == Exit.USAGE
    assert capsys.readouterr().err.startswith(f"error: {expected}")


def test_a_file_that_is_no_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "session.json"
    path.write_text("{")
    assert main(["session", "submit", str(path)]) == Exit.USAGE
    path.write_text("[]")
    assert main(["session", "submit", str(path)]) == Exit.USAGE
    err = capsys.readouterr().err
    assert "is not JSON" in err
    assert "a session must be a JSON object" in err


def test_branches_from_a_ritual_get_the_types_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from node.rituals.builtin import echo

    def branches(count: int, folder: Path | None = None, *rest: str) -> list[dict[str, Any]]:
        return [{"task": f"{index} {folder} {rest}", "parameters": {"n": index}} for index in range(count)]

    monkeypatch.setattr(echo, "branches", branches, raising=False)
    with pytest.raises(CommandError, match="--branches-from echo: count: found 'two', allowed: a number"):
        drafts.build(build_parser().parse_args(["session", "submit", "--branches-from", "echo", "two"]))
    words = ["session", "submit", "--branches-from", "echo", "2", "docs", "x", "--param", "y=1"]
    body = drafts.build(build_parser().parse_args(words))
    assert body["ritual"] == "echo"
    assert body["branches"] == [
        {"task": "0 docs ('x',)", "parameters": {"n": 0, "y": 1}},
        {"task": "1 docs ('x',)", "parameters": {"n": 1, "y": 1}},
    ]


def test_waiting_ends_with_the_insight(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    accepting(node)
    path = f"/v1/sessions/{SESSION_ID}"
    node.on(path, {"session": session(status="processing", completed=1)}, {"session": session()})
    assert main(["session", "submit", "--ritual", "echo", "--task", "x", "--wait"]) == Exit.OK
    assert "Growth holds" in capsys.readouterr().out
    waits = [request for request in node.requests if request.path == path]
    assert len(waits) == 2
    assert all(request.query == {"wait": "20.000s", "until": "terminal"} for request in waits)


def test_waiting_gives_up_at_its_deadline(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    accepting(node, status="processing", completed=1)
    words = ["--ritual", "echo", "--task", "x", "--wait", "--timeout", "0.05"]
    assert main(["session", "submit", *words]) == Exit.TIMEOUT
    assert capsys.readouterr().err == (
        f"error: session {SESSION_ID} is processing after 0.05 s; it goes on\n"
        f"fix: meshnode session watch {SESSION_ID}\n"
    )


def test_a_failed_session_is_a_failure_and_says_why(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    failure = {"code": "all_failed", "message": "every branch failed"}
    accepting(node, status="failed", completed=0, failed=6, failure=failure)
    row = {"branch_index": 3, "attempt": 2, "node_id": NODE, "failure": {"message": "ValueError: no data"}}
    node.on(f"/v1/sessions/{SESSION_ID}/branches", {"branches": [row], "next": None})
    assert main(["session", "submit", "--ritual", "echo", "--task", "x", "--wait"]) == Exit.FAILED
    out = capsys.readouterr().out
    assert "every branch failed (all_failed)" in out
    assert "- branch 3, attempt 2 on ann: ValueError: no data" in out
    assert f"session show {SESSION_ID} --branches" in out
    assert node.requests[-1].query == {"status": "failed", "limit": "5"}


def test_watching_shows_progress_and_resumes_elsewhere(
    node: FakeNode,
    start_node: Callable[[], FakeNode],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.cli.events.RECONNECT_S", 0.01)
    monkeypatch.setattr("node.cli.progress.LINE_PERIOD_S", 0.0)
    other = start_node()
    for one in (node, other):
        accepting(one)
        one.on("/v1/members", {"members": [], "leader": None})
    path = f"/v1/sessions/{SESSION_ID}"
    steps = [{"session": session(status="processing", completed=done, processing=1, rev=done)} for done in (0, 1)]

    def then(request: Request) -> Answer:
        """Completed once the stream has been resumed on the other node."""
        return Answer({"session": session()} if "/v1/events" in other.paths() else steps[1])

    node.on(path, steps[0], then)
    node.on("/v1/events", Answer(stream=["id: 7.1", "event: branch_completed", "data: {}", ""]))
    event = ["id: 8.0", "event: session_completed", "data: {}", ""]
    other.on("/v1/events", Answer(stream=event))
    urls = f"{node.url},{other.url}"
    assert main(["session", "watch", SESSION_ID, "--url", urls]) == Exit.OK
    captured = capsys.readouterr()
    assert "0/4  1 running" in captured.err
    assert captured.err.splitlines()[-1].startswith("[########################] 4/4  completed")
    assert "Growth holds" in captured.out
    resumed = next(request for request in other.requests if request.path == "/v1/events")
    assert resumed.headers["Last-Event-ID"] == "7.1"
    assert resumed.query == {"session": SESSION_ID}


def test_watching_what_has_ended_shows_one_line(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    accepting(node)
    assert main(["session", "watch", SESSION_ID]) == Exit.OK
    (only,) = capsys.readouterr().err.splitlines()
    assert "4/4  completed" in only


@pytest.mark.parametrize("how", ["--wait", "--watch"])
def test_ctrl_c_says_that_the_session_goes_on(
    node: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    accepting(node, status="processing", completed=0)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("node.cli.sessions._patiently", interrupt)
    assert main(["session", "submit", "--ritual", "echo", "--task", "x", how]) == Exit.INTERRUPTED
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"the session goes on; follow it with: meshnode session watch {SESSION_ID}"


def test_a_watcher_outlives_an_election(
    node: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accepting(node)
    no_leader = Answer({"code": "no_leader", "detail": "There is no leader.", "fix": ""}, 503)
    node.on(f"/v1/sessions/{SESSION_ID}", no_leader, {"session": session()})
    assert main(["session", "submit", "--ritual", "echo", "--task", "x", "--wait"]) == Exit.OK


def test_json_of_a_wait_holds_session_insight_and_provenance(
    node: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    accepting(node)
    assert main(["session", "submit", "--ritual", "echo", "--task", "x", "--wait", "--json"]) == Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"session", "insight", "provenance"}
