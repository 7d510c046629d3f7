"""Tells watchers what happened: an ordered, resumable stream of events, and wake-ups for those who wait for a session.

A watcher owns no queue of events that could overflow or lose one: it owns a cursor. The stored events are the one
source, live events only wake it, and it reads on from its cursor in pages. So the stream has no gap and no repeat by
construction, whatever its speed, and a slow watcher costs the node one page. Whoever is so slow that its cursor has
been pruned is told so (`events_gone`), and whoever does not read its socket is closed by its face.

Loop thread only.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from consensus.state.events import Numbered, SessionCancelled, SessionCompleted, SessionFailed
from node.service.errors import ServiceError
from storage.ids import SessionId

PAGE_EVENTS_MAX: Final = 64
"""Events read at once: reading and rendering them holds the loop thread for about a millisecond."""
WATCHERS_MAX: Final = 1_000
WAITERS_MAX: Final = 4_000

_TERMINAL: Final = (SessionCompleted, SessionFailed, SessionCancelled)

Cursor = tuple[int, int]
"""Index and position of the last event seen; the next one is the first after it in this order."""

WHOLE_INDEX: Final = 1 << 30
"""As a position: all events of that index have been seen."""

ReadPage = Callable[[Cursor, int], tuple[list[Numbered], Cursor]]
"""Events after a cursor, at most so many, in order, and the cursor after them (further on, if there was nothing more).
Raises `ServiceError` `events_gone` if some were pruned."""


@dataclass(frozen=True, slots=True)
class EventPage:
    events: list[Numbered]
    cursor: Cursor
    """Where to go on after this page."""


@dataclass(eq=False, slots=True)
class Waiter:
    """Woken when something about one session has happened."""

    only_terminal: bool
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class EventHub:
    """Feed it with `publish` (events in order, after they are durable); `close` ends every watcher and waiter."""

    def __init__(self, read_page: ReadPage) -> None:
        self._read_page = read_page
        self._watchers: set[asyncio.Event] = set()
        self._waiters: dict[SessionId, set[Waiter]] = {}
        self._waiter_count = 0
        self._is_closed = False
        self._has_news = True
        self.slow_count = 0

    @property
    def watcher_count(self) -> int:
        return len(self._watchers)

    @property
    def waiter_count(self) -> int:
        return self._waiter_count

    def publish(self, events: list[Numbered]) -> None:
        if not events:
            return
        for woken in self._watchers:
            woken.set()
        for numbered in events:
            session_id: SessionId | None = getattr(numbered.event, "session_id", None)
            if session_id is None or session_id not in self._waiters:
                continue
            is_terminal = isinstance(numbered.event, _TERMINAL)
            for waiter in self._waiters[session_id]:
                if is_terminal or not waiter.only_terminal:
                    waiter.woken.set()

    def wake_all(self) -> None:
        """After a possible loss of live events (a replica was reopened): everybody looks again."""
        for woken in self._watchers:
            woken.set()
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.woken.set()

    def close(self) -> None:
        self._is_closed = True
        self.wake_all()

    def end_watchers(self) -> None:
        """Nothing will happen here any more: watchers go elsewhere, waiters get what there is in the end."""
        self._has_news = False
        self.wake_all()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def check_room(self) -> None:
        """Raises `ServiceError` `overloaded` if there is no room for another watcher."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise ServiceError("overloaded", f"{WATCHERS_MAX:,} watchers are connected already.", "Ask another node.")

    def count_slow(self) -> None:
        """A watcher did not read what was written to it and was closed."""
        self.slow_count += 1

    @contextmanager
    def waiting(self, session_id: SessionId, *, only_terminal: bool) -> Iterator[Waiter]:
        """A waiter that is woken from now on: look at the session only after entering."""
        if self._waiter_count >= WAITERS_MAX:
            raise ServiceError(
                "overloaded", f"{WAITERS_MAX:,} requests wait already.", "Try again, or watch /v1/events."
            )
        waiter = Waiter(only_terminal)
        self._waiters.setdefault(session_id, set()).add(waiter)
        self._waiter_count += 1
        try:
            yield waiter
        finally:
            self._waiter_count -= 1
            waiters = self._waiters[session_id]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[session_id]

    async def watch(self, after: Cursor, idle_s: float) -> AsyncGenerator[EventPage, None]:
        """Pages of events after `after`, for ever, in order, each exactly once; an empty page when nothing happened for
        `idle_s`, so that the face can send a heartbeat. Ends when the hub is closed or nothing more will come.
        Raises `ServiceError`:
        `events_gone`, `overloaded`."""
        self.check_room()
        woken = asyncio.Event()
        self._watchers.add(woken)
        try:
            cursor = after
            while not self._is_closed and self._has_news:
                woken.clear()  # before reading: what is published from here on wakes again
                events, cursor = self._read_page(cursor, PAGE_EVENTS_MAX)
                if events:
                    yield EventPage(events, cursor)
                    await asyncio.sleep(0)  # a fast client far behind must not keep the loop to itself
                    continue
                try:
                    async with asyncio.timeout(idle_s):
                        await woken.wait()
                except TimeoutError:
                    yield EventPage([], cursor)
        finally:
            self._watchers.discard(woken)


def cursor_of(numbered: Numbered) -> Cursor:
    return (numbered.index, numbered.position)
