"""Two HTTP servers that pretend to be nodes of one mesh, and lie in a chosen way."""

import copy
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from node.testing import Daemon

LASTS_S = 0.15
"""A session completes by itself after this."""

BEHIND_S = 0.3
"""A lying node's reads are this old."""


class FakeMesh:
    """`lie`: none, or what is said in `test_clients.py`. `node-2` is the one that lies, where it matters who does."""

    def __init__(self, lie: str = "") -> None:
        self.lie = lie
        self._lock = threading.Lock()
        self._index = 10
        self._sessions: dict[str, dict[str, Any]] = {}
        self._born: dict[str, float] = {}
        self._past: list[tuple[float, int, dict[str, dict[str, Any]]]] = []
        self._submitted = 0
        self._servers = [self._serve(name) for name in ("node-1", "node-2")]
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in self._servers]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    @property
    def daemons(self) -> list[Daemon]:
        return [
            Daemon(f"node-{number}", Path(), "127.0.0.1", server.server_address[1], 0)
            for number, server in enumerate(self._servers, 1)
        ]

    def _serve(self, name: str) -> ThreadingHTTPServer:
        mesh = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: Any) -> None:
                status, document = mesh.answer(name, self.path, body)
                raw = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *arguments: object) -> None:
                """Silent."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = False
        return server

    def answer(self, node: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self._go_on()
            status, document = self._do(node, path, body)
            return status, {"as_of_index": self._index, **copy.deepcopy(document)}

    def _go_on(self) -> None:
        now = time.monotonic()
        for key, row in self._sessions.items():
            may_end = row["status"] == "pending" or (self.lie == "reopens" and row["status"] == "cancelled")
            if may_end and now - self._born[key] > LASTS_S:
                self._change(row, "completed")
        if "stale" in self.lie:
            self._past.append((now, self._index, {key: dict(row) for key, row in self._sessions.items()}))
            del self._past[:-400]

    def _change(self, row: dict[str, Any], status: str) -> None:
        self._index += 1
        row.update(status=status, rev=self._index)

    def _do(self, node: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        if path == "/v1/sessions":
            return self._submit(body)
        if path.endswith("/cancel"):
            row = self._sessions.get(path.split("/")[3])
            if row is None:
                return 404, {"code": "unknown_session"}
            if row["status"] == "pending":
                self._change(row, "cancelled")
            return 200, {"session": row}
        index, sessions = self._index, self._sessions
        if self.lie in ("stale", "stale and silent") and node == "node-2":
            ago = time.monotonic() - BEHIND_S
            _, index, sessions = next((past for past in self._past if past[0] >= ago), self._past[-1])
        as_of = {} if self.lie == "stale and silent" else {"as_of_index": index}
        if path.startswith("/v1/sessions?"):
            newest = sorted(sessions.values(), key=lambda row: -row["submit_index"])
            return 200, {"sessions": newest[:40], **as_of}
        key = path.split("/")[3].partition("?")[0]
        if key not in sessions:
            return 404, {"code": "unknown_session", **as_of}
        return 200, {"session": sessions[key], **as_of}

    def _submit(self, body: Any) -> tuple[int, dict[str, Any]]:
        key, known = body["id"], self._sessions.get(body["id"])
        if known is not None and known["thought"] != body["thought"] and self.lie != "overwrites":
            return 409, {"code": "session_exists"}
        if known is not None and self.lie not in ("creates twice", "overwrites"):
            return 200, {"session": known}
        self._index += 1
        row = {
            "id": key, "thought": body["thought"], "total_branches": len(body["branches"]), "status": "pending",
            "submit_index": self._index, "rev": self._index,
        }  # fmt: skip
        self._submitted += 1
        if self.lie != "forgets" or self._submitted % 10:
            self._sessions[key], self._born[key] = row, time.monotonic()
        return 201, {"session": row, "index": self._index}
