"""Judges a torture from what was recorded: availability, and everything that counts as a violation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from consensus.journal import TABLES as JOURNAL_TABLES
from consensus.state import tables
from storage.environment import Environment
from tests.torture.history import History, going_back
from tests.torture.linearizability import Operation, check
from tests.torture.session_model import SessionModel

WITHIN_S = 1.0
"""A moment counts as available if a write is acknowledged within this after it."""

EXCERPT_MAX = 30
GAPS_NAMED = 100

COMPARED = tuple(name for name in tables.DIGESTED if name not in (tables.MEMBERS, tables.EVENTS))
"""Replicated tables that nothing changes once every session has ended."""


@dataclass(slots=True)
class Availability:
    """`available_s` of `counted_s`, the time in which a majority was up. `gaps` are the longest times between two
    acknowledged writes: seconds after the begin, length."""

    counted_s: float
    available_s: float
    gaps: list[tuple[float, float]]

    @property
    def longest_gap_s(self) -> float:
        return self.gaps[0][1] if self.gaps else 0.0

    @property
    def share(self) -> float:
        return self.available_s / self.counted_s if self.counted_s else 1.0


def availability(
    acknowledged_at: Sequence[float],
    begin: float,
    end: float,
    without_majority: Sequence[tuple[float, float]],
    within_s: float = WITHIN_S,
) -> Availability:
    """Of the time from `begin` to `end`, without the times in which no majority was up. Of a gap between two
    acknowledged writes all but its last `within_s` was unavailable; where a gap overlaps a time without majority it
    counts from the end of that time."""
    times = sorted(at for at in acknowledged_at if begin <= at <= end)
    excluded = sorted((max(start, begin), min(stop, end)) for start, stop in without_majority if stop > begin)
    counted_s = end - begin - sum(max(0.0, stop - start) for start, stop in excluded)
    gaps = [
        (start - begin, stop - start)
        for earlier, later in zip([begin, *times], [*times, end], strict=True)
        for start, stop in without(earlier, later, excluded)
    ]
    missing_s = sum(max(0.0, length - within_s) for _, length in gaps)
    longest = sorted(gaps, key=lambda gap: gap[1], reverse=True)[:GAPS_NAMED]
    return Availability(counted_s, counted_s - missing_s, longest)


def without(start: float, stop: float, excluded: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """What is left of an interval."""
    parts = []
    for from_, to in excluded:
        if to <= start or from_ >= stop:
            continue
        parts.append((start, from_))
        start = max(start, to)
    parts.append((start, stop))
    return [(from_, to) for from_, to in parts if to > from_]


@dataclass(slots=True)
class Linearizability:
    objects: int = 0
    operations: int = 0
    violations: list[str] = field(default_factory=list)
    gave_up: list[str] = field(default_factory=list)


def judge_operations(history: History) -> Linearizability:
    """Each session's history by itself."""
    result = Linearizability()
    for key, operations in sorted(history.operations.items()):
        result.objects += 1
        result.operations += len(operations)
        verdict = check(SessionModel(), operations)
        if verdict.word == "gave_up":
            result.gave_up.append(f"session {key}: too many ways to explain {len(operations)} operations")
        elif not verdict.is_pass:
            states = ", ".join(str(state) for state in verdict.states[:4])
            result.violations.append(
                f"session {key} is not linearizable: nothing explains\n    {verdict.culprit}\n"
                f"  where the session could only be: {states}\n{excerpt(operations, verdict.culprit)}"
            )
    return result


def excerpt(operations: Sequence[Operation], culprit: Operation | None) -> str:
    """The history around the answer that cannot be explained."""
    ordered = sorted(operations, key=lambda operation: operation.call)
    if culprit is not None:
        until = culprit.back if culprit.back is not None else culprit.call
        ordered = [operation for operation in ordered if operation.call <= until]
    lines = [f"  {'>' if operation is culprit else ' '} {operation}" for operation in ordered[-EXCERPT_MAX:]]
    return "\n".join(lines)


def judge_indexes(history: History) -> list[str]:
    """Answers that show an earlier index than one that was there before they were asked for."""
    return [
        f"an answer of {later.node} ({'linearizable' if later.is_fresh else 'stale'}, {later.call:.4f} - "
        f"{later.back:.4f}) is as of {later.index}, but at {earlier.back:.4f} {earlier.node} had answered as of "
        f"{earlier.index}"
        for earlier, later in going_back(history.glimpses)
    ]


def table_digests(data_dir: Path) -> dict[str, tuple[int, str]]:
    """Of a node that does not run: table -> rows, digest of all of them, read from its files."""
    found = {}
    environment = Environment.open(data_dir / "consensus", (*JOURNAL_TABLES, *tables.TABLES))
    try:
        with environment.read() as txn:
            for name in COMPARED:
                digest, rows = blake2b(digest_size=16), 0
                for key, value in txn.scan(name):
                    digest.update(len(key).to_bytes(4, "big") + key + len(value).to_bytes(4, "big") + value)
                    rows += 1
                found[name] = (rows, digest.hexdigest())
    finally:
        environment.close()
    return found


def judge_tables(digests: dict[str, dict[str, tuple[int, str]]]) -> list[str]:
    """Node -> its tables. All must hold the same."""
    found = []
    for name in COMPARED:
        values = {node: by_table[name] for node, by_table in digests.items()}
        if len(set(values.values())) > 1:
            found.append(f"the table {name} differs: {values}")
    return found
