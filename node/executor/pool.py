"""The worker processes of an executor: which exist, starting them, keeping them warm, letting them go.

It knows nothing of attempts. Its owner is told when a worker is ready or gone (`PoolOwner`) and then gives it work.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from node.executor import limits, protocol
from node.executor.process import Owner, Started, WorkerProcess, spawn
from node.executor.work import ExecutorSettings
from node.rituals.definition import RitualDefinition

NICE_ASYNC = 5
NICE_CPU = 10


class PoolOwner(Owner, Protocol):
    """Who uses the workers; called on the event loop."""

    def on_capacity(self, kind: str) -> None:
        """A worker of this kind is ready, or a slot has become free."""

    def on_unavailable(self, kind: str, reason: str) -> None:
        """Workers of this kind cannot be started; trying goes on."""

    def wants(self, kind: str) -> bool:
        """True if there is work for a worker of this kind."""


class WorkerPool:
    """One async worker, replaced when it dies, and CPU workers as they are needed."""

    def __init__(
        self,
        settings: ExecutorSettings,
        registry: Mapping[str, RitualDefinition],
        owner: PoolOwner,
        log: Callable[..., None],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._owner = owner
        self._log = log
        self.async_worker: WorkerProcess | None = None
        self.cpu_workers: list[WorkerProcess] = []
        self.kills = 0
        self.ready = asyncio.Event()
        """Set when the async worker was ready for the first time."""
        self._ending: set[WorkerProcess] = set()
        self._idle_timers: dict[WorkerProcess, asyncio.TimerHandle] = {}
        self._starting = {"async": 0, "cpu": 0}
        self._start_failures = {"async": 0, "cpu": 0}
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_directory = 0
        self._is_closed = False
        self._is_warm = False
        # One thread, kept until the end: workers ask the kernel to die with the thread that started them.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="worker-spawner")

    async def open(self) -> None:
        """Before anything else; no worker is started yet."""
        self._loop = asyncio.get_running_loop()
        await self._loop.run_in_executor(self._spawner, self._empty_scratch)

    def warm(self) -> None:
        """Starts the workers that are kept ready, once, and returns without waiting for them."""
        if self._is_warm or self._is_closed:
            return
        self._is_warm = True
        self.start("async")
        if self._settings.prewarm_cpu and self._settings.slots > 0:
            self.start("cpu")

    async def close(self) -> None:
        """Ends every worker and waits until they are gone."""
        self._is_closed = True
        for timer in self._idle_timers.values():
            timer.cancel()
        self._idle_timers.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self.workers():
            self._ending.add(worker)
            worker.dismiss()
        for worker in self.workers():
            await worker.exited
        scratch = self._settings.scratch_directory
        await self._loop.run_in_executor(self._spawner, lambda: shutil.rmtree(scratch, ignore_errors=True))
        self._spawner.shutdown(wait=True)

    def workers(self) -> list[WorkerProcess]:
        """All that exist, ending ones included."""
        first = [] if self.async_worker is None else [self.async_worker]
        return list(dict.fromkeys([*first, *self.cpu_workers, *self._ending]))

    def idle_cpu_worker(self) -> WorkerProcess | None:
        """One that can take work now; it is yours until `keep_warm`."""
        for worker in self.cpu_workers:
            if worker.is_ready and not worker.is_ending and not worker.running:
                if (timer := self._idle_timers.pop(worker, None)) is not None:
                    timer.cancel()
                return worker
        return None

    def start_cpu_workers(self, waiting: int) -> None:
        """As many as the slots allow for this many waiting attempts; those that are starting take one each."""
        not_ready = self._starting["cpu"] + sum(1 for worker in self.cpu_workers if not worker.is_ready)
        free = max(1, self._settings.slots) - self._starting["cpu"] - len(self.cpu_workers)
        for _ in range(min(free, waiting - not_ready)):
            self.start("cpu")

    def start(self, kind: str, delay_s: float = 0.0) -> None:
        if not self._is_closed:
            self._starting[kind] += 1
            self._own(self._bring_up(kind, delay_s))

    def keep_warm(self, worker: WorkerProcess) -> None:
        """A CPU worker has nothing to do: let it go after a while."""
        if not worker.is_ending and not self._is_closed and worker not in self._idle_timers:
            self._idle_timers[worker] = self._loop.call_later(limits.IDLE_KEEP_S, self.let_go, worker)

    def let_go(self, worker: WorkerProcess) -> None:
        """It gets no more work and leaves; another is started when there is work."""
        self._forget(worker)
        self._ending.add(worker)
        worker.dismiss()
        self._owner.on_capacity("cpu")

    def take_down(self, worker: WorkerProcess, reason: str) -> None:
        """Kill it. What it runs is lost or ended as its owner has decided."""
        if worker in self._ending:
            return
        self.kills += 1
        self._log("worker_killed", pid=worker.pid, kind=worker.kind, reason=reason)
        self._ending.add(worker)
        worker.kill()
        if worker.kind == "cpu":  # its slot is free at once; the process is reaped when the kernel is done with it
            self._forget(worker)
            self._owner.on_capacity("cpu")
            if not self.cpu_workers and not self._starting["cpu"]:
                self.start("cpu")

    def note_ready(self, worker: WorkerProcess) -> None:
        """It has said its first word."""
        worker.is_ready = True
        self._start_failures[worker.kind] = 0
        self._log("worker_started", pid=worker.pid, kind=worker.kind)
        if worker.kind == "async":
            self.ready.set()
        else:
            self.keep_warm(worker)
        self._owner.on_capacity(worker.kind)

    def note_exit(self, worker: WorkerProcess) -> bool:
        """It is gone. True if that was our wish."""
        self._forget(worker)
        was_expected = worker in self._ending
        self._ending.discard(worker)
        return was_expected

    def replace(self, worker: WorkerProcess, was_expected: bool, reason: str) -> None:
        """After an exit and after its attempts have ended: start what is needed in its place."""
        if not worker.is_ready and not was_expected:
            self._start_failed(worker.kind, reason)
        elif worker.kind == "async":
            self.start("async")
        self._owner.on_capacity("cpu")

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
            self._start_failed(kind, f"the system refused a new process: {error}")
            return
        except asyncio.CancelledError:
            self._starting[kind] -= 1
            raise
        self._starting[kind] -= 1
        worker = WorkerProcess(started, kind, self._owner, self._loop)
        if kind == "async":
            self.async_worker = worker
        else:
            self.cpu_workers.append(worker)
        worker.post([protocol.HELLO, self._hello(kind)])
        self._own(self._attend(worker, directory))

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

    async def _attend(self, worker: WorkerProcess, directory: Path) -> None:
        """It has some time to start, and what its rituals leave goes with it."""
        await asyncio.wait([worker.exited], timeout=limits.START_TIMEOUT_S)
        if not worker.is_ready and not worker.exited.done():
            worker.kill()
        await asyncio.wait([worker.exited])
        await self._loop.run_in_executor(self._spawner, lambda: shutil.rmtree(directory, ignore_errors=True))

    def _start_failed(self, kind: str, reason: str) -> None:
        self._start_failures[kind] += 1
        count = self._start_failures[kind]
        self._log("worker_start_failed", kind=kind, count=count, reason=reason)
        if count >= limits.START_FAILURES_MAX:
            self._owner.on_unavailable(kind, reason)
        if kind == "async" or self._owner.wants(kind):
            backoff_s = limits.START_BACKOFF_S_MIN * 2 ** min(count - 1, 10)
            self.start(kind, min(backoff_s, limits.START_BACKOFF_S_MAX))

    def _forget(self, worker: WorkerProcess) -> None:
        """It gets no more work."""
        if (timer := self._idle_timers.pop(worker, None)) is not None:
            timer.cancel()
        if worker is self.async_worker:
            self.async_worker = None
        elif worker in self.cpu_workers:
            self.cpu_workers.remove(worker)

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
