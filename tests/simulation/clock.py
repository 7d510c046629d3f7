"""A clock that stands still while anything is done, and then jumps to the next thing to do."""

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """Things due at the same time are done in the order in which they were planned."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now
        self._planned: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, delay_s: float, do: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._planned, (self.now + delay_s, self._count, do, arguments))

    def run_for(self, seconds: float) -> None:
        stop, planned = self.now + seconds, self._planned
        while planned and planned[0][0] <= stop:
            self.now, _, do, arguments = heapq.heappop(planned)
            do(*arguments)
        self.now = stop
