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
import shutil
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from consensus.state.commands import Outcome
from consensus.state.rows import Failure, Knowledge
from node.executor import limits, protocol
from node.executor.process import Started, WorkerProcess, describe_exit, spawn
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

NICE_ASYNC = 5
NICE_CPU = 10

_decode_knowledge = msgspec.msgpack.Decoder(Knowledge).decode
_encode_input = msgspec.msgpack.Encoder().encode


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
        lookup_patterns: Callable[[list[str]], Mapping[str, int]] | None = None,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        """`lookup_patterns` answers how often patterns were recorded before. `on_event(event, fields)` is for the
        log: `worker_started`, `worker_crashed`, `worker_killed`, `worker_start_failed`."""
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
        self._async_worker: WorkerProcess | None = None
        self._cpu_workers: list[WorkerProcess] = []
        self._ending: set[WorkerProcess] = set()
        self._idle_timers: dict[WorkerProcess, asyncio.TimerHandle] = {}
        self._starting = {"async": 0, "cpu": 0}
        self._start_failures = {"async": 0, "cpu": 0}
        self._suspects: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._ready = asyncio.Event()
        self._next_number = 0
        self._next_directory = 0
        self._is_draining = False
        self._is_stopped = False
        self._async_busy = 0
        self._executed = self._failures = self._crashes = self._kills = 0
        # One thread, kept until stop: workers ask the kernel to die with the thread that started them.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="worker-spawner")

    # life

    async def start(self) -> None:
        """Starts the warm workers and returns without waiting for them; work may be submitted at once."""
        self._loop = asyncio.get_running_loop()
        await self._loop.run_in_executor(self._spawner, self._empty_scratch)
        self._start_worker("async")
        if self._settings.prewarm_cpu and self._settings.slots > 0:
            self._start_worker("cpu")

    async def wait_ready(self) -> None:
        """Until the async worker can execute; for tests and for reporting readiness."""
        await self._ready.wait()

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
        for timer in self._idle_timers.values():
            timer.cancel()
        self._idle_timers.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers():
            self._ending.add(worker)
            worker.dismiss()
        for worker in self._workers():
            await worker.exited
        await self._loop.run_in_executor(
            self._spawner, lambda: shutil.rmtree(self._settings.scratch_directory, ignore_errors=True)
        )
        self._spawner.shutdown(wait=True)

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
        self._queues[lane].append(attempt)
        self._pump(lane)

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

    def statistics(self) -> ExecutorStatistics:
        now = self._loop.time()
        return ExecutorStatistics(
            slots=self._settings.slots,
            slots_busy=sum(1 for worker in self._cpu_workers if worker.running),
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
                for worker in self._workers()
            ],
            executed=self._executed,
            failures=self._failures,
            crashes=self._crashes,
            kills=self._kills,
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
            worker = self._async_worker
            while queue and worker is not None and worker.is_ready and not worker.is_ending:
                if self._async_busy >= self._settings.async_slots:
                    return
                self._run_on(worker, queue.popleft())
            return
        while queue:
            idle = next((w for w in self._cpu_workers if w.is_ready and not w.is_ending and not w.running), None)
            if idle is None:
                break
            self._run_on(idle, queue.popleft())
        not_ready = self._starting["cpu"] + sum(1 for worker in self._cpu_workers if not worker.is_ready)
        free = max(1, self._settings.slots) - self._starting["cpu"] - len(self._cpu_workers)
        for _ in range(min(free, len(queue) - not_ready)):  # those that are starting take one attempt each
            self._start_worker("cpu")

    def _run_on(self, worker: WorkerProcess, attempt: _Attempt) -> None:
        work = attempt.work
        attempt.worker = worker
        attempt.started_s = self._loop.time()
        attempt.timer = self._loop.call_later(work.timeout_ms / 1000, self._on_deadline, attempt)
        worker.running.add(attempt.number)
        if worker.kind == "async":
            self._async_busy += 1
        elif (timer := self._idle_timers.pop(worker, None)) is not None:
            timer.cancel()
        if work.inputs:
            worker.post_stream(attempt.number, _input_messages(attempt.number, work))
        else:
            worker.post(_run_message(attempt.number, work, is_trimmed=False))

    # how attempts end

    def on_worker_message(self, worker: WorkerProcess, message: list[Any]) -> None:
        tag = message[0]
        if tag == protocol.READY:
            self._on_ready(worker)
            return
        attempt = self._by_number.get(message[1])
        if attempt is None or attempt.worker is not worker:
            return  # it ended meanwhile
        if tag == protocol.DONE:
            _, _, duration_ms, version, raw = message
            try:
                knowledge = _decode_knowledge(raw)
            except msgspec.DecodeError as error:
                raise protocol.NotAFrame(f"knowledge that is none: {error}") from error
            self._conclude(attempt, self._outcome(attempt, duration_ms, version, knowledge=knowledge))
        elif tag == protocol.FAILED:
            _, _, duration_ms, version, code, text = message
            failure = Failure(code=code, message=text)
            is_lost = code == "cancelled"  # by itself or by a neighbour, for those we cancelled have a code of ours
            if code == "out_of_memory" and worker.kind == "cpu":
                self._let_go(worker)  # its address space stays fragmented
            self._conclude(attempt, self._outcome(attempt, duration_ms, version, failure=failure, is_lost=is_lost))
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
            known = {phrase: count for phrase, count in counts.items() if count}
            worker.post([protocol.SEEN_REPLY, number, question, known])

    def on_worker_exit(self, worker: WorkerProcess) -> None:
        self._forget(worker)
        attempts = [self._by_number[number] for number in sorted(worker.running) if number in self._by_number]
        reason = describe_exit(worker)
        was_expected = worker in self._ending
        self._ending.discard(worker)
        if not was_expected and worker.is_ready:
            self._crashes += 1
            self._log("worker_crashed", pid=worker.pid, kind=worker.kind, running=len(attempts), reason=reason)
        undecided = [attempt for attempt in attempts if attempt.code is None]
        if len(undecided) > 1 and not was_expected:
            for attempt in undecided:
                self._suspects[attempt.work.ritual] = self._loop.time() + limits.SUSPECT_S
        for attempt in attempts:
            if attempt.code is not None:
                self._conclude(attempt, None)
            elif len(undecided) == 1 and not was_expected:
                attempt.code, attempt.message = "worker_crashed", reason
                self._conclude(attempt, None)
            else:
                self._end_lost(attempt, "worker_lost", f"its worker was lost while it ran beside others: {reason}")
        if not worker.is_ready and not was_expected:
            self._on_start_failed(worker.kind, reason)
        elif worker.kind == "async":
            self._start_worker("async")
        self._pump("cpu")

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
            self._take_down_worker(worker, f"an attempt of {attempt.work.ritual} was stopped: {attempt.code}")
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
        self._take_down_worker(worker, f"ritual {attempt.work.ritual} did not end when told to")

    def _take_down(self, attempt: _Attempt) -> None:
        if attempt.worker is not None:
            self._take_down_worker(attempt.worker, "this node is shutting down")

    def _take_down_worker(self, worker: WorkerProcess, reason: str) -> None:
        if worker in self._ending:
            return
        self._kills += 1
        self._log("worker_killed", pid=worker.pid, kind=worker.kind, reason=reason)
        self._ending.add(worker)
        worker.kill()
        if worker.kind == "cpu":  # its slot is free at once; the process is reaped when the kernel is done with it
            self._forget(worker)
            self._pump("cpu")
            if not self._cpu_workers and not self._starting["cpu"]:
                self._start_worker("cpu")

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
                self._keep_warm(worker)
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

    # workers

    def _start_worker(self, kind: str, delay_s: float = 0.0) -> None:
        if self._is_stopped or (self._is_draining and not self._attempts):
            return
        self._starting[kind] += 1
        self._own(self._bring_up(kind, delay_s))

    async def _bring_up(self, kind: str, delay_s: float) -> None:
        try:
            if delay_s:
                await asyncio.sleep(delay_s)
            self._next_directory += 1
            directory = self._settings.scratch_directory / f"worker-{self._next_directory}"
            future = self._loop.run_in_executor(self._spawner, spawn, directory)
            try:
                started = await asyncio.shield(future)
            except asyncio.CancelledError:
                future.add_done_callback(_discard)  # the thread cannot be stopped half-way
                with contextlib.suppress(Exception):
                    await future
                raise
        except OSError as error:
            self._starting[kind] -= 1
            self._on_start_failed(kind, f"the system refused a new process: {error}")
            return
        except asyncio.CancelledError:
            self._starting[kind] -= 1
            raise
        self._starting[kind] -= 1
        worker = WorkerProcess(started, kind, self, self._loop)
        if kind == "async":
            self._async_worker = worker
        else:
            self._cpu_workers.append(worker)
        worker.post([protocol.HELLO, self._hello(kind)])
        self._own(self._watch_start(worker))

    def _hello(self, kind: str) -> dict[str, Any]:
        preload = [name for name, definition in self._registry.items() if definition.kind == kind]
        return {
            "kind": kind,
            "rituals": {name: definition.target for name, definition in self._registry.items()},
            # Foreign rituals may import for seconds; they are loaded when first needed.
            "preload": [name for name in preload if self._registry[name].source == "meshnode"],
            "memory_bytes_max": self._settings.memory_bytes_max,
            "nice": NICE_ASYNC if kind == "async" else NICE_CPU,
            "path": [entry for entry in sys.path if entry],
        }

    async def _watch_start(self, worker: WorkerProcess) -> None:
        await asyncio.wait([worker.exited], timeout=limits.START_TIMEOUT_S)
        if not worker.is_ready and not worker.exited.done():
            worker.kill()

    def _on_ready(self, worker: WorkerProcess) -> None:
        worker.is_ready = True
        self._start_failures[worker.kind] = 0
        self._log("worker_started", pid=worker.pid, kind=worker.kind)
        if worker.kind == "async":
            self._ready.set()
        else:
            self._keep_warm(worker)
        self._pump(worker.kind)

    def _on_start_failed(self, kind: str, reason: str) -> None:
        self._start_failures[kind] += 1
        count = self._start_failures[kind]
        self._log("worker_start_failed", kind=kind, count=count, reason=reason)
        if count >= limits.START_FAILURES_MAX:
            queue = self._queues[kind]
            while queue:
                self._end_lost(queue[0], "worker_unavailable", f"this node cannot start workers: {reason}")
        if kind == "async" or self._queues[kind]:
            backoff_s = limits.START_BACKOFF_S_MIN * 2 ** min(count - 1, 10)
            self._start_worker(kind, min(backoff_s, limits.START_BACKOFF_S_MAX))

    def _keep_warm(self, worker: WorkerProcess) -> None:
        if not worker.is_ending and not self._is_stopped and worker not in self._idle_timers:
            self._idle_timers[worker] = self._loop.call_later(limits.IDLE_KEEP_S, self._let_go, worker)

    def _let_go(self, worker: WorkerProcess) -> None:
        """Let a CPU worker go that has nothing to do; another is started when there is work."""
        self._forget(worker)
        self._ending.add(worker)
        worker.dismiss()
        self._pump("cpu")

    def _forget(self, worker: WorkerProcess) -> None:
        """It gets no more work."""
        if (timer := self._idle_timers.pop(worker, None)) is not None:
            timer.cancel()
        if worker is self._async_worker:
            self._async_worker = None
        elif worker in self._cpu_workers:
            self._cpu_workers.remove(worker)

    def _workers(self) -> list[WorkerProcess]:
        first = [] if self._async_worker is None else [self._async_worker]
        return list(dict.fromkeys([*first, *self._cpu_workers, *self._ending]))

    # small things

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

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _empty_scratch(self) -> None:
        shutil.rmtree(self._settings.scratch_directory, ignore_errors=True)
        self._settings.scratch_directory.mkdir(parents=True, mode=0o700, exist_ok=True)


