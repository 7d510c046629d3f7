"""Time and chance as everything in the virtual mesh sees them, while its loop runs."""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import structlog

from node.testing.virtual.loop import CURRENT, Life, LoopClock

EPOCH_S = 1_800_000_000.0
"""The wall clocks' time when the virtual clock stands at 0."""


@contextlib.contextmanager
def virtual_time(
    clock: LoopClock,
    wall_s: Callable[[Life | None], float],
    random_bytes: Callable[[int], bytes],
    on_log: Callable[[Life | None, str, Mapping[str, Any]], None] | None = None,
) -> Iterator[None]:
    """While it lasts `time` and `os.urandom` are those of the virtual mesh. `wall_s` is by how much the wall clock of a
    process is wrong. `on_log(life, level, event)` gets what is logged; without it nobody logs."""
    logging = structlog.get_config()

    def monotonic() -> float:
        return clock.now

    def wall() -> float:
        return EPOCH_S + clock.now + wall_s(CURRENT.get())

    def wall_ns() -> int:
        return int(wall() * 1e9)

    class Dice(random.Random):
        """Drawn of the seed where the system would give one."""

        def __init__(self, seed: Any = None) -> None:
            super().__init__(int.from_bytes(random_bytes(8)) if seed is None else seed)

    def note(logger: object, level: str, event: Any) -> Any:
        if on_log is not None:
            on_log(CURRENT.get(), level, event)
        raise structlog.DropEvent

    structlog.configure(
        processors=[note],
        wrapper_class=structlog.make_filtering_bound_logger(50 if on_log is None else 20),
        cache_logger_on_first_use=False,
    )
    try:
        with (
            mock.patch.object(time, "monotonic", monotonic),
            mock.patch.object(time, "perf_counter", monotonic),
            mock.patch.object(time, "time", wall),
            mock.patch.object(time, "time_ns", wall_ns),
            mock.patch.object(os, "urandom", random_bytes),
            mock.patch.object(random, "_urandom", random_bytes),
            mock.patch.object(random, "Random", Dice),
        ):
            yield
    finally:
        structlog.configure(**logging)
