"""Does this node's share of the work, and that of the Leaf nodes that hang on it: what the replicated state assigns to
one of these instances goes to its executor, what the executor answers is recorded in the replicated state.

Rules:
- an assignment is taken from an applied event, never from a message: it is durable before it starts.
- only assignments of a very instance are executed; those of an earlier start were requeued when it registered.
- an outcome is kept until the state machine has answered it, over leader changes and lost majorities. Repeating it is
  harmless: a recorded attempt is skipped, a superseded one is kept as evidence.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec
import structlog

from consensus.errors import ConsensusError
from consensus.state import queries, versions
from consensus.state.attempts import under_way
from consensus.state.commands import Answer, AnyCommand, CompleteBranches, Offer, Outcome, Refused
from consensus.state.events import (
    AttemptEnded,
    BranchAssigned,
    BranchCancelled,
    BranchFailed,
    BranchRequeued,
    Numbered,
)
from consensus.state.rows import Branch, Failure, Lease, RitualKind, Session
from node.executor.work import AttemptKey, BranchInput, Work
from node.scheduler.placement import REST_MS_MAX
from node.scheduler.policy import LEASE_GRACE_MS
from storage import codec
from storage.errors import StorageError
from storage.ids import InstanceId, NodeId, SessionId
from storage.transactions import Transaction

OUTCOME_BATCH_MAX = 512
"""Outcomes in one command."""

OUTCOME_BATCH_BYTES_MAX = 512 * 1024
"""Encoded knowledge in one command: half the command cap, so that one more outcome of the largest size still fits."""

RETRY_MS_MIN = 200
"""A failed attempt is followed by a pause that doubles each time, up to REST_MS_MAX: what is broken for a moment has
time to recover, and what is broken for good does not keep slots busy. So is one that its node could not execute: losses
are counted too, and a node without a working worker returns what it is given within seconds."""

HANDED_BACK = ("draining", "drained")
"""What a node that stops has not finished goes on elsewhere at once."""

REPORT_DEADLINE_S = 10.0
GATHER_S = 0.005
"""After a batch of several, what Leaf nodes report waits so long for more: each command costs every replica of the mesh
as much as several outcomes, and a Leaf has work ahead meanwhile. What this node executed itself never waits."""

REPORT_PAUSE_S = 0.5
"""Between attempts to record outcomes while there is no majority."""

UNSAYABLE = ("too_large", "malformed")
"""What no command can hold: asking again would ask for ever, and hold up what other branches have to say."""

INPUT_BYTES_MAX = 32 * 1024 * 1024
"""Encoded knowledge handed to one consolidation; what is beyond is handed over without its `result`, and the ritual is
told (`inputs_trimmed`), so that a session of 10,000 large results does not take the node's memory."""

INLINE_BRANCHES_MAX = 16
"""Inputs of consolidations up to this size are read on the loop (usually well under a
millisecond, 40 with the largest results), of larger ones on a thread."""

PREPARING_MAX = 2
"""Large consolidations whose inputs are read at the same time: bounds the RAM they take."""

log = structlog.get_logger()


class Consensus(Protocol):
    """What is needed of `consensus.group.Group`."""

    def read(self) -> AbstractContextManager[Transaction]: ...

    async def propose(self, command: AnyCommand, deadline_s: float = ...) -> Answer: ...


class Executing(Protocol):
    """Who executes what is assigned to an instance: the executor of this node, or the uplink of a Leaf."""

    def submit(self, work: Work) -> None: ...

    def cancel(self, session_id: SessionId, branch_index: int, attempt: int) -> object: ...


class Executor(Executing, Protocol):
    """What is needed of `node.executor.Executor`."""

    def has_room(self, kind: RitualKind) -> bool: ...

    def running(self) -> list[AttemptKey]: ...


