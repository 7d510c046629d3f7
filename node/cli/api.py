"""Talks HTTP to the mesh: any of several nodes, the next one when one cannot answer.

The standard library's client, so that a command starts at once. Every request may be repeated on another node: reads
by nature, writes because the caller chooses their ids.
"""

import http.client
import json
import os
import socket
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from node import __version__
from node.cli.exits import CommandError, Exit

URL_DEFAULT = "http://127.0.0.1:7780"
REQUEST_TIMEOUT_S = 10.0
"""A node that has not begun to answer by then is passed over. A long-poll adds its own waiting time."""

ANSWER_BYTES_MAX = 256 * 1024 * 1024
"""Of one answer; more is not ours."""

UNAVAILABLE = frozenset({502, 503})
"""Another node may be able to answer: this one has no leader, is stopping or has withdrawn itself."""

ELSEWHERE = UNAVAILABLE | {507}
"""Also: another node may have room on its disk."""


SILENCE_S = 45.0
"""Nodes send a heartbeat every 15 s; after three missed ones the connection is given up."""


class Api:
    """A client of one mesh. Remembers which of its nodes answered last. Not for several threads."""

    def __init__(
        self,
        urls: list[str],
        token: str = "",
        timeout_s: float = REQUEST_TIMEOUT_S,
        freshness: Mapping[str, object] | None = None,
    ) -> None:
        assert urls
        self._freshness = freshness or {}
        self.urls = urls
        self.timeout_s = timeout_s
        self.token = token
        self._current = 0

    @classmethod
    def of(cls, arguments: Namespace, environ: Mapping[str, str] = os.environ) -> "Api":
        """From `--url`, `--token-file`, `--timeout` and their environment variables."""
        text = arguments.url or environ.get("MESHNODE_URL") or URL_DEFAULT
        urls = [_checked_url(part.strip()) for part in text.split(",") if part.strip()]
        if not urls:
            raise CommandError("--url names no node", Exit.USAGE, f"use for example --url {URL_DEFAULT}")
        path = getattr(arguments, "token_file", None) or environ.get("MESHNODE_TOKEN_FILE")
        timeout_s = overall_timeout_s(arguments, environ)
        return cls(
            urls,
            _token(Path(path)) if path else "",
            min(timeout_s or REQUEST_TIMEOUT_S, REQUEST_TIMEOUT_S),
            _freshness(arguments),
        )

    @property
    def url(self) -> str:
        """The node that is asked first."""
        return self.urls[self._current]

    def get(self, path: str, query: Mapping[str, object] | None = None, *, wait_s: float = 0.0) -> Any:
        """JSON of a GET. `wait_s`: how long the node has been asked to hold the answer back."""
        return self._request("GET", path, query, None, wait_s)

    def post(self, path: str, body: object, *, headers: Mapping[str, str] | None = None) -> Any:
        return self._request("POST", path, None, body, 0.0, headers)

    @contextmanager
    def stream(self, path: str, query: Mapping[str, object], last_event_id: str) -> Iterator[http.client.HTTPResponse]:
        """An open answer of the first node that gives one; closed at the end. The socket keeps no deadline but
        `SILENCE_S`, which is more than a node's heartbeat."""
        headers = {"Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        connection, response = self._first("GET", path, query, None, headers, self.timeout_s)
        try:
            if connection.sock is not None:
                connection.sock.settimeout(SILENCE_S)
            if response.status != 200:
                raise _refusal(response.status, response.read(ANSWER_BYTES_MAX))
            yield response
        finally:
            response.close()
            connection.close()

    @contextmanager
    def download(self, path: str, begin_s: float) -> Iterator[http.client.HTTPResponse]:
        """An open answer of the first node that gives one, which may take `begin_s` to begin; closed at the end."""
        connection, response = self._first("GET", path, None, None, {"Accept": "*/*"}, self.timeout_s, begin_s)
        try:
            if response.status != 200:
                raise _refusal(response.status, response.read(ANSWER_BYTES_MAX))
            yield response
        finally:
            response.close()
            connection.close()

    def read(self, path: str, query: Mapping[str, object] | None = None) -> Any:
        """JSON of a GET, as fresh as `--level` and `--max-age` say."""
        return self.get(path, {**(query or {}), **self._freshness})

    def next_node(self) -> None:
        """Ask another node first from now on."""
        self._current = (self._current + 1) % len(self.urls)

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None,
        body: object,
        wait_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        connection, response = self._first(method, path, query, data, headers or {}, self.timeout_s + wait_s)
        try:
            content = response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            self.next_node()
            raise CommandError(f"the answer of {self.url} broke off ({error})", Exit.UNREACHABLE, "try again") from None
        finally:
            response.close()
            connection.close()
        if response.status >= 400:
            raise _refusal(response.status, content)
        try:
            return json.loads(content) if content.strip() else {}
        except ValueError:
            raise CommandError(
                f"{self.url} did not answer in JSON", Exit.UNREACHABLE, "is this the HTTP port of a meshnode?"
            ) from None

    def _first(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None,
        data: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
        begin_s: float = 0.0,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """`begin_s`: how long an answer may take to begin, if longer than `timeout_s`."""
        target = path + (f"?{urlencode(query)}" if query else "")
        failures: list[str] = []
        refused: CommandError | None = None
        for _ in self.urls:
            url = self.url
            connection = _connection(url, timeout_s)
            try:
                connection.request(method, target, data, self._headers(headers, data is not None))
                if begin_s > timeout_s and connection.sock is not None:
                    connection.sock.settimeout(begin_s)
                response = connection.getresponse()
                if response.status not in ELSEWHERE or len(self.urls) == 1:
                    return connection, response
                with response:
                    refused = _refusal(response.status, response.read(ANSWER_BYTES_MAX))
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url} ({_reason(error)})")
            connection.close()
            self.next_node()
        if refused is not None:
            raise refused
        raise CommandError(
            f"no node answers: {', '.join(failures)}",
            Exit.UNREACHABLE,
            "start one with `meshnode --config FILE`, or name another with --url",
        )

    def _headers(self, more: Mapping[str, str], has_body: bool) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": f"meshnode/{__version__}", "Connection": "close", **more}
        if has_body:
            headers["Content-Type"] = "application/json"
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers


def _freshness(arguments: Namespace) -> dict[str, object]:
    freshness: dict[str, object] = {}
    if level := getattr(arguments, "level", None):
        freshness["level"] = level
    if max_age_s := getattr(arguments, "max_age", None):
        freshness["max_age_ms"] = round(max_age_s * 1000)
    return freshness


def open_url(url: str, path: str, timeout_s: float) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """One GET without a token; the caller closes both. Raises OSError, HTTPException, CommandError (not a URL)."""
    connection = _connection(_checked_url(url), timeout_s)
    try:
        connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
        return connection, connection.getresponse()
    except BaseException:
        connection.close()
        raise


def overall_timeout_s(arguments: Namespace, environ: Mapping[str, str] = os.environ) -> float | None:
    """What `--timeout` or its variable says; None: without end."""
    if arguments.timeout is not None:
        return float(arguments.timeout)
    text = environ.get("MESHNODE_TIMEOUT", "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 10_000_000:
        raise CommandError(f"MESHNODE_TIMEOUT: found {text!r}, allowed: seconds above 0", Exit.USAGE)
    return value


def _checked_url(text: str) -> str:
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    try:
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_valid = False
    if not is_valid:
        raise CommandError(f"--url: {text!r} is not a URL", Exit.USAGE, f"use for example --url {URL_DEFAULT}")
    return url.rstrip("/")


def _token(path: Path) -> str:
    try:
        text = path.expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"the token file {path} cannot be read ({_reason(error)})", Exit.USAGE) from None
    return text.splitlines()[0].strip() if text else ""


def _connection(url: str, timeout_s: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname, parts.port, timeout=timeout_s)


def _refusal(status: int, content: bytes) -> CommandError:
    """A problem+json document as an error for a person."""
    try:
        problem = json.loads(content)
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    code = str(problem.get("code", ""))
    detail = str(problem.get("detail") or problem.get("title") or http.client.responses.get(status, status))
    shown = f"{detail.rstrip('.')} ({code})" if code else detail
    return CommandError(shown, _exit_of(status, code), str(problem.get("fix") or ""), code)


def _exit_of(status: int, code: str) -> Exit:
    if code == "timeout" or status == 504:
        return Exit.TIMEOUT
    if status == 404 or code == "unknown_ritual":
        return Exit.NOT_FOUND
    if status in UNAVAILABLE:
        return Exit.UNREACHABLE
    return Exit.FAILED


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "unknown host name"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
