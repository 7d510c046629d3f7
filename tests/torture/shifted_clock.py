"""Runs `meshnode` under a wall clock that can be stepped while it runs:

    python -m tests.torture.shifted_clock FILE --config CONFIG

FILE holds eight bytes, the offset in nanoseconds. The kernel has no time namespace for the wall clock, and stepping the
machine's own would step it for everybody; so the two functions by which the daemon asks for it are replaced before any
of its modules is imported. The product knows nothing of this. Like a real step it leaves the monotonic clocks alone.
Worker processes and the times of log lines keep the real clock.
"""

import mmap
import struct
import sys
import time
from pathlib import Path

OFFSET = struct.Struct("<q")


def shift(path: Path) -> None:
    """From now on `time.time` and `time.time_ns` of this process are off by what the file holds."""
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), OFFSET.size, access=mmap.ACCESS_READ)
    real_ns = time.time_ns

    def time_ns() -> int:
        return real_ns() + int(OFFSET.unpack_from(view)[0])

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


def set_offset(path: Path, seconds: float) -> None:
    """Steps the clock of whoever runs under this file. Written in place, because the readers have mapped it."""
    raw = OFFSET.pack(int(seconds * 1e9))
    if not path.exists():
        path.write_bytes(raw)
        return
    with path.open("r+b") as file:
        file.write(raw)


def main() -> int:
    path, *arguments = sys.argv[1:]
    shift(Path(path))
    from node.cli.main import main as meshnode

    return meshnode(arguments)


if __name__ == "__main__":
    sys.exit(main())
