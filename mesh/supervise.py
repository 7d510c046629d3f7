"""Owns tasks whose number is not known beforehand: none is fire-and-forget, none outlives `close()`."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol


class Logger(Protocol):
    """What the mesh needs of a structlog logger: constant event, facts as fields."""

    def debug(self, event: str, **fields: Any) -> Any: ...
    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...


class Supervisor:
    """A set of tasks with one owner. Unlike a TaskGroup one failure does not end the others: a peer that trips a bug
    must not take the mesh down. A failure is logged once, with its traceback, as an error."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any] | None:
        """Run `work` until it ends or `close()`. Returns None (and discards the work) when already closed."""
        if self._is_closed:
            work.close()
            return None
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def close(self) -> None:
        """Cancel everything and wait until all of it has ended."""
        self._is_closed = True
        current = asyncio.current_task()
        while tasks := [task for task in self._tasks if task is not current]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("task_failed", task=task.get_name(), exc_info=error)
