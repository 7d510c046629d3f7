"""Puts load on one HTTP server over kept connections, as cheaply as Python can: blocking nothing, parsing next to
nothing."""

import selectors
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    per_s: float
    p50_ms: float
    p99_ms: float
    client_share: float
    """Of a core, that this process used meanwhile."""

    @property
    def note(self) -> str:
        return f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms; the client takes {self.client_share:.0%} of a core"


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def post(path: str, body: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def run(
    port: int, requests: Callable[[int], bytes], *, in_flight: int, count: int, expect: Sequence[int] = (200,)
) -> Load:
    """`requests(n)` is the n-th request. Raises RuntimeError at an answer with another status than expected."""
    latencies: list[float] = []
    begun = 0
    with selectors.DefaultSelector() as selector:
        callers = [_Caller(port) for _ in range(in_flight)]
        try:
            used_s, started = time.process_time(), time.perf_counter()
            for caller in callers:
                selector.register(caller.socket, selectors.EVENT_READ, caller)
                caller.ask(requests(begun))
                begun += 1
            while len(latencies) < count:
                ready = selector.select(DEADLINE_S)
                if not ready:
                    raise RuntimeError(f"no answer within {DEADLINE_S} s")
                for key, _ in ready:
                    caller = key.data
                    status = caller.receive()
                    if status is None:
                        continue
                    if status not in expect:
                        raise RuntimeError(f"answered {status}: {bytes(caller.received[:2000])!r}")
                    latencies.append(time.perf_counter() - caller.asked_at)
                    if begun < count:
                        caller.ask(requests(begun))
                        begun += 1
            elapsed_s, used_s = time.perf_counter() - started, time.process_time() - used_s
        finally:
            for caller in callers:
                caller.socket.close()
    latencies.sort()
    p99 = latencies[int(len(latencies) * 0.99)]
    return Load(len(latencies) / elapsed_s, statistics.median(latencies) * 1e3, p99 * 1e3, used_s / elapsed_s)


class _Caller:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.asked_at = 0.0

    def ask(self, request: bytes) -> None:
        self.received = b""
        self.asked_at = time.perf_counter()
        self.socket.send(request)

    def receive(self) -> int | None:
        """The status, when the answer is complete."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise RuntimeError(f"the connection was closed after {self.received[:200]!r}")
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = self.received[:end].lower()
        at = head.index(b"content-length:") + len(b"content-length:")
        length = int(head[at:].split(b"\r\n", 1)[0])
        return int(head[9:12]) if len(self.received) >= end + 4 + length else None
