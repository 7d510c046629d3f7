"""A mesh under test: what is the same whether its nodes are processes or live on a virtual clock.

Everything blocks the calling thread and has a deadline. A wait that fails says what each node said last.
"""

import contextlib
import http.client
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar

from node.rituals.context import Context

RitualFunction: TypeAlias = Callable[[Context], Any]

T = TypeVar("T")

DEADLINE_S = 30.0
"""Default for everything that waits: far beyond the usual, so that only a real failure meets it."""

SESSION_DEADLINE_S = 60.0
START_DEADLINE_S = 60.0
LONG_POLL_S = 5.0
FOUNDERS = (1, 3, 5, 7)
TERMINAL = ("completed", "failed", "cancelled")

UNREACHED = (OSError, http.client.HTTPException)
"""What `call` raises when the node is away."""


class MeshTestError(Exception):
    """Something did not happen in time, or a node answered what was not asked for. The message carries the last words
    of the nodes."""


@dataclass(slots=True)
class Answer:
    """Of a node: HTTP status and decoded body."""

    status: int
    body: Any

    def expect(self, *statuses: int) -> Any:
        """The body, if the status is one of these; else MeshTestError."""
        if self.status not in statuses:
            raise MeshTestError(f"answered {self.status}, expected {statuses}: {self.body}")
        return self.body


class NodeUnderTest(Protocol):
    """One node of a mesh under test."""

    @property
    def name(self) -> str: ...

    @property
    def is_running(self) -> bool: ...

    def call(self, method: str, path: str, body: object = None, timeout_s: float = DEADLINE_S) -> Answer:
        """One HTTP request. Raises OSError or http.client.HTTPException if the node is away."""

    def status(self, timeout_s: float = 5.0) -> Any:
        """The status document, or None if the node does not answer."""

    def last_words(self, lines: int = 15) -> str:
        """What it said last."""


