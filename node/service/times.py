"""Points in time: now, and as clients see them."""

import time
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = "9999-12-31T23:59:59.999Z"


def iso(ms: int | None) -> str | None:
    """Milliseconds since the epoch as `2026-01-31T12:00:00.000Z`."""
    if ms is None:
        return None
    try:
        moment = _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        return _LAST
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now_ms() -> int:
    """UTC, for times that people and other machines see."""
    return time.time_ns() // 1_000_000