class Places:
    """This node's free places, offered with commands that make branches ready. `is_bound()`: others limit a ritual that
    this node does not; whether there is room for it then only the scheduler knows, so nothing is offered."""

    def __init__(
        self,
        node_id: NodeId,
        instance_id: InstanceId,
        kinds: Mapping[str, RitualKind],
        executor: Executor,
        is_bound: Callable[[], bool] = lambda: False,
    ) -> None:
        self._node_id = node_id
        self._instance_id = instance_id
        self._kinds = kinds
        self._executor = executor
        self._is_bound = is_bound

    def offer(self, ritual: str) -> Offer | None:
        """For a branch of this ritual; None if it could not start here at once."""
        kind = self._kinds.get(ritual)
        return self._offer(kind) if kind is not None else None

    def offer_any(self) -> Offer | None:
        """For a consolidation, whose ritual only the state knows: most are async."""
        return self._offer("async")

    def _offer(self, kind: RitualKind) -> Offer | None:
        if not self._executor.has_room(kind) or self._is_bound():
            return None
        return Offer(node_id=self._node_id, instance_id=self._instance_id, lease_grace_ms=LEASE_GRACE_MS)


class Assignments:
    """Starts and stops executions as the events of the replicated state say. `own` takes over a task."""

    def __init__(self, consensus: Consensus, own: Callable[[str, Coroutine[Any, Any, None]], None]) -> None:
        self._consensus = consensus
        self._own = own
        self._executors: dict[InstanceId, Executing] = {}
        self._instances: dict[NodeId, InstanceId] = {}
        self._preparing: set[AttemptKey] = set()
        """Consolidations whose inputs are being read."""
        self._readers = asyncio.Semaphore(PREPARING_MAX)

    def serve(self, node_id: NodeId, instance_id: InstanceId, executor: Executing) -> None:
        """From now on. Call it before the instance registers; what it has already is told by `start_leased`."""
        self.leave(node_id)
        self._executors[instance_id] = executor
        self._instances[node_id] = instance_id

    def leave(self, node_id: NodeId) -> None:
        """Nothing of this node is started or stopped from here any more."""
        self._executors.pop(self._instances.pop(node_id, InstanceId("")), None)

    def on_events(self, events: Iterable[Numbered]) -> None:
        """To be called with every applied event, in order."""
        assigned, failed = [], []
        for numbered in events:
            match numbered.event:
                case BranchAssigned() as event if event.instance_id in self._executors:
                    assigned.append(event)
                case BranchRequeued() | BranchCancelled() | AttemptEnded() as event if event.node_id in self._instances:
                    self._preparing.discard(AttemptKey(event.session_id, event.branch_index, event.attempt))
                    executor = self._executors[self._instances[event.node_id]]
                    executor.cancel(event.session_id, event.branch_index, event.attempt)
                case BranchFailed() as event:
                    failed.append(event)
                case _:
                    pass
        if failed:
            self._stop_lost(failed)
        if assigned:
            self._start(assigned)

    def _stop_lost(self, failed: Sequence[BranchFailed]) -> None:
        """A branch may fail for good with the loss of an attempt that is still executed; only its row says where."""
        with self._consensus.read() as txn:
            for event in failed:
                branch = queries.get_branch(txn, event.session_id, event.branch_index)
                if branch is not None and branch.node_id in self._instances:
                    executor = self._executors[self._instances[branch.node_id]]
                    executor.cancel(event.session_id, event.branch_index, event.attempt)

    def compare(self, leases: Iterable[Lease], executor: Executor) -> None:
        """Events were missed, and `leases` are all there are: what the executor of this node is not to do any more is
        stopped, and what it is to do is started."""
        held = {AttemptKey(lease.session_id, lease.branch_index, lease.attempt): lease for lease in leases}
        self._preparing &= held.keys()
        for key in executor.running():
            if key not in held:
                executor.cancel(*key)
        self.start_leased(held.values())

    def start_leased(self, leases: Iterable[Lease]) -> None:
        """Those of the instances served; an executor ignores what it has been given before."""
        mine = [lease for lease in leases if lease.instance_id in self._executors]
        if mine:
            self._start(mine)

    def _start(self, assigned: Sequence[BranchAssigned | Lease]) -> None:
        sessions: dict[SessionId, Session | None] = {}
        with self._consensus.read() as txn:
            for event in assigned:
                branch = queries.get_branch(txn, event.session_id, event.branch_index)
                if event.session_id not in sessions:
                    sessions[event.session_id] = queries.get_session(txn, event.session_id)
                session = sessions[event.session_id]
                if session is None or branch is None or under_way(branch, event.attempt) is None:
                    continue
                executor = self._executors[event.instance_id]
                if branch.role == "branch":
                    executor.submit(_work(session, branch, event.attempt, None))
                elif session.total_branches <= INLINE_BRANCHES_MAX:
                    executor.submit(_work(session, branch, event.attempt, *branch_inputs(txn, session.id)))
                else:
                    self._own("consolidation inputs", self._prepare(session, branch, event.attempt, executor))

    async def _prepare(self, session: Session, branch: Branch, attempt: int, executor: Executing) -> None:
        """Reads the inputs of a large consolidation on another thread: they may take seconds."""
        key = AttemptKey(branch.session_id, branch.branch_index, attempt)
        self._preparing.add(key)
        try:
            async with self._readers:
                inputs = await asyncio.to_thread(self._read_inputs, session.id)
        except (ConsensusError, StorageError) as error:
            log.warning("inputs_not_read", session=session.id, code=error.code, reason=str(error))
            self._preparing.discard(key)
            return  # the lease runs out, and another node takes over
        if key in self._preparing:
            self._preparing.discard(key)
            executor.submit(_work(session, branch, attempt, *inputs))

    def _read_inputs(self, session_id: SessionId) -> tuple[list[BranchInput], bool]:
        with self._consensus.read() as txn:
            return branch_inputs(txn, session_id)


