"""A node's HTTP interface in a thread, answering what a test tells it to."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

NODE = "a" * 26
SESSION_ID = "5f0c7c1e-6f5e-4a57-9d0e-8f2f0c1b2a3d"


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class Answer:
    """`stream` lines are sent as they are, then the connection is closed; so is `content`, of which `cut_bytes` at the
    end are promised and not sent."""

    document: Any = None
    status: int = 200
    stream: list[str] | None = None
    content: bytes | None = None
    cut_bytes: int = 0


@dataclass
class FakeNode:
    """`on` registers answers by path; each may be a document, an Answer, or a function of the request. Several for one
    path are given one after the other, the last one again and again."""

    url: str
    requests: list[Request] = field(default_factory=list)
    routes: dict[str, list[Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def on(self, path: str, *answers: Any) -> None:
        self.routes[path] = list(answers)

    def problem(self, path: str, status: int, code: str, detail: str, fix: str = "") -> None:
        self.on(path, Answer({"code": code, "detail": detail, "fix": fix, "status": status}, status))

    def answer(self, request: Request) -> Answer:
        with self.lock:
            self.requests.append(request)
            answers = self.routes.get(request.path)
            if answers is None:
                return Answer({"code": "unknown_route", "detail": f"nothing at {request.path}"}, 404)
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer(request)
        return answer if isinstance(answer, Answer) else Answer(answer)

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


@pytest.fixture
def start_node() -> Iterator[Callable[[], FakeNode]]:
    """Starts nodes; all are stopped at the end of the test."""
    running: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start() -> FakeNode:
        fake = FakeNode("")

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                parts = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                data = self.rfile.read(length)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                body = json.loads(data) if data else None
                answer = fake.answer(Request(self.command, parts.path, query, body, dict(self.headers)))
                self.send_response(answer.status)
                if answer.stream is not None:
                    self.send_header("Content-Type", "text/event-stream")
                    self.end_headers()
                    self.wfile.write("".join(f"{line}\n" for line in answer.stream).encode())
                    return
                if answer.content is not None:
                    self.send_header("Content-Length", str(len(answer.content)))
                    self.end_headers()
                    self.wfile.write(answer.content[: len(answer.content) - answer.cut_bytes])
                    return
                content = json.dumps(answer.document).encode()
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = handle_any

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = False  # server_close then waits for them
        fake.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        running.append((server, thread))
        return fake

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture
def node(start_node: Callable[[], FakeNode], monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    """One node, to which commands go without --url. No colours, wide terminal."""
    fake = start_node()
    fake.on("/v1/members", {"members": [member()], "leader": NODE, "as_of_index": 7})
    for name in ("MESHNODE_TOKEN_FILE", "MESHNODE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MESHNODE_URL", fake.url)
    monkeypatch.setenv("COLUMNS", "120")
    return fake


def member(**changes: Any) -> dict[str, Any]:
    return {
        "node_id": NODE, "name": "ann", "tier": "core", "status": "alive", "slots": 2, "async_slots": 100,
        "address": "10.0.0.1:7781", "http_address": "127.0.0.1:7780", "software": "0.1.0", "command_version": 1,
        **changes,
    }  # fmt: skip


def session(**changes: Any) -> dict[str, Any]:
    return {
        "id": SESSION_ID, "thought": "what holds?", "status": "completed", "total_branches": 4, "completed": 4,
        "failed": 0, "cancelled": 0, "processing": 0, "pending": 0, "rev": 9, "submitted_by": NODE, "failure": None,
        "created_at": "2026-01-31T12:00:00.000Z", "completed_at": "2026-01-31T12:00:02.000Z",
        "parallel_efficiency": 1.9, **changes,
    }  # fmt: skip


def insight_document() -> dict[str, Any]:
    return {
        "insight": {
            "synthesis": "Growth holds; austerity alone does not.", "emergent_patterns": ["debt falls", "rates bite"],
            "next_steps": ["try a longer horizon"], "total_patterns": 8, "total_connections": 3,
            "average_novelty": 0.25, "branches_used": 4, "branches_failed": 0, "parallel_efficiency": 1.9,
            "ranking": [
                {"branch_index": index, "task": f"mix {index}", "score": 1.0 - index / 100} for index in range(12)
            ],
        },
        "provenance": [
            {"branch_index": index, "branch_id": "b", "node_id": NODE, "attempt": 1 + (index == 3), "ritual": "echo",
             "ritual_version": "1", "duration_ms": 500}
            for index in range(4)
        ],
        "provenance_next": None,
    }  # fmt: skip
