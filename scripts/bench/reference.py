"""The reference loops that stand beside every figure, because machines differ and are noisy.

R: round trips a second of a small document through a codec in pure Python, one core. Where the figures to reach were
   set it is 41,000, so what a processor limits is compared in R.
F: median microseconds of a 4 KiB append followed by fdatasync in the folder the daemons use. 44 there.
W: median microseconds for a byte to another process and back over a socket pair: two wake-ups.
P: median milliseconds to start a bare Python and end it.
"""

import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROUND_TRIPS_THERE = 41_000
"""R of the machine on which the figures to reach were set."""

DOCUMENT = {
    "id": "session-0123456789",
    "branches": [{"n": i, "state": "running", "node": f"node-{i}", "ok": True} for i in range(6)],
    "t": 1234567,
}


def round_trips_per_second(seconds: float = 0.6) -> float:
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(50):
            encoded: list[bytes] = []
            _encode(DOCUMENT, encoded)
            _decode(b"".join(encoded), 0)
        count += 50
    return count / elapsed


def _encode(value: object, out: list[bytes]) -> None:
    if isinstance(value, bool):
        out.append(b"\xc3" if value else b"\xc2")
    elif isinstance(value, int):
        out.append(b"\xd3" + struct.pack(">q", value))
    elif isinstance(value, str):
        text = value.encode()
        out.append(b"\xdb" + struct.pack(">I", len(text)) + text)
    elif isinstance(value, dict):
        out.append(b"\xdf" + struct.pack(">I", len(value)))
        for key, item in value.items():
            _encode(key, out)
            _encode(item, out)
    elif isinstance(value, list):
        out.append(b"\xdd" + struct.pack(">I", len(value)))
        for item in value:
            _encode(item, out)


def _decode(data: bytes, at: int) -> tuple[object, int]:
    kind = data[at]
    if kind in (0xC2, 0xC3):
        return kind == 0xC3, at + 1
    if kind == 0xD3:
        return struct.unpack_from(">q", data, at + 1)[0], at + 9
    if kind == 0xDB:
        length = struct.unpack_from(">I", data, at + 1)[0]
        return data[at + 5 : at + 5 + length].decode(), at + 5 + length
    length = struct.unpack_from(">I", data, at + 1)[0]
    at += 5
    if kind == 0xDF:
        found = {}
        for _ in range(length):
            key, at = _decode(data, at)
            found[key], at = _decode(data, at)
        return found, at
    items = []
    for _ in range(length):
        item, at = _decode(data, at)
        items.append(item)
    return items, at


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


@dataclass(frozen=True, slots=True)
class Reference:
    round_trips_s: float
    sync_us: float
    wake_us: float
    start_ms: float

    def __str__(self) -> str:
        return (
            f"R {self.round_trips_s:,.0f}/s, F {self.sync_us:.0f} us, W {self.wake_us:.0f} us, P {self.start_ms:.0f} ms"
        )


def measure(folder: Path) -> Reference:
    return Reference(round_trips_per_second(), sync_us(folder), wake_us(), start_ms())