def _discard(future: asyncio.Future[Started]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().discard()


def _run_message(number: int, work: Work, *, is_trimmed: bool) -> list[Any]:
    return [
        protocol.RUN,
        number,
        work.ritual,
        work.session_id,
        work.branch_index,
        work.attempt,
        work.task,
        work.parameters,
        work.thought,
        work.seed,
        work.inputs is not None,
        is_trimmed,
    ]


def _input_messages(number: int, work: Work) -> Iterator[list[Any]]:
    """The inputs in pieces, then the RUN message."""
    chunk: list[Any] = []
    chunk_bytes = total_bytes = 0
    is_trimmed = False
    for branch in work.inputs or ():
        raw = _encode_input(branch)
        if total_bytes + len(raw) > limits.INPUTS_BYTES_MAX and branch.knowledge is not None:
            is_trimmed = True
            raw = _encode_input(_without_result(branch))
        total_bytes += len(raw)
        chunk_bytes += len(raw)
        chunk.append(msgspec.Raw(raw))
        if chunk_bytes >= limits.INPUTS_CHUNK_BYTES:
            yield [protocol.INPUTS, number, chunk]
            chunk, chunk_bytes = [], 0
    yield [protocol.INPUTS, number, chunk]
    yield _run_message(number, work, is_trimmed=is_trimmed)


def _without_result(branch: BranchInput) -> BranchInput:
    assert branch.knowledge is not None
    knowledge = msgspec.structs.replace(branch.knowledge, result=None)
    return msgspec.structs.replace(branch, knowledge=knowledge)
