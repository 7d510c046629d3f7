"""Clients that submit, repeat, cancel, read and list sessions, through all nodes, and note what they are answered.

They share a board of recent sessions, so that several of them, on several nodes, meet at the same one. No answer within
the time, an error that does not say "no", a connection that breaks: the outcome is not known, and the client goes on as
a good client would, by repeating the same on another node.
"""

import dataclasses
import http.client
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

from node.testing import Answer, Daemon
from tests.torture.history import Glimpse, History
from tests.torture.linearizability import Operation
from tests.torture.session_model import Absent, Cancel, Conflict, Created, Exists, Read, Seen, Submit

ANSWER_S = 1.0
"""A client waits so long for an answer, then it asks another node."""

TRIES_MAX = 8
RECENT_MAX = 30
PAGE = 40

BODIES: dict[str, list[dict[str, object]]] = {
    "short": [{"ritual": "echo", "task": "short"}],
    "wide": [{"ritual": "echo", "task": f"wide {number}"} for number in range(4)],
    "slow": [{"ritual": "wait", "task": "slow", "parameters": {"seconds": 1.5}}] * 2,
}
"""What is submitted, by the thought that names it."""

PASSING = {
    "no_leader", "timeout", "forming", "stopping", "unavailable", "overloaded", "disk_low", "disk_full",
}  # fmt: skip
"""Codes of errors that faults explain."""


class NotSent(Exception):
    """Nobody listened: the request certainly has no effect."""


class NoAnswer(Exception):
    """What became of the request is not known."""


class Board:
    """The sessions that clients currently work on."""

    def __init__(self) -> None:
        self._recent: deque[tuple[str, str]] = deque(maxlen=RECENT_MAX)

    def add(self, key: str, body: str) -> None:
        self._recent.append((key, body))

    def pick(self, dice: random.Random) -> tuple[str, str] | None:
        recent = list(self._recent)
        return dice.choice(recent) if recent else None


