"""Watchers follow the event stream, one on each node and one that changes nodes, over every fault, by resuming after
the last id they saw; the book of lives holds every event against what sessions and branches may go through."""

import contextlib
import http.client
import json
import socket
import threading
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from node.testing import Daemon

READ_S = 20.0
"""A stream says something at least every 15 s."""

RETRY_S = 0.1
POSITIONS = 1 << 20
"""Events of one index at most, to pack an id into one number."""


class Watcher(threading.Thread):
    """Follows `daemons`, going on with the next one whenever the stream breaks. `on_event` gets every event once."""

    def __init__(
        self, name: str, daemons: Sequence[Daemon], on_event: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        super().__init__(name=name)
        self._daemons = daemons
        self._on_event = on_event
        self._ending = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self.ids = array("Q")
        """Of the events seen, packed: index, position."""
        self.digests = array("I")
        """Of what they said."""
        self.resumed = 0
        self.faults: list[str] = []
        self.last_id = "0"

    @property
    def index(self) -> int:
        """Everything up to here has been seen."""
        return int(self.last_id.partition(".")[0])

    def end(self) -> None:
        self._ending.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reader

    def run(self) -> None:
        turn = 0
        while not self._ending.is_set():
            try:
                self._follow(self._daemons[turn % len(self._daemons)])
            except (OSError, http.client.HTTPException, ValueError):
                pass
            finally:
                if self._connection is not None:
                    self._connection.close()
            turn += 1
            self.resumed += 1
            self._ending.wait(RETRY_S)

    def _follow(self, daemon: Daemon) -> None:
        self._connection = http.client.HTTPConnection(daemon.http_host, daemon.http_port, timeout=READ_S)
        if daemon.connect is not None:
            self._connection.sock = daemon.connect(daemon.http_host, daemon.http_port)
        else:
            self._connection.connect()
        self._socket = self._connection.sock
        self._socket.settimeout(READ_S)
        self._connection.request("GET", "/v1/events", headers={"Last-Event-ID": self.last_id})
        response = self._connection.getresponse()
        if response.status == 410:
            self.faults.append(f"{self.name}: events after {self.last_id} are gone on {daemon.name}")
            self._ending.set()
        if response.status != 200:
            return
        number, kind = "", ""
        while not self._ending.is_set():
            line = response.readline()
            if not line:
                return
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "id":
                number = value
            elif field == "event":
                kind = value
            elif field == "data" and kind == "gap":
                self.faults.append(f"{self.name}: a gap after {self.last_id} on {daemon.name}: {value}")
                return
            elif field == "data" and kind != "stopping":
                self._take(number, value)
            elif not line.strip():
                if not kind and number:
                    self.last_id = number  # nothing was missed up to here
                number, kind = "", ""

    def _take(self, number: str, data: str) -> None:
        index, _, position = number.partition(".")
        packed = int(index) * POSITIONS + int(position)
        if self.ids and packed <= self.ids[-1]:
            self.faults.append(f"{self.name}: the event {number} came again, or after a later one")
        self.ids.append(packed)
        self.digests.append(zlib.crc32(data.encode()))
        self.last_id = number
        if self._on_event is not None:
            self._on_event(json.loads(data))


class Stream(Protocol):
    """What a watcher saw; `ids` and `digests` belong together, event by event."""

    @property
    def name(self) -> str: ...

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def digests(self) -> Sequence[int]: ...


def differences(streams: Sequence[Stream]) -> list[str]:
    """Every stream must be the same, event by event, up to where the shortest one ends."""
    found = []
    first = streams[0]
    for other in streams[1:]:
        count = min(len(first.ids), len(other.ids))
        for number in range(count):
            if first.ids[number] != other.ids[number] or first.digests[number] != other.digests[number]:
                found.append(
                    f"event {number}: {first.name} saw {unpacked(first.ids[number])}, "
                    f"{other.name} {unpacked(other.ids[number])}"
                )
                break
    return found


def unpacked(number: int) -> str:
    return f"{number // POSITIONS}.{number % POSITIONS}"


@dataclass
class _Life:
    """Of a branch."""

    given: int = 0
    """The highest number of an attempt."""
    running: dict[int, str] = field(default_factory=dict)
    """Attempt -> node: two at most, on different nodes."""
    is_ended: bool = False

    @property
    def nodes(self) -> list[str]:
        return list(self.running.values())

    @property
    def told(self) -> str:
        return f"{'had ended' if self.is_ended else 'was running'} as {self.running} after {self.given} attempts"


class Lives:
    """Takes all events in order; `faults` says what may not happen."""

    def __init__(self) -> None:
        self.open: dict[str, dict[int, _Life]] = {}
        """Open session -> branch index -> what its events tell."""
        self.ended: dict[str, str] = {}
        self.faults: list[str] = []
        self.attempts = 0
        self.repeated = 0
        """Those after the first of a branch."""

    def take(self, event: dict[str, Any]) -> None:
        kind, session = event["event"], event.get("session_id")
        if session is None:
            return
        if kind == "session_submitted":
            if session in self.open or session in self.ended:
                self._fault(event, "is submitted again")
            self.open[session] = {}
            return
        branches = self.open.get(session)
        if branches is None:
            self._fault(event, f"has {self.ended.get(session, 'never been submitted')}")
            return
        if kind.startswith("session_"):
            ends = kind.removeprefix("session_")
            if any(life.running for life in branches.values()) and ends != "cancelled":
                self._fault(event, "still has running branches")
            self.ended[session] = ends
            del self.open[session]
        else:
            self._take_branch(event, kind, branches)

    def _take_branch(self, event: dict[str, Any], kind: str, branches: dict[int, _Life]) -> None:
        life, attempt = branches.setdefault(event["branch_index"], _Life()), event["attempt"]
        if kind == "branch_assigned":
            if life.is_ended or attempt != life.given + 1 or len(life.running) > 1 or event["node_id"] in life.nodes:
                self._fault(event, life.told)
            self.attempts += 1
            self.repeated += attempt > 1
            life.given = attempt
            life.running[attempt] = event["node_id"]
            return
        if life.is_ended or life.running.pop(attempt, None) is None or bool(life.running) != (kind == "attempt_ended"):
            self._fault(event, life.told)
        life.is_ended = kind not in ("attempt_ended", "branch_requeued")

    def _fault(self, event: dict[str, Any], words: str) -> None:
        self.faults.append(f"{event['id']} {event['event']}: {event['session_id']} {words}: {event}"[:500])