class Harness(ABC):
    """Nodes are named, `mesh[name]` is one of them; `on` says which one is asked, else it is any that runs."""

    # -- what each kind does in its own way --

    @abstractmethod
    def nodes(self) -> list[str]:
        """Names of all nodes, whether they run or not."""

    @abstractmethod
    def __getitem__(self, name: str) -> NodeUnderTest: ...

    @abstractmethod
    def kill(self, name: str) -> None:
        """The process ends at once: nothing is said, nothing is saved."""

    @abstractmethod
    def stop(self, name: str) -> None:
        """The node is asked to end, as a service manager does, and has ended."""

    @abstractmethod
    def restart(self, name: str) -> None:
        """A node that was killed or stopped starts again with what it had stored; does not wait for it."""

    @abstractmethod
    def pause(self, name: str) -> None:
        """The process hears nothing and says nothing, its connections stay open."""

    @abstractmethod
    def resume(self, name: str) -> None: ...

    @property
    @abstractmethod
    def now(self) -> float:
        """Seconds, virtual or real; only differences mean something."""

    @abstractmethod
    def run_for(self, seconds: float) -> None:
        """Lets time pass. Wait for a condition instead wherever there is one."""

    @abstractmethod
    def wait(self, what: str, condition: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T:
        """Asks until the condition answers something true, which is returned. MeshTestError with the last words of the
        nodes when the deadline is over. `what` ends the sentence `it is still not so that ...`."""

    @abstractmethod
    def close(self) -> None:
        """Ends everything that was started."""

    # -- what follows from it --

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def running(self) -> Sequence[NodeUnderTest]:
        return [self[name] for name in self.nodes() if self[name].is_running]

    def any_running(self) -> NodeUnderTest:
        running = self.running()
        if not running:
            raise MeshTestError("no node is running")
        return running[0]

    def call(self, name: str, method: str, path: str, body: object = None, timeout_s: float = DEADLINE_S) -> Answer:
        """One HTTP request to a node. Raises OSError or http.client.HTTPException if it is away."""
        return self[name].call(method, path, body, timeout_s)

    def status(self, name: str) -> Any:
        """The node's status document, or None if it does not answer."""
        return self[name].status()

    def leader(self, deadline_s: float = DEADLINE_S) -> str:
        """Name of the leader that the running nodes agree on."""
        return self.wait("the nodes agree on a leader", self._agreed_leader, deadline_s)

    def followers(self) -> list[str]:
        """The running nodes beside the leader."""
        leader = self.leader()
        return [node.name for node in self.running() if node.name != leader]

    def wait_ready(self, deadline_s: float = DEADLINE_S) -> str:
        """Waits until every running node is ready and all name the same leader, which is one of them."""

        def all_ready() -> str | None:
            for node in self.running():
                with contextlib.suppress(*UNREACHED):
                    if node.call("GET", "/readyz", timeout_s=5.0).status == 200:
                        continue
                return None
            return self._agreed_leader()

        return self.wait("every node is ready and agrees on a leader", all_ready, deadline_s)

    def submit(self, body: Mapping[str, object] | None = None, *, on: str | None = None, **fields: object) -> Any:
        """Submits a session; answers the created session. The body is that of `POST /v1/sessions`."""
        document = {**(body or {}), **fields}
        return self._asked(on).call("POST", "/v1/sessions", document).expect(200, 201)["session"]

    def session(self, session_id: str, *, on: str | None = None) -> Any:
        return self._get(f"/v1/sessions/{session_id}", on)["session"]

    def branches(self, session_id: str, *, on: str | None = None) -> list[Any]:
        """All of them, by index; the consolidation is not among them."""
        found: list[Any] = []
        after = ""
        while True:
            page = self._get(f"/v1/sessions/{session_id}/branches{after}", on)
            found += page["branches"]
            if page["next"] is None:
                return found
            after = f"?after={page['next']}"

    def branch(self, session_id: str, index: int, *, on: str | None = None) -> Any:
        """One branch with its knowledge and its attempts."""
        return self._get(f"/v1/sessions/{session_id}/branches/{index}", on)

    def holder(self, session_id: str, index: int = 0, *, on: str | None = None) -> str | None:
        """Name of the node that executes a branch, or executed it last; None if nobody has begun."""
        holder = self.branch(session_id, index, on=on)["branch"]["node_id"]
        members = self._get("/v1/members", on)["members"]
        return next((member["name"] for member in members if member["node_id"] == holder), None)

    def insight(self, session_id: str, *, on: str | None = None) -> Any:
        return self._get(f"/v1/sessions/{session_id}/insight", on)["insight"]

    def wait_session(self, session_id: str, deadline_s: float = SESSION_DEADLINE_S, *, on: str | None = None) -> Any:
        """Waits until the session is completed, failed or cancelled, over the loss of nodes; answers the session."""
        path = f"/v1/sessions/{session_id}?wait={LONG_POLL_S:g}s&until=terminal"

        def finished() -> Any | None:
            try:
                answer = self._asked(on).call("GET", path, timeout_s=2 * LONG_POLL_S)
            except UNREACHED:
                return None
            session = answer.body.get("session", {}) if answer.status == 200 else {}
            return session if session.get("status") in TERMINAL else None

        return self.wait(f"session {session_id} ends", finished, deadline_s)

    def last_words(self) -> str:
        """What each node said last."""
        return "\n".join(self[name].last_words() for name in self.nodes())

    def _get(self, path: str, on: str | None) -> Any:
        return self._asked(on).call("GET", path).expect(200)

    def _asked(self, on: str | None) -> NodeUnderTest:
        return self[on] if on is not None else self.any_running()

    def _agreed_leader(self) -> str | None:
        running = self.running()
        leaders = {((node.status() or {}).get("leader") or {}).get("name") for node in running}
        return leaders.pop() if len(leaders) == 1 and leaders <= {node.name for node in running} else None

    def _failed_wait(self, what: str, deadline_s: float) -> MeshTestError:
        return MeshTestError(f"after {deadline_s} s it is still not so that {what}\n{self.last_words()}")


class MeshUnderTest(Harness):
    """What tests of rituals use: started with a number of nodes of each tier, and its network fails on demand. Whoever
    writes a test against it can run it on a virtual clock (`VirtualMesh`) and with processes (`ProcessMesh`).

    Nodes are named `core-1`, `core-2`, ..., `edge-1`, ..., `leaf-1`, ...
    """

    seed: int
    """Of everything that is drawn by chance."""

    @abstractmethod
    def start(
        self,
        cores: int = 3,
        edges: int = 0,
        leaves: int = 0,
        *,
        rituals: Sequence[RitualFunction] = (),
        cpu_s: Mapping[str, float] | None = None,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        deadline_s: float = START_DEADLINE_S,
    ) -> str:
        """Starts all nodes and waits until they serve; answers the leader's name. `rituals`: functions that every node
        offers under their names. `cpu_s`: how long a CPU ritual takes on the virtual clock, by name; processes take
        what they take. `settings` are merged into every configuration, section by section."""

    @abstractmethod
    def cut(self, source: str, target: str) -> None:
        """From now on nothing goes from `source` to `target`; the other direction still works."""

    @abstractmethod
    def heal(self) -> None:
        """Ends every partition, cut and delay of the network."""

    @abstractmethod
    def _slow(self, source: str, target: str, delay_s: float) -> None: ...

    def partition(self, *sides: Iterable[str]) -> None:
        """Nothing goes between nodes on different sides; nodes that are on no side are one side together. Nobody is
        told: connections stay open and say nothing. Clients reach every node."""
        for source, target in _across(sides, self.nodes()):
            self.cut(source, target)

    def slow(self, name: str, other: str | None = None, *, delay_s: float) -> None:
        """Whatever `name` and the others (or only `other`) say to each other arrives so much later."""
        others = [other] if other is not None else [node for node in self.nodes() if node != name]
        for one in others:
            self._slow(name, one, delay_s)
            self._slow(one, name, delay_s)


def node_names(cores: int, edges: int, leaves: int) -> list[str]:
    counts = {"core": cores, "edge": edges, "leaf": leaves}
    return [f"{tier}-{number}" for tier, count in counts.items() for number in range(1, count + 1)]


def tier_of(name: str) -> str:
    return name.partition("-")[0]


def founders_of(cores: int) -> int:
    """How many of the Core nodes found the mesh; the others join it."""
    if cores < 1 or cores == 2:
        raise MeshTestError(f"a mesh of {cores} Core nodes: start 1, 3 or more, so that a majority survives a loss")
    return max(size for size in FOUNDERS if size <= cores)


def _across(sides: Sequence[Iterable[str]], nodes: Iterable[str]) -> list[tuple[str, str]]:
    """The ordered pairs of nodes that are on different sides."""
    groups = [set(side) for side in sides]
    known = set(nodes)
    if unknown := sorted(set().union(*groups) - known):
        raise MeshTestError(f"no node is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if rest := known - set().union(*groups):
        groups.append(rest)
    return sorted((a, b) for side in groups for a in side for other in groups if other is not side for b in other)