class Client(threading.Thread):
    """`weights`: action -> how often, relative to the others. `pause_s` is between actions."""

    def __init__(
        self,
        name: str,
        daemons: Sequence[Daemon],
        history: History,
        board: Board,
        seed: str,
        weights: dict[str, int],
        pause_s: float,
    ) -> None:
        super().__init__(name=name)
        # Its own connections: a daemon's are not made to be shared.
        self._daemons = [dataclasses.replace(daemon, process=None, _connection=None) for daemon in daemons]
        self._history = history
        self._board = board
        self._dice = random.Random(f"{seed} {name}")
        self._weights = weights
        self._pause_s = pause_s
        self._ending = threading.Event()

    def end(self) -> None:
        self._ending.set()

    def run(self) -> None:
        actions = {
            "submit": self._submit_new,
            "repeat": lambda: self._submit_known(is_same=True),
            "contend": lambda: self._submit_known(is_same=False),
            "cancel": self._cancel,
            "read": lambda: self._read("linearizable"),
            "glance": lambda: self._read(self._dice.choice(["stale", "leader"])),
            "list": self._list,
        }
        names = [name for name in actions if self._weights.get(name)]
        while not self._ending.wait(self._pause_s * 2 * self._dice.random()):
            (name,) = self._dice.choices(names, [self._weights[name] for name in names])
            actions[name]()
        for daemon in self._daemons:
            daemon.kill()  # closes the connection; it has no process

    def _submit_new(self) -> None:
        key, body = str(uuid.UUID(int=self._dice.getrandbits(128), version=4)), self._dice.choice(list(BODIES))
        self._board.add(key, body)
        self._submit(key, body)

    def _submit_known(self, is_same: bool) -> None:
        known = self._board.pick(self._dice)
        if known is not None:
            key, body = known
            self._submit(key, body if is_same else self._dice.choice([other for other in BODIES if other != body]))

    def _submit(self, key: str, body: str) -> None:
        document = {"id": key, "thought": body, "branches": BODIES[body]}

        def outcome(answer: Answer) -> Any:
            if answer.status == 201:
                self._history.note_submit_index(key, answer.body["index"])
                return Created(answer.body["index"])
            if answer.status == 200:
                return Exists()
            return Conflict() if code_of(answer) == "session_exists" else None

        self._write(key, Submit(body), "/v1/sessions", document, outcome)

    def _cancel(self) -> None:
        known = self._board.pick(self._dice)
        if known is not None:
            path = f"/v1/sessions/{known[0]}/cancel"
            self._write(known[0], Cancel(), path, {"reason": "torture"}, seen_of)

    def _write(self, key: str, given: Any, path: str, document: object, outcome: Any) -> None:
        """Until an answer says what has become of it, on a new node each time."""
        for _ in range(TRIES_MAX):
            daemon = self._dice.choice(self._daemons)
            call = time.monotonic()
            try:
                answer = self._ask(daemon, "POST", path, document)
            except NotSent:
                continue
            except NoAnswer:
                answer = None
            back = time.monotonic()
            result = None if answer is None else outcome(answer)
            operation = Operation(f"{self.name}@{daemon.name}", call, None if result is None else back, given, result)
            self._history.note(key, operation, is_write=True)
            if result is not None:
                self._glimpse(daemon, call, back, answer, is_fresh=True)
                return
            self._surprise(answer)
            if self._ending.is_set():
                return

    def _read(self, level: str) -> None:
        known = self._board.pick(self._dice)
        if known is None:
            return
        daemon = self._dice.choice(self._daemons)
        call = time.monotonic()
        try:
            answer = self._ask(daemon, "GET", f"/v1/sessions/{known[0]}?level={level}", None)
        except (NotSent, NoAnswer):
            return
        back = time.monotonic()
        result = seen_of(answer)
        if result is None:
            self._surprise(answer)
            return
        if level == "linearizable":
            operation = Operation(f"{self.name}@{daemon.name}", call, back, Read(), result)
            self._history.note(known[0], operation, is_write=False)
        else:
            self._history.count("weaker reads")
        self._glimpse(daemon, call, back, answer, is_fresh=level == "linearizable")

    def _list(self) -> None:
        """A page counts as a read of every session that is on it, and of those that would have to be."""
        daemon = self._dice.choice(self._daemons)
        call = time.monotonic()
        try:
            answer = self._ask(daemon, "GET", f"/v1/sessions?limit={PAGE}&level=linearizable", None)
        except (NotSent, NoAnswer):
            return
        back = time.monotonic()
        if answer.status != 200:
            self._surprise(answer)
            return
        self._history.count("lists")
        self._glimpse(daemon, call, back, answer, is_fresh=True)
        note_page(self._history, f"{self.name}@{daemon.name}", call, back, answer.body["sessions"], is_last=False)

    def _ask(self, daemon: Daemon, method: str, path: str, body: object) -> Answer:
        try:
            return daemon.call(method, path, body, timeout_s=ANSWER_S)
        except ConnectionRefusedError:
            raise NotSent from None
        except (OSError, http.client.HTTPException, ValueError):
            raise NoAnswer from None

    def _glimpse(self, daemon: Daemon, call: float, back: float, answer: Answer | None, is_fresh: bool) -> None:
        if answer is not None and isinstance(answer.body, dict) and "as_of_index" in answer.body:
            self._history.note_glimpse(Glimpse(call, back, answer.body["as_of_index"], daemon.name, is_fresh))

    def _surprise(self, answer: Answer | None) -> None:
        if answer is not None and code_of(answer) not in PASSING:
            self._history.note_surprise(f"answered {answer.status}: {str(answer.body)[:300]}")


def note_page(history: History, client: str, call: float, back: float, rows: list[Any], *, is_last: bool) -> None:
    """`rows` are newest first. `is_last`: there is nothing older."""
    seen = {row["id"] for row in rows}
    oldest = 0 if is_last else min((row["submit_index"] for row in rows), default=0)
    for row in rows:
        history.note(row["id"], Operation(client, call, back, Read(), seen_in(row)), is_write=False)
    if rows or is_last:
        for key in history.known_after(oldest):
            if key not in seen:
                history.note(key, Operation(client, call, back, Read(), Absent()), is_write=False)


def code_of(answer: Answer) -> str:
    return str(answer.body.get("code", "")) if isinstance(answer.body, dict) else ""


def seen_of(answer: Answer) -> Seen | Absent | None:
    """What an answer shows of its session; None if it shows nothing."""
    if answer.status == 200:
        return seen_in(answer.body["session"])
    return Absent() if code_of(answer) == "unknown_session" else None


def seen_in(row: Any) -> Seen:
    """The body by its name, unless the row has not as many branches as that."""
    thought = row["thought"]
    is_whole = row["total_branches"] == len(BODIES.get(thought, []))
    status = "open" if row["status"] in ("pending", "processing") else row["status"]
    return Seen(thought if is_whole else f"{thought}, {row['total_branches']} branches", row["rev"], status)
