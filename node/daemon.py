"""What the daemons of all tiers have in common: they start whole or not at all, own their tasks, and fail as one."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Self

import structlog

from node.rituals.registry import Registry
from node.service.times import now_ms, rising

log = structlog.get_logger()


class BaseDaemon:
    """`async with`; what `_start` builds up is taken down through `_exits`. A subclass says how it stops."""

    registry: Registry

    def __init__(self) -> None:
        self._exits = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] | None = None
        self._is_stopping = False
        self._registered_at_ms = rising(now_ms)
        """Of two registrations of an instance the later one counts, also when the clock is set back between them."""
        self.withdrawn: str | None = None
        """Why this daemon takes part no more, though it still answers."""

    async def __aenter__(self) -> Self:
        self._failure = asyncio.get_running_loop().create_future()
        try:
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise
        for problem in self.registry.problems:
            log.warning("ritual_not_offered", ritual=problem.name, source=problem.source, reason=problem.reason)
        return self

    async def _start(self) -> None:
        raise NotImplementedError

    async def wait_failed(self) -> None:
        """Raises when something failed that this daemon cannot go on without."""
        assert self._failure is not None
        await asyncio.shield(self._failure)

    def own(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """A task that must not end with an error: if it does, the daemon fails rather than limps."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    async def _end_tasks(self) -> None:
        """All but the one that asks for it."""
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fail(self, error: BaseException) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)
