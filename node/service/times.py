"""Points in time: now, and as clients see them."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = "9999-12-31T23:59:59.999Z"


def iso(ms: int | None) -> str | None:
    """Milliseconds since the epoch as `2026-01-31T12:00:00.000Z`."""
    if ms is None:
        return None
    second, rest = divmod(ms, 1000)
    try:
        return f"{_second(second)}.{rest:03d}Z"
    except OverflowError:
        return _LAST


@lru_cache(maxsize=1024)
def _second(since_epoch: int) -> str:
    """Rows of one page, and those that are asked for at a time, share most of their seconds."""
    return (_EPOCH + timedelta(seconds=since_epoch)).isoformat(timespec="seconds").removesuffix("+00:00")


def now_ms() -> int:
    """UTC, for times that people and other machines see."""
    return time.time_ns() // 1_000_000


def rising(clock: Callable[[], int]) -> Callable[[], int]:
    """That clock, but never the same time twice, nor an earlier one when it is set back."""
    last = 0

    def tell() -> int:
        nonlocal last
        last = max(last + 1, clock())
        return last

    return tell
