"""What a torture reports, for machines and for people."""

import contextlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from node.testing import LocalMesh
from tests.torture.faults import Happened
from tests.torture.judgement import WITHIN_S, Availability


@dataclass(frozen=True, slots=True)
class Settings:
    duration_s: float
    seed: int
    nodes: int = 3
    every_s: float = 20.0
    writers: int = 4
    readers: int = 3
    kinds: tuple[str, ...] = ()
    """Faults to draw from; empty: all that are possible here."""


@dataclass(slots=True)
class Report:
    settings: Settings
    faults: list[Happened]
    skipped: dict[str, str]
    counts: dict[str, int]
    availability: Availability
    sessions: dict[str, int]
    violations: list[str]
    gave_up: list[str]
    unexpected: dict[str, int]
    logged_errors: dict[str, int]
    folder: str

    @property
    def is_good(self) -> bool:
        return not (self.violations or self.gave_up or self.unexpected)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "is_good": self.is_good, "available_share": self.availability.share}


def logged_errors(mesh: LocalMesh) -> dict[str, int]:
    """Events of level error in the daemons' logs, and how often."""
    found: Counter[str] = Counter()
    for daemon in mesh.daemons.values():
        for line in daemon.log_text().splitlines():
            if '"level":"error"' in line:
                with contextlib.suppress(ValueError):
                    found[str(json.loads(line).get("event"))] += 1
            elif line.startswith("Traceback"):
                found["traceback"] += 1
    return dict(found)


def text_of(report: Report) -> str:
    """For a person."""
    settings, counts, available = report.settings, report.counts, report.availability
    lines = [
        f"torture of {settings.duration_s / 60:g} minutes, {settings.nodes} nodes, a fault every "
        f"{settings.every_s:g} s, seed {settings.seed}",
        f"  faults       {len(report.faults)}: {listed(Counter(fault.planned.kind for fault in report.faults))}",
        *[f"  skipped      {kind}: {reason}" for kind, reason in report.skipped.items()],
        f"  operations   {counts.get('writes', 0):,} writes ({counts['acknowledged writes']:,} acknowledged, "
        f"{counts.get('unknown', 0):,} of unknown outcome), {counts.get('reads', 0):,} linearizable reads, "
        f"{counts.get('weaker reads', 0):,} stale ones and of the leader",
        f"  sessions     {listed(report.sessions)}; attempts {counts['attempts']:,}, of which repeated "
        f"{counts['attempts repeated']:,}",
        f"  events       {counts['events']:,}, the same in {settings.nodes + 1} streams that were resumed "
        f"{counts['streams resumed']:,} times",
        f"  available    {100 * available.share:.2f} % of {available.counted_s:.0f} s with a majority up "
        f"(a write acknowledged within 1 s); longest gap {available.longest_gap_s:.2f} s",
        *[f"    {length:.2f} s at {at_s:.1f} s: {during(report, at_s)}" for at_s, length in long_gaps(report)],
        f"  checked      {counts['checked operations']:,} operations on {counts['checked sessions']:,} sessions",
        f"  violations   {len(report.violations)}",
    ]  # fmt: skip
    lines += [f"\nVIOLATION {violation}" for violation in report.violations[:20]]
    lines += [f"\nNOT DECIDED {words}" for words in report.gave_up[:20]]
    lines += [f"\nUNEXPECTED {count} times: {words}" for words, count in list(report.unexpected.items())[:20]]
    if report.logged_errors:
        lines.append(f"  errors in the daemons' logs: {listed(report.logged_errors)}")
    return "\n".join(lines)


def long_gaps(report: Report) -> list[tuple[float, float]]:
    return [(at_s, length) for at_s, length in report.availability.gaps if length > WITHIN_S][:10]


def during(report: Report, at_s: float) -> str:
    """The faults that had begun last at that time."""
    begun = [fault for fault in report.faults if fault.from_s <= at_s + WITHIN_S]
    return " and ".join(str(fault) for fault in begun if fault.from_s == begun[-1].from_s) or "before the first fault"


def listed(counts: dict[str, int] | Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
