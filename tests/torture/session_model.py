"""A session as an object that clients share: submitted once, read, cancelled; and it goes on by itself.

What the mesh does by itself (branches start and end, the session completes or fails) is no operation of a client, so
the model lets it happen between operations: only in one direction, with growing `rev`, and never out of a final status.
That makes every read a witness: a later read that shows an earlier `rev` is a stale one.

A submission that is answered "exists" may be the one that made the session: a node proposes a command again when it
does not know what became of it, and the repetition finds the session. Two that are answered "created" are a violation.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

FINAL = ("completed", "failed", "cancelled")


class Submit(NamedTuple):
    body: str


class Cancel(NamedTuple):
    kind: str = "cancel"


class Read(NamedTuple):
    kind: str = "read"


class Created(NamedTuple):
    rev: int


class Exists(NamedTuple):
    """With the same body."""

    kind: str = "exists"


class Conflict(NamedTuple):
    """Exists with another body."""

    kind: str = "conflict"


class Absent(NamedTuple):
    kind: str = "absent"


class Seen(NamedTuple):
    """As a read shows it. `status` is `open` while it is pending or processing."""

    body: str
    rev: int
    status: str


class Session(NamedTuple):
    """`is_exact`: `rev` is known; otherwise it is some greater one."""

    body: str
    rev: int
    status: str
    is_exact: bool


class SessionModel:
    """State: None, or a `Session`."""

    initial = None

    def step(self, state: Session | None, given: Submit | Cancel | Read, output: Any) -> Iterator[Session | None]:
        match given:
            case Submit(body):
                yield from self._submit(state, body, output)
            case Cancel():
                yield from self._cancel(state, output)
            case Read():
                if output in (None, Absent()) and state is None:
                    yield None
                elif isinstance(output, Seen) and state is not None:
                    yield from self._see(state, output)

    def _submit(self, state: Session | None, body: str, output: Any) -> Iterator[Session]:
        if state is None:
            if isinstance(output, Created):
                yield Session(body, output.rev, "open", True)
            elif output in (None, Exists()):
                yield Session(body, 0, "open", False)
        elif output is None or output == (Exists() if state.body == body else Conflict()):
            yield state

    def _cancel(self, state: Session | None, output: Any) -> Iterator[Session | None]:
        if state is None:
            if output in (None, Absent()):
                yield None
            return
        cancelled = Session(state.body, state.rev, "cancelled", False) if state.status == "open" else state
        if output is None:
            yield cancelled
        elif isinstance(output, Seen) and output.status in FINAL:
            yield from self._see(cancelled, output)
            if state.status == "open" and output.status != "cancelled":  # it ended just before
                yield from self._see(state, output)

    def _see(self, state: Session, seen: Seen) -> Iterator[Session]:
        """Being seen so is possible from here, after what the mesh has done meanwhile."""
        if seen.body != state.body:
            return
        if seen.rev == state.rev and state.is_exact:
            is_possible = seen.status == state.status
        elif seen.rev > state.rev:
            if state.status == "open":
                is_possible = seen.status != "cancelled"
            else:
                is_possible = seen.status == state.status and not state.is_exact
        else:
            is_possible = False
        if is_possible:
            yield Session(state.body, seen.rev, seen.status, True)
