"""What clients saw, kept for the judgement. Safe for threads."""

import threading
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.torture.linearizability import Operation


@dataclass(frozen=True, slots=True)
class Glimpse:
    """An answer showed the mesh as of this index. `is_fresh`: it promised everything that was answered anywhere before
    the call; otherwise what this node had answered before."""

    call: float
    back: float
    index: int
    node: str
    is_fresh: bool


class History:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.operations: dict[str, list[Operation]] = defaultdict(list)
        """Session id -> what was done to it."""
        self.glimpses: list[Glimpse] = []
        self.acknowledged_at: list[float] = []
        """When writes were acknowledged."""
        self.counts: Counter[str] = Counter()
        """Operations by kind, `unknown` those of them whose outcome is not known."""
        self.surprises: Counter[str] = Counter()
        """Answers that no fault explains, in words."""
        self.submit_index: dict[str, int] = {}

    def note(self, key: str, operation: Operation, *, is_write: bool) -> None:
        with self._lock:
            self.operations[key].append(operation)
            self.counts["writes" if is_write else "reads"] += 1
            if operation.back is None:
                self.counts["unknown"] += 1
            elif is_write:
                self.acknowledged_at.append(operation.back)

    def note_glimpse(self, glimpse: Glimpse) -> None:
        with self._lock:
            self.glimpses.append(glimpse)

    def note_surprise(self, words: str) -> None:
        with self._lock:
            self.surprises[words] += 1

    def count(self, kind: str) -> None:
        with self._lock:
            self.counts[kind] += 1

    def note_submit_index(self, key: str, index: int) -> None:
        with self._lock:
            self.submit_index[key] = index

    def known_after(self, index: int) -> list[str]:
        """Sessions that were submitted after this index, as far as somebody knows."""
        with self._lock:
            return [key for key, submitted in self.submit_index.items() if submitted > index]

    def write(self, path: Path) -> None:
        """All operations, one session a paragraph, for whoever looks into a violation."""
        with self._lock, path.open("w", encoding="utf-8") as file:
            for key, operations in self.operations.items():
                file.write(f"{key}\n" + "".join(f"  {operation}\n" for operation in operations) + "\n")


def going_back(glimpses: Sequence[Glimpse]) -> list[tuple[Glimpse, Glimpse]]:
    """Pairs of an answer and one that was asked for afterwards and shows an earlier index, against its promise."""
    found = backward(glimpses, [glimpse for glimpse in glimpses if glimpse.is_fresh])
    by_node: dict[Hashable, list[Glimpse]] = defaultdict(list)
    for glimpse in glimpses:
        by_node[glimpse.node].append(glimpse)
    for seen_there in by_node.values():
        found += backward(seen_there, [glimpse for glimpse in seen_there if not glimpse.is_fresh])
    return found


def backward(earlier: Iterable[Glimpse], later: Iterable[Glimpse]) -> list[tuple[Glimpse, Glimpse]]:
    """For each of `later` the newest state shown by an answer of `earlier` that was there before it was asked for."""
    returns = sorted(earlier, key=lambda glimpse: glimpse.back)
    position, newest = 0, None
    found = []
    for glimpse in sorted(later, key=lambda glimpse: glimpse.call):
        while position < len(returns) and returns[position].back < glimpse.call:
            if newest is None or returns[position].index > newest.index:
                newest = returns[position]
            position += 1
        if newest is not None and newest.index > glimpse.index:
            found.append((newest, glimpse))
    return found
