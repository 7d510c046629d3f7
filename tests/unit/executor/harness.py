"""An executor with real worker processes, and conditions to wait for."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from consensus.state.commands import Outcome
from node.executor.executor import Executor
from node.executor.work import BranchInput, ExecutorSettings, LiveUpdate, Work
from node.rituals.registry import Registry, load_declaration
from storage.ids import NodeId, SessionId
from tests.unit.executor import behaving, misbehaving

SESSION = SessionId("00000000-0000-4000-8000-000000000001")
DEADLINE_S = 30.0


def registry() -> Registry:
    """The built-in rituals and those of this folder."""
    definitions = {
        name: load_declaration(name, f"{module.__name__}:{name}", "test")
        for module in (behaving, misbehaving)
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
    }
    return Registry({**Registry.load(entry_points=False), **definitions})


class Bench:
    """What came out of the executor so far."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.outcomes: list[Outcome] = []
        self.live: list[LiveUpdate] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._changed = asyncio.Event()
        self._next_index = 0

    def submit(
        self,
        ritual: str,
        task: str = "",
        *,
        timeout_s: float = 60.0,
        inputs: list[BranchInput] | None = None,
        inputs_trimmed: bool = False,
        attempt: int = 1,
        index: int | None = None,
        **parameters: Any,
    ) -> Work:
        if index is None:
            index = self._next_index
            self._next_index += 1
        work = Work(
            session_id=SESSION,
            branch_index=index,
            attempt=attempt,
            ritual=ritual,
            task=task,
            parameters=parameters,
            seed=42,
            timeout_ms=round(timeout_s * 1000),
            thought="why?",
            inputs=inputs,
            inputs_trimmed=inputs_trimmed,
        )
        self.executor.submit(work)
        return work

    async def run(self, ritual: str, task: str = "", **options: Any) -> Outcome:
        """Submit and wait for its outcome."""
        work = self.submit(ritual, task, **options)
        await self.until(lambda: self.of(work) is not None)
        outcome = self.of(work)
        assert outcome is not None
        return outcome

    def of(self, work: Work) -> Outcome | None:
        found = [o for o in self.outcomes if (o.branch_index, o.attempt) == (work.branch_index, work.attempt)]
        assert len(found) <= 1, "an attempt has one outcome"
        return found[0] if found else None

    def lines(self) -> list[str]:
        return [line for update in self.live for line in update.lines]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._changed.clear()
                with contextlib.suppress(TimeoutError):  # some conditions are about processes, which tell nobody
                    await asyncio.wait_for(self._changed.wait(), 0.02)

    def on_outcome(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._changed.set()

    def on_live(self, update: LiveUpdate) -> None:
        self.live.append(update)
        self._changed.set()

    def on_event(self, event: str, fields: dict[str, Any]) -> None:
        self.events.append((event, fields))
        self._changed.set()

    def worker_pids(self) -> list[int]:
        return [worker.pid for worker in self.executor.statistics().workers]

    def async_pid_or_none(self) -> int | None:
        pids = [worker.pid for worker in self.executor.statistics().workers if worker.kind == "async"]
        return pids[0] if pids else None

    def async_pid(self) -> int:
        pid = self.async_pid_or_none()
        assert pid is not None
        return pid


def known_patterns(phrases: list[str]) -> dict[str, int]:
    return {phrase: 3 if phrase == "known" else 0 for phrase in phrases}


async def asked_for_patterns(phrases: list[str]) -> dict[str, int]:
    """As on a node that must ask another one."""
    await asyncio.sleep(0)
    return known_patterns(phrases)


@contextlib.asynccontextmanager
async def running(
    directory: Path, *, lookup: Any = known_patterns, is_warm: bool = True, **settings: Any
) -> AsyncIterator[Bench]:
    """A started executor; at the end no worker process is left."""
    bench: Bench
    options = {"slots": 2, "scratch_directory": directory / "scratch", "prewarm_cpu": False, **settings}
    executor = Executor(
        ExecutorSettings(node_id=NodeId("node-a"), **options),
        registry(),
        lambda outcome: bench.on_outcome(outcome),
        lambda update: bench.on_live(update),
        lookup_patterns=lookup,
        on_event=lambda event, fields: bench.on_event(event, fields),
    )
    bench = Bench(executor)
    await executor.start(is_warm=is_warm)
    seen: set[int] = set()
    try:
        yield bench
        seen.update(bench.worker_pids())
    finally:
        await executor.stop()
        seen.update(fields["pid"] for event, fields in bench.events if event == "worker_started")
    assert not [pid for pid in seen if is_alive(pid)]
    assert not (directory / "scratch").exists()


def drive(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test with asyncio's own checks on."""
    asyncio.run(test(), debug=False)


async def wait_for(condition: Callable[[], bool]) -> None:
    """For conditions about processes, which tell nobody."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """False for a process that is gone or only waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def python() -> str:
    return sys.executable


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[3])
    return {**os.environ, "PYTHONPATH": root}
