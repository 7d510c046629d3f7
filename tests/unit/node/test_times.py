"""Times of registrations, whatever the clock does."""

from node.service.times import rising


def test_time_goes_on_when_the_clock_is_set_back() -> None:
    clock = iter([1_000, 1_000, 5_000, 900, 950, 5_001, 9_000])
    tell = rising(lambda: next(clock))
    assert [tell() for _ in range(7)] == [1_000, 1_001, 5_000, 5_001, 5_002, 5_003, 9_000]
