"""Futures that wait, each with an end: for the outcome of something, for an index, for the leader's word.

All of it belongs to the loop.
"""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from consensus.errors import Unavailable
from consensus.limits import READS_WAITING_MAX
from consensus.steps import Resolved

News = TypeVar("News")

_SWEEP_S = 0.05
"""How late a deadline may be noticed."""


class Deadlines:
    """One timer for all: a timer each would cost as much as what is waited for."""

    def __init__(self, on_expired: Callable[[], None]) -> None:
        """`on_expired` is told when some were not done in time."""
        self._on_expired = on_expired
        self._waiting: list[tuple[asyncio.Future[Any], float]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, future: "asyncio.Future[Any]", until: float) -> None:
        """TimeoutError a little after `until` (loop time), if it is not done by then."""
        self._waiting.append((future, until))
        if self._timer is None:
            self._timer = future.get_loop().call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        expired = [future for future, until in self._waiting if until <= now and not future.done()]
        for future in expired:
            future.set_exception(TimeoutError())
        if expired:
            self._on_expired()
        self._waiting = [waiter for waiter in self._waiting if not waiter[0].done()]
        self._timer = loop.call_later(_SWEEP_S, self._sweep) if self._waiting else None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class IndexWaiters:
    """Who waits until something has been applied here."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, asyncio.Future[int]]] = []
        self._count = itertools.count()

    @property
    def lowest(self) -> int | None:
        return self._heap[0][0] if self._heap else None

    def add(self, index: int, future: "asyncio.Future[int]") -> None:
        """Its result will be `index`."""
        heapq.heappush(self._heap, (index, next(self._count), future))

    def release(self, applied_index: int) -> None:
        while self._heap and self._heap[0][0] <= applied_index:
            index, _, future = heapq.heappop(self._heap)
            if not future.done():
                future.set_result(index)

    def fail(self, error: Exception) -> None:
        waiting, self._heap = self._heap, []
        for _, _, future in waiting:
            if not future.done():
                future.set_exception(error)


class Batch:
    """Waits for the ends of several proposals as if they were one: the result of `future` are all, in order."""

    __slots__ = ("_missing", "_order", "_resolved", "future")

    def __init__(self, future: "asyncio.Future[list[Resolved]]", count: int) -> None:
        self.future = future
        self._missing = count
        self._order: list[int] = []
        self._resolved: dict[int, Resolved] = {}
        if not count:
            future.set_result([])

    def expect(self, token: int) -> None:
        self._order.append(token)

    def done(self) -> bool:
        return self.future.done()

    def set_result(self, resolved: Resolved) -> None:
        self._resolved[resolved.token] = resolved
        self._missing -= 1
        if not self._missing:
            self.future.set_result([self._resolved[token] for token in self._order])

    def set_exception(self, error: Exception) -> None:
        self.future.set_exception(error)


class SharedQuestion:
    """Many who wait for one answer. Those who come while a question is on its way share the next one, because an answer
    is worth nothing for what was asked after it was given."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[int | None]],
        answer: Callable[[int, "asyncio.Future[int]"], None],
        pause: Callable[[int], Awaitable[None]],
    ) -> None:
        """`ask` answers None if nobody could; `pause(n)` lets time pass after `n` such answers in a row."""
        self._ask = ask
        self._answer = answer
        self._pause = pause
        self._waiting: list[asyncio.Future[int]] = []
        self._asking: list[asyncio.Future[int]] = []
        """For whom the question that is on its way was asked."""
        self._task: asyncio.Task[None] | None = None

    def join(self, future: "asyncio.Future[int]") -> None:
        """Raises Unavailable `overloaded`."""
        if len(self._waiting) >= READS_WAITING_MAX:
            raise Unavailable("overloaded", f"{READS_WAITING_MAX} reads wait already; try again in a moment")
        self._waiting.append(future)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="reads")

    async def _run(self) -> None:
        failures = 0
        while self._waiting:
            self._asking, self._waiting = self._waiting, []
            index = await self._ask()
            asking, self._asking = self._asking, []
            if index is None:
                self._waiting = [future for future in asking if not future.done()] + self._waiting
                await self._pause(failures)
                failures += 1
                continue
            failures = 0
            for future in asking:
                if not future.done():
                    self._answer(index, future)

    def fail(self, error: Exception) -> None:
        """Everybody who waits gets `error`."""
        waiting, self._asking, self._waiting = self._asking + self._waiting, [], []
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def tell(watchers: list[Callable[[News], None]], news: News) -> None:
    """A watcher's fault is reported to the loop; it is not the fault of the others, nor of what is still to be told."""
    for watch in tuple(watchers):
        try:
            watch(news)
        except Exception as error:
            story = {"message": "a watcher of the replicated state failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(story)
