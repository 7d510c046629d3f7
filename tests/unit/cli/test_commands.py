"""Client commands against a node that answers what it is told to."""

import json
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.cli.exits import Exit
from node.cli.main import main
from tests.unit.cli.conftest import NODE, SESSION_ID, Answer, FakeNode, insight_document, member, session

ROOT = Path(__file__).resolve().parents[3]


def test_nodes_is_a_table(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.on("/v1/members", {"members": [member(), member(name="ben", node_id="b" * 26, status="dead")], "leader": NODE})
    assert main(["nodes"]) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "id", "tier", "status", "standing", "slots", "address", "version", "secret"]
    assert lines[1].split() == ["ann", NODE, "core", "alive", "leader", "2+100", "10.0.0.1:7781", "0.1.0", "-"]
    assert lines[2].split()[3] == "dead"
    node.on("/v1/members", {"members": [member(draining="drained")], "leader": NODE})
    assert main(["nodes"]) == Exit.OK
    assert " drained " in capsys.readouterr().out
    assert "\x1b" not in "".join(lines)


def test_nodes_fits_a_narrow_terminal(
    node: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names do, where they tell nodes apart."""
    monkeypatch.setenv("COLUMNS", "80")
    rows = [member(secrets=["fe062ccf"]), member(name="ben", node_id="b" * 26, address="auto:7781")]
    node.on("/v1/members", {"members": rows, "leader": NODE})
    assert main(["nodes"]) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["ben", "core", "alive", "-", "2+100", "*:7781", "0.1.0", "-"]
    node.on("/v1/members", {"members": [member(), member(node_id="b" * 26)], "leader": NODE})
    assert main(["nodes"]) == Exit.OK
    assert "b" * 26 in capsys.readouterr().out


def test_how_new_the_commands_are_is_said_while_nodes_differ(
    node: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = member(name="ben", node_id="b" * 26, command_version=2)
    node.on("/v1/members", {"members": [newer, newer], "leader": NODE})
    assert main(["nodes"]) == Exit.OK
    assert "commands" not in capsys.readouterr().out
    node.on("/v1/members", {"members": [member(), newer], "leader": NODE})
    assert main(["nodes"]) == Exit.OK
    _, old, new = capsys.readouterr().out.splitlines()
    assert " 0.1.0 (commands 1) " in old
    assert " 0.1.0 (commands 2) " in new


@pytest.mark.parametrize("is_before", [True, False])
def test_options_before_and_after_the_action_hold(start_node: Callable[[], FakeNode], is_before: bool) -> None:
    """One that is lost would send the change to another mesh."""
    other = start_node()
    quorum = {"voters": 3, "majority": 2, "healthy": 3, "survives": 1}
    other.on(
        "/v1/members/ben/change",
        {"dry_run": True, "allowed": True, "refusal": None, "steps": [], "before": quorum, "after": quorum},
    )
    options = ["--url", other.url, "--json"]
    action = ["remove", "ben", "--dry-run"]
    assert main(["nodes", *options, *action] if is_before else ["nodes", *action, *options]) == Exit.OK
    assert other.paths() == ["/v1/members/ben/change"]


def test_nodes_remove_says_what_happens_and_asks(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    plan = {
        "dry_run": True,
        "allowed": True,
        "refusal": None,
        "steps": [{"kind": "remove", "node_id": "b" * 26, "name": "ben"}],
        "before": {"voters": 3, "majority": 2, "healthy": 3, "survives": 1},
        "after": {"voters": 2, "majority": 2, "healthy": 2, "survives": 0},
    }
    node.on("/v1/members/ben/change", plan)
    assert main(["nodes", "remove", "ben", "--dry-run"]) == Exit.OK
    told = capsys.readouterr().out
    assert "would remove ben" in told
    assert "after: 2 voters, 2 make a majority, 2 are healthy: survives the loss of 0" in told
    node.on("/v1/members/ben/change", {**plan, "allowed": False, "refusal": {"code": "last_voter", "message": "alone"}})
    assert main(["nodes", "remove", "ben", "--yes"]) == Exit.FAILED
    assert "alone" in capsys.readouterr().err


def test_json_is_what_the_node_said(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nodes", "--json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out) == {"members": [member()], "leader": NODE, "as_of_index": 7}


@pytest.mark.parametrize(
    "command", [["status"], ["nodes"], ["session", "list"], ["session", "show", SESSION_ID, "--branches"]]
)
def test_reads_pass_on_how_fresh_they_must_be(node: FakeNode, command: list[str]) -> None:
    main([*command, "--level", "linearizable", "--json"])
    assert node.requests
    assert [request.query["level"] for request in node.requests] == ["linearizable"] * len(node.requests)
    node.requests.clear()
    main([*command, "--max-age", "2.5", "--json"])
    assert {request.query["max_age_ms"] for request in node.requests} == {"2500"}


def test_status_shows_sections_and_peers(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.on(
        "/status",
        {
            "name": "ann", "tier": "core", "founding": "alone, waiting for 2 more",
            "storage": {"used_bytes": 2048}, "peers": [{"name": "ben", "state": "up", "rtt_ms": 0.4}], "seeds": [],
        },
    )  # fmt: skip
    assert main(["status"]) == Exit.OK
    out = capsys.readouterr().out
    assert "alone, waiting for 2 more" in out
    assert "2.0 KiB" in out
    assert "ben   up     0.4 ms" in out
    assert "address" not in out, "a column without anything in it"


def test_rituals(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    echo = {
        "name": "echo", "version": "1", "kind": "async", "description": "Gives back.", "timeout_s": 60.0,
        "source": "meshnode", "parameters": [
            {"name": "text", "type": "str", "required": False, "default": "x", "allowed": "str", "meaning": "what"}
        ],
    }  # fmt: skip
    node.on("/v1/rituals", {"rituals": [echo], "problems": [{"name": "bad", "reason": "ImportError: no"}]})
    node.on("/v1/rituals/echo", {"ritual": echo})
    node.problem("/v1/rituals/ecko", 404, "unknown_ritual", "No ritual 'ecko'.", "Did you mean 'echo'?")
    assert main(["ritual", "list"]) == Exit.OK
    assert "bad: ImportError: no" in capsys.readouterr().out
    assert main(["ritual", "show", "echo"]) == Exit.OK
    assert "text  str      x        what" in capsys.readouterr().out
    assert main(["ritual", "show", "ecko"]) == Exit.NOT_FOUND
    assert capsys.readouterr().err == "error: No ritual 'ecko' (unknown_ritual)\nfix: Did you mean 'echo'?\n"


def test_session_list(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.on("/v1/sessions", {"sessions": [session()], "next": "5"})
    assert main(["session", "list", "--limit", "1", "--status", "completed"]) == Exit.OK
    out = capsys.readouterr().out
    assert SESSION_ID in out
    assert "4/4" in out
    assert "there are more" in out
    assert node.requests[-1].query == {"limit": "1", "status": "completed"}
    node.on("/v1/sessions", {"sessions": [], "next": None})
    assert main(["session", "list"]) == Exit.OK
    assert capsys.readouterr().out == "no sessions\n"


def test_session_list_on_a_narrow_terminal_has_short_ids(
    node: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    twin = f"{SESSION_ID[:10]}{'0' * 26}"
    node.on("/v1/sessions", {"sessions": [session(), session(id=twin)], "next": None})
    assert main(["session", "list"]) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:]] == [SESSION_ID[:11], twin[:11]]


@pytest.mark.parametrize("limit", ["0", "1001", "x", "-1"])
def test_a_limit_that_no_node_takes_is_refused(limit: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["session", "list", "--limit", limit])
    assert ended.value.code == Exit.USAGE


def test_why_by_the_beginning_of_a_session_id(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.on("/v1/sessions", {"sessions": [session()], "next": None})
    answer: dict[str, Any] = {"sentence": "It has ended.", "candidates": [], "unblock": [], "next_deadline": None,
              "seen_from": {"is_leader": True}}  # fmt: skip
    node.on(f"/v1/branches/{SESSION_ID}/why", answer)
    assert main(["why", SESSION_ID[:4]]) == Exit.OK
    assert capsys.readouterr().out == "It has ended.\n"


def test_help_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    commands: tuple[list[str], ...] = (
        [], ["status"], ["nodes"], ["nodes", "leave"], ["why"], ["backup"], ["restore"], ["recover"], ["doctor"],
        ["session", "submit"], ["session", "watch"], ["secret", "rotate"],
    )  # fmt: skip
    for command in commands:
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80, text


def test_session_show_by_the_beginning_of_its_id(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.on("/v1/sessions", {"sessions": [session()], "next": None})
    node.on(f"/v1/sessions/{SESSION_ID}", {"session": session()})
    node.on(f"/v1/sessions/{SESSION_ID}/insight", insight_document())
    branch = {
        "branch_index": 0, "status": "completed", "node_id": NODE, "attempt": 1, "duration_ms": 500, "task": "mix 0",
        "failure": None, "live": None,
    }  # fmt: skip
    node.on(
        f"/v1/sessions/{SESSION_ID}/branches",
        {"branches": [branch], "next": "1"},
        {"branches": [{**branch, "branch_index": 1, "failure": {"code": "x", "message": "broke"}}], "next": None},
    )
    assert main(["session", "show", "5f0c", "--branches"]) == Exit.OK
    out = capsys.readouterr().out
    for text in (
        "what holds?",
        "through ann",
        "Growth holds; austerity alone does not.",
        "Ranking (best 10 of 12)",
        "- debt falls",
        "- try a longer horizon",
        "parallel efficiency 1.9",
        "broke",
    ):
        assert text in out
    assert "mix 10" not in out
    provenance = next(line for line in out.splitlines() if line.startswith("  ann"))
    assert provenance.split() == ["ann", NODE[:8], "4", "1", "2.0", "s", "echo", "1"]


def test_session_show_tells_of_a_second_attempt(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    beside = {"attempt": 2, "node_id": "other"}
    branch = {
        "branch_index": 0, "status": "processing", "node_id": NODE, "attempt": 1, "duration_ms": None, "task": "mix 0",
        "failure": None, "live": {"progress": 0.5, "message": "half"}, "speculative": beside,
    }  # fmt: skip
    node.on(f"/v1/sessions/{SESSION_ID}", {"session": session(status="processing")})
    node.on(f"/v1/sessions/{SESSION_ID}/branches", {"branches": [branch], "next": None})
    assert main(["session", "show", SESSION_ID, "--branches"]) == Exit.OK
    assert "50% half; slow, attempt 2 beside it on other" in capsys.readouterr().out


def test_a_session_that_is_not_there(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.on("/v1/sessions", {"sessions": [], "next": None})
    node.problem(f"/v1/sessions/{SESSION_ID}", 404, "unknown_session", "No session has this id.")
    assert main(["session", "show", "abc"]) == Exit.NOT_FOUND
    assert main(["session", "show", SESSION_ID]) == Exit.NOT_FOUND
    assert "no session begins with 'abc'" in capsys.readouterr().err


def test_cancel(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.on(f"/v1/sessions/{SESSION_ID}/cancel", {"session": session(status="cancelled")})
    assert main(["session", "cancel", SESSION_ID, "--reason", "enough"]) == Exit.OK
    assert node.requests[-1].body == {"reason": "enough"}
    assert capsys.readouterr().out == f"session {SESSION_ID} is cancelled\n"


def test_token_is_sent(node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-token\nrest\n")
    assert main(["nodes", "--token-file", str(tmp_path / "token")]) == Exit.OK
    assert node.requests[-1].headers["Authorization"] == "Bearer secret-token"


def test_next_node_is_asked_when_one_is_gone_or_cannot(
    start_node: Callable[[], FakeNode], capsys: pytest.CaptureFixture[str]
) -> None:
    stopping, good = start_node(), start_node()
    stopping.problem("/v1/members", 503, "stopping", "This node is stopping.")
    good.on("/v1/members", {"members": [], "leader": None})
    assert main(["nodes", "--url", f"127.0.0.1:1,{stopping.url},{good.url}"]) == Exit.OK
    assert "no members yet" in capsys.readouterr().out


def test_next_node_is_asked_when_a_refusal_breaks_off(start_node: Callable[[], FakeNode]) -> None:
    good = start_node()
    good.on("/v1/members", {"members": [], "leader": None})

    def refuse(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 100\r\n\r\n{")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it ends with a reset

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=refuse, args=(server,))
        thread.start()
        assert main(["nodes", "--url", f"http://127.0.0.1:{server.getsockname()[1]},{good.url}"]) == Exit.OK
        thread.join(5)


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "http://127.0.0.1:1"]) == Exit.UNREACHABLE
    err = capsys.readouterr().err
    assert err.startswith("error: no node answers: http://127.0.0.1:1 (connection refused)\nfix: ")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (503, "no_leader", Exit.UNREACHABLE),
        (504, "timeout", Exit.TIMEOUT),
        (401, "unauthorized", Exit.FAILED),
        (409, "session_exists", Exit.FAILED),
    ],
)
def test_refusals_have_their_exit_codes(
    node: FakeNode, capsys: pytest.CaptureFixture[str], status: int, code: str, expected: Exit
) -> None:
    node.problem("/status", status, code, "So it is.", "Do this.")
    assert main(["status"]) == expected
    assert capsys.readouterr().err == f"error: So it is ({code})\nfix: Do this.\n"


def test_another_program_on_the_port(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.on("/status", Answer(stream=["<html>"]))
    assert main(["status"]) == Exit.UNREACHABLE
    assert "did not answer in JSON" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:notaport", ","])
def test_urls_that_are_none(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url]) == Exit.USAGE
    assert capsys.readouterr().err.startswith("error: --url")


@pytest.mark.parametrize(
    "argv", [["nonsense"], ["session"], ["--config"], ["status", "--timeout", "0"], ["--check", "status"]]
)
def test_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == Exit.USAGE


def test_a_wrong_time_says_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["status", "--timeout", "soon"])
    assert "argument --timeout: found 'soon', allowed: seconds above 0" in capsys.readouterr().err


def test_without_a_command_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == Exit.USAGE
    assert "exit codes:" in capsys.readouterr().err


def test_secret_is_private_and_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "secret"
    assert main(["secret", "new", str(path)]) == Exit.OK
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert text.strip() not in capsys.readouterr().out
    assert main(["secret", "new", str(path)]) == Exit.FAILED
    assert path.read_text() == text
    assert "exists already and is not overwritten" in capsys.readouterr().err


def test_check_says_what_a_file_comes_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESHNODE_URL", raising=False)
    path = tmp_path / "core.toml"
    path.write_text("[node]\nname = 'ann'\n[mesh]\nsecret_file = 'secret'\n")
    assert main(["--config", str(path), "--check"]) == Exit.OK
    captured = capsys.readouterr()
    assert captured.out.startswith("ok: node ann (core), mesh home founded with 3 core nodes, links on auto:7781")
    assert captured.err.startswith(f"warning: {path}: [mesh] secret_file: found ")
    assert main(["--config", str(path)]) == Exit.USAGE
    assert capsys.readouterr().err.startswith(f"error: {path}: [mesh] secret_file: found ")
    path.write_text("[node]\nnmae = 'ann'\n")
    assert main(["--config", str(path), "--check"]) == Exit.USAGE
    err = capsys.readouterr().err
    assert err.endswith("nearest valid key: [node] name\n")
    assert err.count("\n") == 1


def test_a_leaf_imports_only_what_it_needs() -> None:
    script = (
        "import sys\nimport node.leaf.app\n"
        "heavy = {'aiohttp', 'lmdb', 'zeroconf', 'pysyncobj', 'consensus.group', 'storage.environment'}\n"
        "found = heavy & set(sys.modules)\nassert not found, found\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 0, result.stderr


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom node.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'aiohttp', 'asyncio', 'msgspec', 'lmdb', 'zeroconf', 'cryptography', 'structlog', 'pysyncobj'}\n"
        "found = heavy & set(sys.modules)\nassert not found, found\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "exit codes:" in result.stdout
