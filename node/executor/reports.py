"""Progress, log lines and captured output of rituals, on their way to the daemon.

Bounded and coalesced in the worker: of many reports in one interval the last progress and the last lines leave. A
ritual that prints in a tight loop costs itself time, never the daemon.
"""

from __future__ import annotations

import io
import math
import sys
import threading
from collections.abc import Callable
from typing import Any

from node.executor import protocol
from node.executor.limits import LINE_CHARS_MAX, LIVE_LINES_MAX, LOG_LINES_MAX


class Reports:
    """What is waiting to be sent, by attempt. Safe from any thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.RLock()  # a signal handler or a finaliser may print while we hold it
        self._pending: dict[int, list[Any]] = {}  # key -> [fraction, message, lines, dropped]
        self._lines: dict[int, int] = {}  # key -> lines logged so far

    def progress(self, key: int, fraction: float | None, message: str) -> None:
        if fraction is not None:
            fraction = float(fraction)
            fraction = min(1.0, max(0.0, fraction)) if math.isfinite(fraction) else None
        with self._lock:
            entry = self._entry(key)
            entry[0] = fraction
            entry[1] = _one_line(message)
        self._wake()

    def log(self, key: int, text: str) -> None:
        with self._lock:
            for line in str(text).splitlines():
                count = self._lines[key] = self._lines.get(key, 0) + 1
                if count > LOG_LINES_MAX + 1:
                    return
                entry = self._entry(key)
                lines = entry[2]
                if count == LOG_LINES_MAX + 1:
                    line = f"further lines are dropped: {LOG_LINES_MAX} are allowed"
                lines.append(_one_line(line))
                if len(lines) > LIVE_LINES_MAX:
                    del lines[0]
                    entry[3] += 1
        self._wake()

    def take(self, key: int) -> list[list[Any]]:
        """The last message of an attempt that has ended."""
        with self._lock:
            self._lines.pop(key, None)
            entry = self._pending.pop(key, None)
        return [] if entry is None else [_live(key, entry)]

    def take_all(self) -> list[list[Any]]:
        """The messages to send now."""
        with self._lock:
            taken, self._pending = self._pending, {}
        return [_live(key, entry) for key, entry in taken.items()]

    def is_waiting(self) -> bool:
        return bool(self._pending)

    def is_full(self, key: int) -> bool:
        """True if further lines of this attempt would be dropped."""
        return self._lines.get(key, 0) > LOG_LINES_MAX

    def _entry(self, key: int) -> list[Any]:
        entry = self._pending.get(key)
        if entry is None:
            entry = self._pending[key] = [None, "", [], 0]
        return entry


class OutputLines(io.TextIOBase):
    """Stands in for sys.stdout and sys.stderr: what a ritual prints becomes lines of its log.

    Standard error is also passed on to the real one, whose tail is the evidence if the process dies.
    """

    encoding = "utf-8"

    def __init__(self, reports: Reports, current: Callable[[], int], tail: Any | None) -> None:
        self._reports = reports
        self._current = current
        self._tail = tail
        self._partial = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        key = self._current()
        if self._tail is not None and not (key >= 0 and self._reports.is_full(key)):
            self._tail.write(text)
            self._tail.flush()
        head, newline, rest = text.rpartition("\n")
        if newline:
            if key >= 0:
                self._reports.log(key, self._partial + head)
            self._partial = rest
        else:
            self._partial += rest
        self._partial = self._partial[-LINE_CHARS_MAX:]
        return len(text)

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        return 2  # for `subprocess` and `faulthandler`: the pipe whose tail is kept


def capture_output(reports: Reports, current: Callable[[], int]) -> None:
    """Route what Python code prints to the log of the ritual that is executing; `current` says which, -1 for none."""
    sys.stdout = OutputLines(reports, current, None)
    sys.stderr = OutputLines(reports, current, sys.__stderr__)


def _one_line(text: object) -> str:
    line = " ".join(str(text).split("\n"))
    if len(line) > LINE_CHARS_MAX:
        line = line[: LINE_CHARS_MAX - 1] + "…"
    return line.encode("utf-8", "replace").decode()


def _live(key: int, entry: list[Any]) -> list[Any]:
    fraction, message, lines, dropped = entry
    if dropped:
        lines = [f"({dropped} lines dropped)", *lines]
    return [protocol.LIVE, key, fraction, message, lines]
