"""A worker process: executes rituals for the daemon that started it (`python -m node.executor.worker FD PID`).

It speaks `node.executor.protocol` over an inherited socket. An async worker runs an event loop and many rituals
(`node.executor.async_worker`); a CPU worker executes one ritual at a time on its main thread, and is simply killed when
that must end. A worker never outlives its daemon: the kernel kills it when the daemon dies (PR_SET_PDEATHSIG), and it
leaves when its socket closes.

Imports are kept few, because the start of a worker is in the way of the first result.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import Any

from node.executor import protocol
from node.executor.limits import CONSOLIDATION_BYTES_MAX, KNOWLEDGE_BYTES_MAX, LIVE_INTERVAL_S, SEEN_PHRASES_MAX
from node.executor.reports import Reports, capture_output
from node.executor.running import Rituals, failure_of, finished
from node.executor.worker_pipe import BlockingPipe

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def main() -> None:
    """Never returns normally before the daemon closes the socket."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)  # a process that a ritual starts must not hold the connection open
    pipe = BlockingPipe(channel)
    hello = pipe.receive()
    if hello is None or hello[0] != protocol.HELLO:
        return
    options: dict[str, Any] = hello[1]
    _limit(options)
    for entry in options["path"]:
        if entry not in sys.path:
            sys.path.append(entry)
    rituals = Rituals(options["rituals"])
    if options["kind"] == "async":
        from node.executor.async_worker import AsyncWorker

        AsyncWorker(channel, pipe, rituals, options["preload"]).run()
    else:
        CpuWorker(pipe, rituals).run(options["preload"])


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when the daemon's thread that started it ends."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


class CpuWorker:
    """One ritual at a time. Live updates that were held back by the rate limit are sent by a helper thread, so that the
    last words before a hang are seen."""

    def __init__(self, pipe: BlockingPipe, rituals: Rituals) -> None:
        self._pipe = pipe
        self._rituals = rituals
        self._reports = Reports(self._updates_pending)
        self._flush_wanted = threading.Event()
        self._flusher: threading.Thread | None = None
        self._seen_number = 0
        self._current = -1

    def run(self, preload: list[str]) -> None:
        capture_output(self._reports, lambda: self._current)
        for name in preload:
            self._rituals.preload(name)
        self._pipe.send([[protocol.READY, os.getpid()]])
        inputs: list[Any] = []
        while (message := self._pipe.receive()) is not None:
            if message[0] == protocol.INPUTS:
                inputs.extend(message[2])
            elif message[0] == protocol.RUN:
                self._execute(message, inputs)
                inputs = []

    def _execute(self, message: list[Any], inputs: list[Any]) -> None:
        key: int = message[1]
        self._current = key
        started = time.perf_counter()
        version = ""
        try:
            ritual = self._rituals.load(message[2])
            version = ritual.version
            context = ritual.context(message, inputs, self)
            value = ritual.function(context)
            if ritual.kind == "async":  # executed alone because it is suspected of crashing workers
                import asyncio

                value = asyncio.run(value)
            answer = finished(key, started, version, value, _bytes_max(message))
        except BaseException as error:  # also SystemExit and KeyboardInterrupt: the ritual's, not ours
            answer = failure_of(key, started, version, error)
            del error
        self._current = -1
        self._pipe.send([*self._reports.take_all(), answer])

    # the Reporter of contexts

    def progress(self, key: int, fraction: float | None, message: str) -> None:
        self._reports.progress(key, fraction, message)

    def log(self, key: int, line: str) -> None:
        self._reports.log(key, line)

    def seen(self, key: int, phrases: list[str]) -> dict[str, int]:
        self._seen_number += 1
        self._pipe.send([[protocol.SEEN, key, self._seen_number, [str(p) for p in phrases[:SEEN_PHRASES_MAX]]]])
        while (message := self._pipe.receive()) is not None:
            if message[0] == protocol.SEEN_REPLY and message[2] == self._seen_number:
                reply: dict[str, int] = message[3]
                return reply
        os._exit(0)  # the daemon is gone

    async def seen_async(self, key: int, phrases: list[str]) -> dict[str, int]:
        return self.seen(key, phrases)

    def _updates_pending(self) -> None:
        if self._flusher is None:
            self._flusher = threading.Thread(target=self._flush_forever, name="live-updates", daemon=True)
            self._flusher.start()
        self._flush_wanted.set()

    def _flush_forever(self) -> None:
        while True:
            self._flush_wanted.wait()
            self._flush_wanted.clear()
            updates = self._reports.take_all()
            if updates:
                try:
                    self._pipe.send(updates)
                except OSError:
                    os._exit(0)  # the daemon is gone
            time.sleep(LIVE_INTERVAL_S)


def _bytes_max(message: list[Any]) -> int:
    return CONSOLIDATION_BYTES_MAX if message[10] else KNOWLEDGE_BYTES_MAX


def _limit(options: dict[str, Any]) -> None:
    """Lower priority, no core dumps, a cap on address space, and the first choice of the kernel's OOM killer."""
    import faulthandler
    import resource

    os.nice(options["nice"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory_bytes_max: int = options["memory_bytes_max"]
    if memory_bytes_max > 0:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        cap = memory_bytes_max if hard == resource.RLIM_INFINITY else min(memory_bytes_max, hard)
        resource.setrlimit(resource.RLIMIT_AS, (cap, hard))
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        pass  # not every container allows it; the cap on address space still holds
    faulthandler.enable()


if __name__ == "__main__":
    main()
