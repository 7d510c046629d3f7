"""The plan of faults, and the clock that can be stepped."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.torture.faults import ALONE, HANDS, plan
from tests.torture.shifted_clock import set_offset

ROOT = Path(__file__).resolve().parents[3]


def test_the_same_seed_plans_the_same() -> None:
    assert plan(7, 600, 20, 3, HANDS) == plan(7, 600, 20, 3, HANDS)
    assert plan(7, 600, 20, 3, HANDS) != plan(8, 600, 20, 3, HANDS)
    assert plan(7, 600, 20, 3, sorted(HANDS)) == plan(7, 600, 20, 3, sorted(HANDS, reverse=True))


@pytest.mark.parametrize("seed", range(20))
def test_faults_come_one_after_another_and_are_over_in_time(seed: int) -> None:
    drawn = plan(seed, 1800, 20, 5, HANDS)
    starts = sorted({fault.at_s for fault in drawn})
    assert len(starts) == 90
    for start, following in zip(starts, [*starts[1:], 1800], strict=True):
        together = [fault for fault in drawn if fault.at_s == start]
        assert len({fault.who for fault in together}) == 1
        assert len(together) == 1 or not {fault.kind for fault in together} & ALONE
        assert max(start + fault.hold_s for fault in together) < following
    assert {fault.kind for fault in drawn} == set(HANDS)
    assert {fault.who for fault in drawn} >= {"leader", "follower", "node-5"}


def test_a_process_under_a_shifted_clock_sees_every_step(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.torture.shifted_clock import shift\n"
        "shift(Path(sys.argv[1]))\n"
        "from time import time_ns\n"
        "for line in sys.stdin:\n"
        "    print(time.time(), time_ns(), time.monotonic(), flush=True)\n"
    )
    path = tmp_path / "clock"
    set_offset(path, 0)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for offset in (0.0, 3600.0, -86_400.0, 0.0):
            set_offset(path, offset)
            process.stdin.write("now\n")
            process.stdin.flush()
            wall, wall_ns, steady = map(float, process.stdout.readline().split())
            assert abs(wall - time.time() - offset) < 60
            assert abs(wall_ns / 1e9 - time.time() - offset) < 60
            assert abs(steady - time.monotonic()) < 60
    finally:
        process.communicate(timeout=10)
