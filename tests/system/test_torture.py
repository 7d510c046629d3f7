"""A short torture: what `scripts/torture` does for longer."""

from pathlib import Path

from tests.torture.report import Settings, text_of
from tests.torture.torture import torture


def test_half_a_minute_of_faults(tmp_path: Path) -> None:
    report = torture(Settings(duration_s=28.0, seed=1718, every_s=4.0), tmp_path, print)
    print(text_of(report))
    assert report.is_good, text_of(report)
    assert len(report.faults) >= 6
    assert report.counts["acknowledged writes"] > 20
    assert report.counts["events"] > 100
