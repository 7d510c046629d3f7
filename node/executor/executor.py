"""Executes attempts in worker processes and says how each ended.

Rules. An attempt that was accepted ends with exactly one outcome, unless it is cancelled by its owner: then with none.
A ritual can cost its own attempt and its worker, never the daemon. What is not the ritual's fault (its worker was taken
down by a neighbour, or this node is draining) is an outcome with `is_lost`, so that it counts as a loss, not a failure.

All methods are for the thread of the event loop. `on_outcome` and `on_live` are called on it too, never from inside
`submit` or `cancel`, and must not raise.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

import msgspec

from consensus.state.commands import Outcome
from consensus.state.rows import Failure, Knowledge
from node.executor import limits, protocol
from node.executor.messages import input_messages, run_message
from node.executor.pool import WorkerPool
from node.executor.process import WorkerProcess, describe_exit
from node.executor.work import (
    AttemptKey,
    BranchInput,
    ExecutorSettings,
    ExecutorStatistics,
    LiveUpdate,
    Work,
    WorkerStatus,
)
from node.rituals.definition import RitualDefinition
from storage.ids import SessionId

__all__ = ["BranchInput", "Executor", "ExecutorSettings", "ExecutorStatistics", "LiveUpdate", "Work"]

_decode_knowledge = msgspec.msgpack.Decoder(Knowledge).decode


class _Attempt:
    """An attempt that was accepted and has not ended."""

    __slots__ = ("code", "key", "lane", "message", "number", "started_s", "timer", "version", "work", "worker")

    def __init__(self, work: Work, key: AttemptKey, number: int, lane: str, version: str) -> None:
        self.work = work
        self.key = key
        self.number = number
        """Names it on the pipe."""
        self.lane = lane
        self.version = version
        self.worker: WorkerProcess | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.started_s = 0.0
        self.code: str | None = None
        """Set when the daemon has decided how it ends and waits for the worker to obey; `cancelled`: no outcome."""
        self.message = ""


class Executor:
    """See the module. `start` before anything else, `stop` at the end; `drain` before `stop` to let work finish."""

    def __init__(
        self,
        settings: ExecutorSettings,
        registry: Mapping[str, RitualDefinition],
        on_outcome: Callable[[Outcome], None],
        on_live: Callable[[LiveUpdate], None],
        lookup_patterns: Callable[[list[str]], Mapping[str, int] | Coroutine[Any, Any, Mapping[str, int]]]
        | None = None,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        """`lookup_patterns` answers how often patterns were recorded before, at once or after asking.
        `on_event(event, fields)` is for the log: `worker_started`, `worker_crashed`, `worker_killed`,
        `worker_start_failed`."""
        self._settings = settings
        self._registry = registry
        self._on_outcome = on_outcome
        self._on_live = on_live
        self._lookup_patterns = lookup_patterns
        self._on_event = on_event
        self._attempts: dict[AttemptKey, _Attempt] = {}
        self._by_number: dict[int, _Attempt] = {}
        self._recent: OrderedDict[AttemptKey, None] = OrderedDict()
        self._queues: dict[str, deque[_Attempt]] = {"async": deque(), "cpu": deque()}
        self._suspects: dict[str, float] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._next_number = 0
        self._asking: set[asyncio.Task[None]] = set()
        self._is_draining = False
        self._is_stopped = False
        self._async_busy = 0
        self._executed = self._failures = self._crashes = 0
        self._pool = WorkerPool(settings, registry, self, self._log)

    # life

    async def start(self, *, is_warm: bool = True) -> None:
        """Work may be submitted at once. `is_warm`: workers are started now, else by `warm` or the first work."""
        self._loop = asyncio.get_running_loop()
        await self._pool.open()
        if is_warm:
            self.warm()

    def warm(self) -> None:
        """Starts the workers that are kept ready, and returns without waiting for them. Harmless when they are."""
        self._pool.warm()

    async def wait_ready(self) -> None:
        """Until the async worker can execute; for tests and for reporting readiness."""
        await self._pool.ready.wait()

    async def drain(self, timeout_s: float) -> None:
        """Accept no more, return what has not started, let the rest run for at most `timeout_s`, end it as lost."""
        self._is_draining = True
        for queue in self._queues.values():
            while queue:
                self._end_lost(queue[0], "draining", "this node is shutting down; the branch goes to another node")
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            for attempt in list(self._attempts.values()):
                if attempt.code is None:
                    self._end_lost(attempt, "drained", "this node is shutting down; the branch goes to another node")
                else:
                    self._conclude(attempt, None)
                self._take_down(attempt)

    async def stop(self) -> None:
        """Drain without waiting, end every worker, wait until they are gone. Idempotent."""
        if self._is_stopped:
            return
        await self.drain(0.0)
        self._is_stopped = True
        for asking in self._asking:
            asking.cancel()
        await self._pool.close()

    # work

    def submit(self, work: Work) -> None:
        """Accept an attempt. A repeated submit of the same attempt is ignored, also after it has ended."""
        key = work.key
        if key in self._attempts or key in self._recent:
            return
        definition = self._registry.get(work.ritual)
        lane = "cpu" if definition is None or definition.kind == "cpu" or self._is_suspect(work.ritual) else "async"
        self._next_number += 1
        version = "" if definition is None else definition.version
        attempt = _Attempt(work, key, self._next_number, lane, version)
        self._attempts[key] = attempt
        self._by_number[attempt.number] = attempt
        self._idle.clear()
        refusal = self._refusal(definition, work)
        if refusal is not None:
            # Not from inside `submit`: the caller may hold state that `on_outcome` changes.
            attempt.code, attempt.message, is_lost = refusal
            self._loop.call_soon(self._conclude, attempt, None, is_lost)
            return
        self.warm()
        self._queues[lane].append(attempt)
        self._pump(lane)
        if attempt.worker is None:
            attempt.timer = self._loop.call_later(limits.WAITING_S_MAX, self._on_waited, attempt)

    def cancel(self, session_id: SessionId, branch_index: int, attempt: int) -> bool:
        """End an attempt without an outcome. False if it is not here (unknown, or already ended)."""
        found = self._attempts.get(AttemptKey(session_id, branch_index, attempt))
        if found is None or found.code == "cancelled":
            return False
        found.code = "cancelled"
        if found.worker is None:
            self._conclude(found, None)
        else:
            self._stop_running(found)
        return True

    def running(self) -> list[AttemptKey]:
        """What was accepted and has not ended."""
        return list(self._attempts)

    def has_room(self, kind: str) -> bool:
        """Whether an attempt of this kind would start at once."""
        if self._is_draining or self._is_stopped or self._queues[kind]:
            return False
        return not self._is_full(kind)

    def _is_full(self, lane: str) -> bool:
        """Every slot executes something."""
        if lane == "async":
            return self._async_busy >= self._settings.async_slots
        return sum(1 for worker in self._pool.cpu_workers if worker.running) >= self._settings.slots

    def statistics(self) -> ExecutorStatistics:
        now = self._loop.time()
        return ExecutorStatistics(
            slots=self._settings.slots,
            slots_busy=sum(1 for worker in self._pool.cpu_workers if worker.running),
            async_slots=self._settings.async_slots,
            async_busy=self._async_busy,
            pending=sum(len(queue) for queue in self._queues.values()),
            workers=[
                WorkerStatus(
                    pid=worker.pid,
                    kind=worker.kind,
                    running=len(worker.running),
                    executed=worker.executed,
                    age_s=round(now - worker.started_at, 3),
                )
                for worker in self._pool.workers()
            ],
            executed=self._executed,
            failures=self._failures,
            crashes=self._crashes,
            kills=self._pool.kills,
            is_draining=self._is_draining,
        )

    def _refusal(self, definition: RitualDefinition | None, work: Work) -> tuple[str, str, bool] | None:
        if self._is_draining:
            return "draining", "this node is shutting down; the branch goes to another node", True
        if definition is None:
            return "unknown_ritual", f"this node does not offer ritual {work.ritual!r}", False
        if (error := definition.check(work.parameters)) is not None:
            return "invalid_parameters", error, False
        if len(self._attempts) > limits.PENDING_MAX:
            return "executor_full", f"{limits.PENDING_MAX} attempts are waiting on this node already", True
        if definition.kind == "cpu" and self._settings.slots < 1:
            return "no_slots", "this node executes no CPU rituals (slots is 0)", True
        return None

    def _pump(self, lane: str) -> None:
        """Start what can be started."""
        queue = self._queues[lane]
        if lane == "async":
            worker = self._pool.async_worker
            while queue and worker is not None and worker.is_ready and not worker.is_ending:
                if self._async_busy >= self._settings.async_slots:
                    return
                self._run_on(worker, queue.popleft())
            return
        while queue:
            idle = self._pool.idle_cpu_worker()
            if idle is None:
                self._pool.start_cpu_workers(len(queue))
                return
            self._run_on(idle, queue.popleft())

    def _run_on(self, worker: WorkerProcess, attempt: _Attempt) -> None:
        work = attempt.work
        attempt.worker = worker
        attempt.started_s = self._loop.time()
        if attempt.timer is not None:
            attempt.timer.cancel()
        attempt.timer = self._loop.call_later(work.timeout_ms / 1000, self._on_deadline, attempt)
        worker.running.add(attempt.number)
        if worker.kind == "async":
            self._async_busy += 1
        if work.inputs:
            worker.post_stream(attempt.number, input_messages(attempt.number, work))
        else:
            worker.post(run_message(attempt.number, work))

    # how attempts end

    def on_worker_message(self, worker: WorkerProcess, message: list[Any]) -> None:
        tag = message[0]
        if tag == protocol.READY:
            self._pool.note_ready(worker)
            return
        attempt = self._by_number.get(message[1])
        if attempt is None or attempt.worker is not worker:
            return  # it ended meanwhile
        if tag == protocol.DONE:
            _, _, duration_ms, version, raw = message
            try:
                knowledge = _decode_knowledge(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise protocol.NotAFrame(f"knowledge that is none: {error}") from error
            self._conclude(attempt, self._outcome(attempt, duration_ms, version, knowledge=knowledge))
        elif tag == protocol.FAILED:
            _, _, duration_ms, version, code, text = message
            if code == "cancelled" and attempt.code is None:
                code, text = "ritual_error", "the ritual cancelled its own task"
            failure = Failure(code=code, message=text)
            if code == "out_of_memory" and worker.kind == "cpu":
                self._pool.let_go(worker)  # its address space stays fragmented
            self._conclude(attempt, self._outcome(attempt, duration_ms, version, failure=failure))
        elif tag == protocol.LIVE and attempt.code is None:
            _, _, progress, text, lines = message
            self._on_live(
                LiveUpdate(
                    session_id=attempt.key.session_id,
                    branch_index=attempt.key.branch_index,
                    attempt=attempt.key.attempt,
                    node_id=self._settings.node_id,
                    progress=progress,
                    message=text,
                    lines=lines,
                )
            )
        elif tag == protocol.SEEN:
            _, number, question, phrases = message
            counts = self._lookup_patterns(phrases[: limits.SEEN_PHRASES_MAX]) if self._lookup_patterns else {}
            if isinstance(counts, Mapping):
                _answer_seen(worker, number, question, counts)
            else:
                asking = self._loop.create_task(self._ask_seen(worker, number, question, counts))
                self._asking.add(asking)
                asking.add_done_callback(self._asking.discard)

    async def _ask_seen(
        self, worker: WorkerProcess, number: int, question: int, asked: Coroutine[Any, Any, Mapping[str, int]]
    ) -> None:
        _answer_seen(worker, number, question, await asked)

    def on_worker_exit(self, worker: WorkerProcess) -> None:
        was_expected = self._pool.note_exit(worker)
        attempts = [self._by_number[number] for number in sorted(worker.running) if number in self._by_number]
        reason = describe_exit(worker)
        if not was_expected and worker.is_ready:
            self._crashes += 1
            self._log("worker_crashed", pid=worker.pid, kind=worker.kind, running=len(attempts), reason=reason)
        undecided = [attempt for attempt in attempts if attempt.code is None]
        if len(undecided) > 1 and not was_expected:
            self._suspect(undecided)
        for attempt in attempts:
            if attempt.code is not None:
                self._conclude(attempt, None)
            elif len(undecided) == 1 and not was_expected:
                if attempt.work.ritual in self._suspects:  # found: the others are innocent
                    self._suspects = {attempt.work.ritual: self._suspects[attempt.work.ritual]}
                attempt.code, attempt.message = "worker_crashed", reason
                self._conclude(attempt, None)
            else:
                self._end_lost(attempt, "worker_lost", f"its worker was lost while it ran beside others: {reason}")
        self._pool.replace(worker, was_expected, reason)

    def on_capacity(self, kind: str) -> None:
        self._pump(kind)

    def on_unavailable(self, kind: str, reason: str) -> None:
        queue = self._queues[kind]
        while queue:
            self._end_lost(queue[0], "worker_unavailable", f"this node cannot start workers: {reason}")

    def wants(self, kind: str) -> bool:
        return bool(self._queues[kind])

    def _on_waited(self, attempt: _Attempt) -> None:
        """A slot that is not ready yet is waited for: it may be about to start."""
        if not self._is_full(attempt.lane):
            attempt.timer = self._loop.call_later(limits.WAITING_S_MAX, self._on_waited, attempt)
        elif attempt.worker is None and attempt.code is None:
            self._end_lost(
                attempt, "waited_too_long", "every slot of its node was busy; the branch goes to another place"
            )

    def _on_deadline(self, attempt: _Attempt) -> None:
        if attempt.code is None and attempt.worker is not None:
            attempt.code = "deadline_exceeded"
            attempt.message = f"the attempt took longer than its {attempt.work.timeout_ms / 1000:g} s"
            self._stop_running(attempt)

    def _stop_running(self, attempt: _Attempt) -> None:
        """The attempt's code is set; make its worker obey."""
        worker = attempt.worker
        assert worker is not None
        if worker.kind == "cpu":
            self._pool.take_down(worker, f"an attempt of {attempt.work.ritual} was stopped: {attempt.code}")
            self._conclude(attempt, None)
            return
        worker.drop_stream(attempt.number)
        worker.post([protocol.CANCEL, attempt.number])
        if attempt.timer is not None:
            attempt.timer.cancel()
        attempt.timer = self._loop.call_later(limits.CANCEL_GRACE_S, self._on_disobedience, attempt)

    def _on_disobedience(self, attempt: _Attempt) -> None:
        worker = attempt.worker
        assert worker is not None
        if attempt.code == "deadline_exceeded":
            attempt.message += " and did not end when told to; its worker was killed"
            if len(worker.running) > 1:  # any of them may have held up the loop
                self._suspect(self._by_number[number] for number in worker.running)
        self._pool.take_down(worker, f"ritual {attempt.work.ritual} did not end when told to")

    def _take_down(self, attempt: _Attempt) -> None:
        if attempt.worker is not None:
            self._pool.take_down(attempt.worker, "this node is shutting down")

    def _end_lost(self, attempt: _Attempt, code: str, message: str) -> None:
        attempt.code, attempt.message = code, message
        self._conclude(attempt, None, True)

    def _conclude(self, attempt: _Attempt, outcome: Outcome | None, is_lost: bool = False) -> None:
        """The attempt is over: free what it held and tell its outcome. What the daemon has decided goes before what
        the worker says."""
        if self._attempts.pop(attempt.key, None) is None:
            return
        del self._by_number[attempt.number]
        self._recent[attempt.key] = None
        if len(self._recent) > limits.RECENT_MAX:
            self._recent.popitem(last=False)
        if attempt.timer is not None:
            attempt.timer.cancel()
        worker = attempt.worker
        if worker is None:
            with contextlib.suppress(ValueError):
                self._queues[attempt.lane].remove(attempt)
        else:
            worker.running.discard(attempt.number)
            worker.executed += 1
            if worker.kind == "async":
                self._async_busy -= 1
            else:
                self._pool.keep_warm(worker)
        self._executed += 1
        if attempt.code is not None and attempt.code != "cancelled":
            duration_ms = round((self._loop.time() - attempt.started_s) * 1000) if worker is not None else 0
            failure = Failure(code=attempt.code, message=attempt.message)
            outcome = self._outcome(attempt, duration_ms, "", failure=failure, is_lost=is_lost)
        elif attempt.code == "cancelled":
            outcome = None
        if outcome is not None:
            if outcome.failure is not None:
                self._failures += 1
            self._on_outcome(outcome)
        if not self._attempts:
            self._idle.set()
        if self._queues[attempt.lane]:
            self._pump(attempt.lane)

    def _outcome(
        self,
        attempt: _Attempt,
        duration_ms: int,
        version: str,
        *,
        knowledge: Knowledge | None = None,
        failure: Failure | None = None,
        is_lost: bool = False,
    ) -> Outcome:
        return Outcome(
            session_id=attempt.key.session_id,
            branch_index=attempt.key.branch_index,
            attempt=attempt.key.attempt,
            node_id=self._settings.node_id,
            duration_ms=duration_ms,
            ritual_version=version or attempt.version,
            knowledge=knowledge,
            failure=failure,
            is_lost=is_lost,
        )

    # small things

    def _suspect(self, attempts: Iterable[_Attempt]) -> None:
        """They execute alone for a while."""
        for attempt in attempts:
            self._suspects[attempt.work.ritual] = self._loop.time() + limits.SUSPECT_S

    def _is_suspect(self, ritual: str) -> bool:
        until = self._suspects.get(ritual)
        if until is None:
            return False
        if self._loop.time() < until:
            return True
        del self._suspects[ritual]
        return False

    def _log(self, event: str, **fields: Any) -> None:
        if self._on_event is not None:
            self._on_event(event, fields)


def _answer_seen(worker: WorkerProcess, number: int, question: int, counts: Mapping[str, int]) -> None:
    worker.post([protocol.SEEN_REPLY, number, question, {phrase: count for phrase, count in counts.items() if count}])
