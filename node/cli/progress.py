"""The progress of a session as one line: redrawn on a terminal, a new line every few seconds elsewhere.

`describe` and `Rate` are pure (`now_s` is an argument); `ProgressLine` writes.
"""

import shutil
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from node.cli import render

RATE_WINDOW_S = 15.0
"""The rate looks back this far: long enough to be calm, short enough to notice a lost node."""

LINE_PERIOD_S = 3.0
"""Between lines where the output is no terminal."""

REDRAW_S = 0.1
BAR_CELLS = 24


@dataclass(frozen=True, slots=True)
class Counts:
    """Of a session's branches."""

    status: str
    total: int
    completed: int
    failed: int
    cancelled: int
    processing: int

    @classmethod
    def of(cls, session: Mapping[str, Any]) -> "Counts":
        """From a session as the HTTP interface gives it."""
        counts = session.get("branches") if isinstance(session.get("branches"), dict) else session
        assert counts is not None
        return cls(
            status=str(session.get("status", "pending")),
            total=int(session.get("total_branches") or counts.get("total") or 0),
            **{name: int(counts.get(name) or 0) for name in ("completed", "failed", "cancelled", "processing")},
        )

    @property
    def done(self) -> int:
        # The consolidation is counted with the branches of a session while it executes.
        return min(self.total, self.completed + self.failed + self.cancelled)


class Rate:
    """Branches per second over the last `RATE_WINDOW_S`."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, done: int) -> None:
        self._points.append((now_s, done))
        while len(self._points) > 2 and self._points[1][0] <= now_s - RATE_WINDOW_S:
            self._points.popleft()

    @property
    def per_second(self) -> float | None:
        """None until it can be said."""
        if len(self._points) < 2:
            return None
        (start_s, first), (end_s, last) = self._points[0], self._points[-1]
        return (last - first) / (end_s - start_s) if end_s > start_s and last > first else None


def describe(counts: Counts, rate: float | None, columns: int, elapsed_s: float) -> str:
    """`[########----------------] 33/100  8 running  2 failed  12.4/s  5.4 s left`, cut to the terminal."""
    done, total = counts.done, counts.total
    filled = BAR_CELLS * done // total if total else 0
    parts = [f"[{'#' * filled}{'-' * (BAR_CELLS - filled)}] {done}/{total}"]
    if counts.status in ("pending", "processing"):
        parts.append("consolidating" if total and done >= total else f"{counts.processing} running")
    else:
        parts.append(counts.status)
    if counts.failed:
        parts.append(f"{counts.failed} failed")
    if rate is not None:
        parts.append(f"{rate:.1f}/s")
        if total > done:
            parts.append(f"{render.duration((total - done) / rate * 1000)} left")
    parts.append(render.duration(elapsed_s * 1000))
    return "  ".join(parts)[: max(columns - 1, 20)]


class ProgressLine:
    """Shows counts on a stream. Call `show` as often as you like, `finish` once."""

    def __init__(self, stream: TextIO, started_s: float) -> None:
        self._stream = stream
        self._is_terminal = render.can_redraw(stream)
        self._started_s = started_s
        self._shown_s = float("-inf")
        self._rate = Rate()

    def show(self, counts: Counts, now_s: float) -> None:
        self._rate.add(now_s, counts.done)
        if now_s - self._shown_s < (REDRAW_S if self._is_terminal else LINE_PERIOD_S):
            return
        self._write(counts, now_s)

    def finish(self, counts: Counts, now_s: float) -> None:
        self._rate.add(now_s, counts.done)
        self._write(counts, now_s)
        if self._is_terminal:
            self._stream.write("\n")
            self._stream.flush()

    def _write(self, counts: Counts, now_s: float) -> None:
        columns = shutil.get_terminal_size((100, 24)).columns if self._is_terminal else 200
        text = describe(counts, self._rate.per_second, columns, now_s - self._started_s)
        self._shown_s = now_s
        self._stream.write(f"\r\x1b[K{text}" if self._is_terminal else f"{text}\n")
        self._stream.flush()
