"""Reads server-sent events, resumes on another node without gap or repeat.

A thread reads the socket and fills a bounded queue; whoever watches takes from it with a deadline, so that a progress
line can move on while nothing arrives. Source of the format: WHATWG HTML, "Server-sent events".
"""

import contextlib
import http.client
import queue
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from node.cli.api import Api
from node.cli.exits import CommandError, Exit

RECONNECT_S = 0.3
"""Pause before asking the next node; a new leader is elected in about that time."""

FAILURES_MAX = 100
"""Rounds without an event before it is given up: half a minute, more than an election or a restart takes."""

QUEUE_EVENTS_MAX = 1_000
"""Read ahead of the watcher; beyond it TCP holds the node back."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    id: str
    event: str
    data: str


def parse(lines: Iterable[bytes]) -> Iterator[ServerEvent]:
    """Events from the lines of a stream. An unfinished last event is dropped, as the standard says. One without data
    comes out too, because its id says how far the stream has come."""
    event_id, kind = "", ""
    data: list[str] = []
    is_new = False
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line:
            if is_new:
                yield ServerEvent(event_id, (kind or "message") if data else "", "\n".join(data))
            kind, data, is_new = "", [], False
            continue
        if line.startswith(":"):
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "id":
                event_id, is_new = value, True
            case "event":
                kind = value
            case "data":
                data.append(value)
                is_new = True
            case _:
                pass


class EventReader:
    """Use as a context manager. `take` gives the next event, or None if none came in time."""

    def __init__(self, api: Api, path: str, query: Mapping[str, object]) -> None:
        self._api = Api(api.urls, api.token, api.timeout_s)  # its own: it runs in another thread
        self._path = path
        self._query = query
        self._queue: queue.Queue[ServerEvent | CommandError] = queue.Queue(QUEUE_EVENTS_MAX)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._response: http.client.HTTPResponse | None = None
        self._thread = threading.Thread(target=self._run, name="meshnode-events", daemon=True)

    def __enter__(self) -> "EventReader":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stopping.set()
        with self._lock:
            if self._response is not None:
                _shut(self._response)
        self._thread.join(timeout=5.0)

    def take(self, timeout_s: float) -> ServerEvent | None:
        """Raises CommandError if no node could be reached or the request was refused."""
        try:
            item = self._queue.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            return None
        if isinstance(item, CommandError):
            raise item
        return item

    def _run(self) -> None:
        last_id = ""
        failures = 0
        while not self._stopping.is_set():
            try:
                with self._api.stream(self._path, self._query, last_id) as response:
                    with self._lock:
                        self._response = response
                    if self._stopping.is_set():
                        return
                    for event in parse(response):
                        failures = 0
                        last_id = "" if event.event == "gap" else event.id or last_id
                        if event.data and not self._put(event):
                            return
            except CommandError as error:
                if error.code == "events_gone":
                    last_id = ""  # too far behind: from now on; the watcher looks at the session itself anyway
                elif error.exit_code is not Exit.UNREACHABLE or failures >= FAILURES_MAX:
                    self._put(error)
                    return
            except (OSError, ValueError, http.client.HTTPException):
                pass  # the connection broke: the next node goes on from the last id
            finally:
                with self._lock:
                    self._response = None
            failures += 1
            self._api.next_node()
            self._stopping.wait(RECONNECT_S)

    def _put(self, item: ServerEvent | CommandError) -> bool:
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.2)
                return True
        return False


def _shut(response: http.client.HTTPResponse) -> None:
    """Wakes a thread that is blocked in reading."""
    raw = getattr(getattr(response, "fp", None), "raw", None)
    sock = getattr(raw, "_sock", None)
    if isinstance(sock, socket.socket):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
