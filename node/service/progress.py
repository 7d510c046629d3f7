"""Says when this replica last applied something: readiness is progress, not state.

A replica that answers and looks healthy may still be cut off; what it has applied lately cannot lie. The time of the
observation is this process's own monotonic clock, so that clocks of other nodes do not matter.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

LOOK_PERIOD_S: Final = 1.0
"""The resolution of `age_s` when nobody asks; one comparison of two integers a second."""


class ProgressClock:
    """`note` when something was applied for sure; what is told by the index alone is found by looking. The first index
    seen is what a former life had applied: history, not progress."""

    def __init__(self, applied_index: Callable[[], int], clock: Callable[[], float] | None = None) -> None:
        self._applied_index = applied_index
        self._clock = clock or time.monotonic  # looked up now: a mesh under test may have a clock of its own
        self._index = applied_index()
        self._at: float | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="progress-clock")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def note(self) -> None:
        self._at = self._clock()

    def look(self) -> None:
        index = self._applied_index()
        if index > self._index > 0:
            self._at = self._clock()
        self._index = index

    def age_s(self) -> float | None:
        """Seconds since something was last seen to be applied; None: not since the start."""
        self.look()
        return None if self._at is None else self._clock() - self._at

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_PERIOD_S)
            self.look()
