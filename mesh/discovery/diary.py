"""What discovery did and why, for people: a bounded list of facts, newest last; repeats are counted, not repeated."""

from collections import deque
from dataclasses import dataclass

from mesh.limits import DIARY_ENTRIES_MAX


@dataclass(slots=True)
class DiaryEntry:
    """One fact. `times` counts how often it happened in a row; `at_ms` is the last time (Unix milliseconds)."""

    at_ms: int
    source: str
    interface: str
    event: str
    detail: str
    times: int = 1


class Diary:
    """Pure: the time is an argument."""

    def __init__(self) -> None:
        self._entries: deque[DiaryEntry] = deque(maxlen=DIARY_ENTRIES_MAX)

    def note(self, at_ms: int, source: str, event: str, detail: str, interface: str = "") -> None:
        """Write down that `source` (zeroconf, seeds, remembered) had `event` (announced, heard, ignored, ...)."""
        for entry in reversed(self._entries):
            if (entry.source, entry.interface, entry.event, entry.detail) == (source, interface, event, detail):
                entry.times += 1
                entry.at_ms = at_ms
                return
        self._entries.append(DiaryEntry(at_ms, source, interface, event, detail))

    def entries(self) -> list[DiaryEntry]:
        return list(self._entries)
