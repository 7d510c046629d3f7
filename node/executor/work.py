"""What goes into the executor and what comes out of it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from consensus.state.rows import Failure, Json, Knowledge, Row
from storage.ids import NodeId, SessionId

MEMORY_BYTES_MAX_DEFAULT = 1024 * 1024 * 1024


class AttemptKey(NamedTuple):
    session_id: SessionId
    branch_index: int
    attempt: int


class BranchInput(Row, frozen=True):
    """A finished branch, given to a consolidation. The fields are those of `node.rituals.context.BranchInput`."""

    branch_index: int
    task: str
    ritual: str
    ritual_version: str
    node_id: str
    attempt: int
    status: str
    duration_ms: int
    knowledge: Knowledge | None = None
    failure: Failure | None = None
    parameters: dict[str, Json] = {}


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to execute. `inputs` is not None exactly for a consolidation; `inputs_trimmed`: some of them are
    without their `result`."""

    session_id: SessionId
    branch_index: int
    attempt: int
    ritual: str
    task: str
    parameters: Mapping[str, Json]
    seed: int
    timeout_ms: int
    thought: str = ""
    inputs: list[BranchInput] | None = None
    inputs_trimmed: bool = False

    @property
    def key(self) -> AttemptKey:
        return AttemptKey(self.session_id, self.branch_index, self.attempt)

    def with_inputs(self, inputs: list[BranchInput]) -> Work:
        return msgspec.structs.replace(self, inputs=inputs)


class LiveUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What a running attempt reports. Best effort: never recorded, may be lost, coalesced to ten a second."""

    session_id: SessionId
    branch_index: int
    attempt: int
    node_id: NodeId
    progress: float | None
    """0 to 1; None if this update says nothing about it."""
    message: str
    lines: list[str]


class ExecutorSettings(msgspec.Struct, frozen=True, kw_only=True):
    node_id: NodeId
    slots: int
    """CPU rituals at the same time, each in a process."""
    async_slots: int = 100
    """Async rituals at the same time, all in one process."""
    memory_bytes_max: int = MEMORY_BYTES_MAX_DEFAULT
    """Address space of a worker; 0 for no cap. Python itself takes about 50 MB of it."""
    scratch_directory: Path = Path(tempfile.gettempdir()) / "meshnode-scratch"
    """Where workers get their working directories. Belongs to one executor: it is emptied at start and stop."""
    prewarm_cpu: bool = True
    """Start a CPU worker before the first work arrives."""


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    kind: str
    running: int
    executed: int
    age_s: float


class ExecutorStatistics(msgspec.Struct, frozen=True, kw_only=True):
    slots: int
    slots_busy: int
    async_slots: int
    async_busy: int
    pending: int
    """Accepted and waiting for a slot."""
    workers: list[WorkerStatus]
    executed: int
    """Attempts ended since start, however they ended."""
    failures: int
    crashes: int
    """Workers that ended without being told to."""
    kills: int
    """Workers killed for a deadline, a cancellation or disobedience."""
    is_draining: bool