def _work(
    session: Session, branch: Branch, attempt: int, inputs: list[BranchInput] | None, is_trimmed: bool = False
) -> Work:
    return Work(
        session_id=branch.session_id,
        branch_index=branch.branch_index,
        attempt=attempt,
        ritual=branch.ritual,
        task=branch.task,
        parameters=branch.parameters,
        seed=branch.seed,
        timeout_ms=branch.timeout_ms,
        thought=session.thought,
        inputs=inputs,
        inputs_trimmed=is_trimmed,
    )


def branch_inputs(txn: Transaction, session_id: SessionId) -> tuple[list[BranchInput], bool]:
    """Everything a consolidation sees: one entry a branch, in order of `branch_index`; and whether results are left
    out."""
    rows = list(queries.branches_with_results(txn, session_id, INPUT_BYTES_MAX))
    inputs = [
        BranchInput(
            branch_index=branch.branch_index,
            task=branch.task,
            ritual=branch.ritual,
            ritual_version=branch.ritual_version or "",
            node_id=branch.node_id or "",
            attempt=branch.attempt,
            status=branch.status,
            duration_ms=branch.duration_ms or 0,
            parameters=branch.parameters,
            knowledge=knowledge,
            failure=branch.failure,
        )
        for branch, knowledge, _ in rows
    ]
    return inputs, any(is_trimmed for _, _, is_trimmed in rows)


def _key(outcome: Outcome) -> AttemptKey:
    return AttemptKey(outcome.session_id, outcome.branch_index, outcome.attempt)


def backoff_ms(attempt: int) -> int:
    return min(RETRY_MS_MIN << min(max(attempt - 1, 0), 16), REST_MS_MAX)


def _rests(outcome: Outcome) -> bool:
    return outcome.failure is not None and outcome.failure.code not in HANDED_BACK


