"""What a ritual is given and what it gives back.

Imported by every worker at its start, so it imports next to nothing. The tuples mirror rows of the replicated state
field by field, in the same order, because they cross the pipe as arrays; a test compares them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class Knowledge(NamedTuple):
    """What a ritual returns. A ritual may also return a dict with these keys, any other JSON-like value (which becomes
    `result`), or None. At most 64 KiB when encoded, 256 KiB from a consolidation."""

    patterns: Sequence[str] = ()
    """Short phrases; patterns that several branches report in the same words count as shared."""
    connections: Sequence[tuple[str, str]] = ()
    novelty: float = 0.0
    """0 to 1."""
    score: float | None = None
    """Ranks outcomes of the same session; higher is better."""
    summary: str = ""
    """One line for a person."""
    result: Any = None
    """None, bool, int (64 bit), finite float, str, list, or dict with str keys."""


class Failure(NamedTuple):
    code: str
    message: str


class BranchInput(NamedTuple):
    """A finished branch, as a consolidation ritual sees it."""

    branch_index: int
    task: str
    ritual: str
    ritual_version: str
    node_id: str
    attempt: int
    status: str
    """`completed`, `failed` or `cancelled`."""
    duration_ms: int
    knowledge: Knowledge | None
    failure: Failure | None
    parameters: Mapping[str, Any]


class Reporter(Protocol):
    """Where a context's reports go: the worker's pipe, or nothing when a ritual is called directly."""

    def progress(self, key: int, fraction: float | None, message: str) -> None: ...
    def log(self, key: int, line: str) -> None: ...
    def seen(self, key: int, phrases: list[str]) -> dict[str, int]: ...
    async def seen_async(self, key: int, phrases: list[str]) -> dict[str, int]: ...


class _NoReporter:
    def progress(self, key: int, fraction: float | None, message: str) -> None:
        pass

    def log(self, key: int, line: str) -> None:
        pass

    def seen(self, key: int, phrases: list[str]) -> dict[str, int]:
        return {}

    async def seen_async(self, key: int, phrases: list[str]) -> dict[str, int]:
        return {}


class Context:
    """Everything a ritual may use. Can be made by hand to call a ritual directly in a test: `Context(task="...")`."""

    __slots__ = (
        "_key",
        "_random",
        "_reporter",
        "attempt",
        "branch_index",
        "inputs",
        "inputs_trimmed",
        "parameters",
        "seed",
        "session_id",
        "task",
        "thought",
    )

    def __init__(
        self,
        *,
        task: str = "",
        parameters: Mapping[str, Any] | None = None,
        thought: str = "",
        session_id: str = "",
        branch_index: int = 0,
        attempt: int = 1,
        seed: int = 0,
        inputs: Sequence[BranchInput] | None = None,
        inputs_trimmed: bool = False,
        reporter: Reporter | None = None,
        key: int = 0,
    ) -> None:
        self.task = task
        self.parameters: Mapping[str, Any] = {} if parameters is None else parameters
        """With the defaults of the definition filled in."""
        self.thought = thought
        """The question of the session."""
        self.session_id = session_id
        self.branch_index = branch_index
        self.attempt = attempt
        """Fencing token: effects outside the mesh may happen once per attempt; refuse those of lower attempts."""
        self.seed = seed
        self.inputs = inputs
        """The finished branches, by index; None except in a consolidation."""
        self.inputs_trimmed = inputs_trimmed
        """True if the inputs together were too large, so that `knowledge.result` is None in the later ones."""
        self._random: random.Random | None = None
        self._reporter: Reporter = _NO_REPORTER if reporter is None else reporter
        self._key = key

    @property
    def random(self) -> random.Random:
        """Seeded with `seed`: a repeated attempt draws the same numbers. Use no other source of randomness."""
        if self._random is None:
            self._random = random.Random(self.seed)  # noqa: S311 - reproducible on purpose
        return self._random

    def progress(self, fraction: float | None, message: str = "") -> None:
        """Say how far the work is, 0 to 1 (None: unknown). Cheap: sent at most ten times a second."""
        self._reporter.progress(self._key, fraction, message)

    def log(self, message: str) -> None:
        """Add lines to the live log of this attempt. Bounded: beyond 1,000 lines the rest is dropped and counted."""
        self._reporter.log(self._key, message)

    def seen(self, phrases: Sequence[str]) -> dict[str, int]:
        """How often the mesh has recorded each of these patterns before; phrases never seen are left out. Blocks for a
        round trip to the daemon: for CPU rituals only, async ones use `seen_async`. At most 1,000 phrases are asked."""
        return self._reporter.seen(self._key, list(phrases))

    async def seen_async(self, phrases: Sequence[str]) -> dict[str, int]:
        """`seen` for async rituals."""
        return await self._reporter.seen_async(self._key, list(phrases))


_NO_REPORTER = _NoReporter()
