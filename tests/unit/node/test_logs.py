"""What is logged, and that logging it ends nothing."""

import subprocess
import sys

LINES = """
import structlog
from node.logs import configure
configure(format="json")
for number in range(2_000):
    structlog.get_logger().warning("full", number=number)
print("went on")
"""


def test_a_log_that_takes_nothing_does_not_end_the_daemon() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", LINES], stdout=subprocess.PIPE, stderr=full, timeout=60, check=False
        )
    assert done.stdout == b"went on\n"