class Reporter:
    """Records outcomes in batches: while one batch is being committed the next one gathers."""

    def __init__(self, consensus: Consensus, places: Places, now_ms: Callable[[], int]) -> None:
        self._consensus = consensus
        self._places = places
        self._now_ms = now_ms
        self._waiting: deque[Outcome] = (
            deque()
        )  # bounded: one a lease of the executor, and what `Parent` takes from Leaf nodes
        self._answered: dict[AttemptKey, list[Callable[[], None]]] = {}
        self._woken = asyncio.Event()
        self._hurry = asyncio.Event()
        """Something waits that is not to be gathered."""
        self._gather_until = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, outcome: Outcome, answered: Callable[[], None] | None = None) -> None:
        """`answered` is called when the state machine has answered: the outcome is recorded, or never will be."""
        if answered is not None:
            self._answered.setdefault(_key(outcome), []).append(answered)
        self._waiting.append(outcome)
        if answered is None or len(self._waiting) >= OUTCOME_BATCH_MAX:
            self._hurry.set()
        self._idle.clear()
        self._woken.set()

    async def wait_idle(self) -> None:
        """Returns when every outcome has been answered by the state machine."""
        await self._idle.wait()

    async def run(self) -> None:
        """Runs until cancelled; what is not answered by then is lost with this instance and requeued by the leader."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                await self._gather()
                batch = self._take()
                await self._record(batch)
                self._gather_until = asyncio.get_running_loop().time() + GATHER_S if len(batch) > 1 else 0.0
                for outcome in batch if self._answered else ():
                    for answered in self._answered.pop(_key(outcome), ()):
                        answered()
            self._idle.set()

    async def _gather(self) -> None:
        if asyncio.get_running_loop().time() < self._gather_until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._gather_until):
                    await self._hurry.wait()
        self._hurry.clear()

    def _take(self) -> list[Outcome]:
        batch: list[Outcome] = []
        size_bytes = 0
        while self._waiting and len(batch) < OUTCOME_BATCH_MAX and size_bytes < OUTCOME_BATCH_BYTES_MAX:
            outcome = self._waiting.popleft()
            size_bytes += len(codec.encode(outcome))
            batch.append(outcome)
        return batch

    async def _record(self, batch: list[Outcome]) -> None:
        while True:
            now_ms = self._now_ms()
            command = CompleteBranches(
                outcomes=self._rested(batch, now_ms), at_ms=now_ms, offer=self._places.offer_any()
            )
            try:
                answer = await self._consensus.propose(command, REPORT_DEADLINE_S)
            except ConsensusError as error:
                if error.code not in UNSAYABLE:
                    log.warning("outcomes_waiting", outcomes=len(batch), code=error.code)
                    await asyncio.sleep(REPORT_PAUSE_S)
                    continue
                answer = Refused(index=0, code=error.code, message=str(error))
            break
        if isinstance(answer, Refused):
            await self._isolate(batch, answer)

    def _rested(self, batch: list[Outcome], now_ms: int) -> list[Outcome]:
        """What has failed rests before it is tried again, longer each time."""
        if not any(map(_rests, batch)):
            return batch
        try:
            with self._consensus.read() as txn:
                if versions.behind(queries.members(txn), versions.PLACEMENT_VERSION):
                    return batch
        except (ConsensusError, StorageError):
            return batch
        return [
            msgspec.structs.replace(outcome, retry_at_ms=now_ms + backoff_ms(outcome.attempt))
            if _rests(outcome)
            else outcome
            for outcome in batch
        ]

    async def _isolate(self, batch: list[Outcome], refusal: Refused) -> None:
        """One bad outcome must not take its neighbours along: halve the batch until it stands alone, then record in
        its place why it was refused."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._record(batch[:middle])
            await self._record(batch[middle:])
            return
        outcome = batch[0]
        log.error("outcome_refused", session=outcome.session_id[:40], branch=outcome.branch_index, code=refusal.code)
        if outcome.failure is None or outcome.failure.code != refusal.code:
            failure = Failure(code=refusal.code, message=refusal.message)
            bare = msgspec.structs.replace(outcome, knowledge=None, failure=failure, ritual_version="")
            await self._record([bare])
