"""A replica of the unchanged library whose peers are scripted: it says what it says to a list, and hears what it is
told."""

import copy
import time
from collections.abc import Callable
from typing import Any

import pysyncobj.pickle as wire_pickle
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

PATIENT: dict[str, Any] = {"raftMinTimeout": 300.0, "raftMaxTimeout": 600.0, "connectionTimeout": 600.0}
"""A follower that stands for no election while it is looked at."""

QUICK: dict[str, Any] = {
    "raftMinTimeout": 0.04,
    "raftMaxTimeout": 0.08,
    "appendEntriesPeriod": 0.01,
    "leaderFallbackTimeout": 600.0,
}
"""A replica that stands soon."""

DEADLINE_S = 20.0


class Script(Transport):  # type: ignore[misc]
    """Keeps what the replica sends, as the wire would: nothing sent changes afterwards."""

    def __init__(self) -> None:
        super().__init__(None, None, [])
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        self.sent.append((node.id, copy.deepcopy(message)))
        return True

    def tell(self, peer: str, message: dict[str, Any]) -> None:
        """The replica receives this from `peer`."""
        self._onMessageReceived(Node(peer), message)

    def connect(self, *peers: str) -> None:
        for peer in peers:
            self._onNodeConnected(Node(peer))

    def take(self, kind: str) -> list[dict[str, Any]]:
        """Messages of this kind that were sent since it was asked last, whatever kind."""
        found = [message for _, message in self.sent if message["type"] == kind]
        self.sent.clear()
        return found


class Values(SyncObj):  # type: ignore[misc]
    """A replicated list, as a user of the library would write it."""

    def __init__(self, others: str, name: str = "a", **settings: Any) -> None:
        self.script = Script()
        conf = SyncObjConf(autoTick=False, **settings)
        super().__init__(Node(name), [Node(other) for other in others], conf, transport=self.script)
        self.values: list[Any] = []  # set after the library's own members: this is what it puts into dumps

    @replicated  # type: ignore[untyped-decorator]
    def put(self, value: Any) -> None:
        if value == "poison":
            raise ValueError("the command cannot be applied")
        self.values.append(value)

    def status(self, name: str) -> Any:
        return self.getStatus()[name]

    def tick_until(self, condition: Callable[[], Any]) -> Any:
        ends_at = time.monotonic() + DEADLINE_S
        while not (result := condition()):
            assert time.monotonic() < ends_at, "what should happen did not happen in time"
            self.doTick(0.001)
        return result

    def win_election(self, *voters: str) -> int:
        """Stands, gets these votes, leads; answers the term."""
        self.script.take("request_vote")
        asked = self.tick_until(lambda: self.script.take("request_vote"))
        for voter in voters:
            self.script.tell(voter, {"type": "response_vote", "term": asked[-1]["term"]})
        assert self._isLeader(), "the votes were enough"
        return int(self.raftCurrentTerm)

    def is_acknowledged_by(self, peer: str, up_to: int) -> None:
        self.script.tell(peer, acknowledgement(up_to))


def command(value: Any) -> bytes:
    """As `put(value)` is in the log."""
    return b"\x00" + bytes(wire_pickle.dumps((0, (value,))))


def entries(first: int, values: str, term: int) -> list[tuple[bytes, int, int]]:
    """One entry a letter."""
    return [(command(value), first + number, term) for number, value in enumerate(values)]


def append(term: int, previous: tuple[int, int], new: list[tuple[bytes, int, int]], commit: int = 1) -> dict[str, Any]:
    """What a leader sends; `previous` is index and term of the entry before."""
    return {
        "type": "append_entries",
        "term": term,
        "commit_index": commit,
        "entries": new,
        "prevLogIdx": previous[0],
        "prevLogTerm": previous[1],
    }


def acknowledgement(up_to: int) -> dict[str, Any]:
    return {"type": "next_node_idx", "next_node_idx": up_to + 1, "reset": False, "success": True}


def rejection(next_index: int) -> dict[str, Any]:
    return {"type": "next_node_idx", "next_node_idx": next_index, "reset": True, "success": False}
