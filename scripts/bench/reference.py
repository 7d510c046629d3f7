"""The reference loops that stand beside every figure, because machines differ and are noisy.

R: round trips a second of a small session document through MessagePack, one core, pure interpreter work.
F: median microseconds of a 4 KiB append followed by fdatasync in the folder the daemons use.
W: median microseconds for a byte to another process and back over a socket pair: two wake-ups.
P: median milliseconds to start a bare Python and end it.
"""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgpack

DOCUMENT = {
    "id": "2df18a12-f01b-4fb3-91b1-b52a88d742cf",
    "thought": "Which mix of measures stabilises the debt?",
    "branches": [
        {"branch_index": i, "task": f"branch {i}", "status": "completed", "duration_ms": 812, "novelty_score": 0.67}
        for i in range(6)
    ],
}


def round_trips_per_second(seconds: float = 0.3) -> float:
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(200):
            msgpack.unpackb(msgpack.packb(DOCUMENT))
        count += 200
    return count / elapsed


def sync_us(folder: Path, rounds: int = 300) -> float:
    block, latencies = os.urandom(4096), []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(rounds):
            started = time.perf_counter()
            os.write(file.fileno(), block)
            os.fdatasync(file.fileno())
            latencies.append(time.perf_counter() - started)
    return statistics.median(latencies) * 1e6


def wake_us(rounds: int = 500) -> float:
    ours, theirs = socket.socketpair()
    code = f"import socket; s = socket.socket(fileno={theirs.fileno()})\nwhile (b := s.recv(1)): s.send(b)"
    latencies = []
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()]) as echo:
        theirs.close()
        with ours:
            for _ in range(rounds):
                started = time.perf_counter()
                ours.send(b"x")
                ours.recv(1)
                latencies.append(time.perf_counter() - started)
        echo.wait()
    return statistics.median(latencies) * 1e6


def start_ms(rounds: int = 5) -> float:
    latencies = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        latencies.append(time.perf_counter() - started)
    return statistics.median(latencies) * 1e3


def describe(folder: Path) -> str:
    return (
        f"R {round_trips_per_second():,.0f}/s, F {sync_us(folder):.0f} us, W {wake_us():.0f} us, P {start_ms():.0f} ms"
    )
