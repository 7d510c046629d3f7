"""Figures are told with their spread, and what a processor limits beside the reference of the same call."""

from scripts.bench import reference
from scripts.bench.report import Figure, markdown

THERE = reference.ROUND_TRIPS_THERE


def cells(figure: Figure, round_trips_s: float) -> list[str]:
    return markdown([figure], round_trips_s).splitlines()[2].strip("| ").split(" | ")


def test_a_rate_is_told_for_each_round_trip_and_a_time_in_round_trips() -> None:
    rate = Figure("branches", "/s", "4,100", [900.0, 1_000.0, 1_300.0], "quiet", is_work=True)
    assert cells(rate, 5_000) == ["branches", "1,000 /s", "900 - 1,300", "3", "4,100", "0.2, to reach 0.1", "quiet"]
    time = Figure("a session", "ms", "5", [10.0], "quiet", is_work=True)
    assert cells(time, 5_000)[5] == f"50, to reach {5 * THERE / 1000:.0f}"


def test_a_machine_as_fast_as_the_one_of_the_reach_compares_as_it_stands() -> None:
    figure = Figure("commits", "/s", "2,000", [2_000.0], "quiet", is_work=True)
    here, _, there = cells(figure, THERE)[5].partition(", to reach ")
    assert here == there


def test_what_is_no_work_or_has_no_reach_is_not_compared() -> None:
    assert cells(Figure("waits", "s", "1.02", [1.01], "-"), 5_000)[5] == ""
    assert cells(Figure("reads", "/s", "", [100.0], "-", is_work=True), 5_000)[4:6] == ["", "0.02"]
    assert len(markdown([Figure("not measured", "s", "1")], 5_000).splitlines()) == 2


def test_the_reference_decodes_what_it_encodes() -> None:
    encoded: list[bytes] = []
    reference._encode(reference.DOCUMENT, encoded)
    data = b"".join(encoded)
    assert reference._decode(data, 0) == (reference.DOCUMENT, len(data))
