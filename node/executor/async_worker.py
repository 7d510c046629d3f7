"""The worker that executes many async rituals at once on one event loop.

Everything that ended or was reported during one iteration of the loop leaves in one frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from contextvars import ContextVar
from typing import Any

from node.executor import protocol
from node.executor.limits import (
    BATCH_BYTES_SOFT,
    CONSOLIDATION_BYTES_MAX,
    KNOWLEDGE_BYTES_MAX,
    LIVE_INTERVAL_S,
    SEEN_PHRASES_MAX,
)
from node.executor.packing import pack, unpack_messages
from node.executor.reports import Reports, capture_output
from node.executor.running import LoadedRitual, Rituals, failure_of, finished
from node.executor.worker_pipe import BlockingPipe

_current: ContextVar[int] = ContextVar("attempt", default=-1)


class AsyncWorker:
    """Runs until the daemon closes the socket."""

    def __init__(self, channel: socket.socket, pipe: BlockingPipe, rituals: Rituals, preload: list[str]) -> None:
        self._channel = channel
        self._early = pipe.left_over()
        self._frames = protocol.FrameBuffer()
        self._rituals = rituals
        self._preload = preload
        self._reports = Reports(self._updates_pending)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._inputs: dict[int, list[Any]] = {}
        self._asked: dict[int, asyncio.Future[dict[str, int]]] = {}
        self._asked_number = 0
        self._outbox: deque[list[Any]] = deque()
        self._unsent = b""
        self._is_flush_due = False
        self._is_report_due = False

    def run(self) -> None:
        asyncio.run(self._main())
        os._exit(0)  # threads that a ritual has left behind must not hold the process

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closed = self._loop.create_future()
        capture_output(self._reports, _current.get)
        for name in self._preload:
            self._rituals.preload(name)
        self._channel.setblocking(False)
        self._loop.add_reader(self._channel, self._readable)
        self._post([protocol.READY, os.getpid()])
        for message in self._early:
            self._handle(message)
        await self._closed
        os._exit(0)  # the daemon is gone or has no more use for us; nothing here is worth waiting for

    # messages from the daemon

    def _readable(self) -> None:
        try:
            data = self._channel.recv(1 << 18)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._channel)
            if not self._closed.done():
                self._closed.set_result(None)
            return
        for payload in self._frames.feed(data):
            for message in unpack_messages(payload):
                self._handle(message)

    def _handle(self, message: list[Any]) -> None:
        tag, key = message[0], message[1]
        if tag == protocol.RUN:
            self._tasks[key] = self._loop.create_task(self._execute(message, self._inputs.pop(key, [])))
        elif tag == protocol.INPUTS:
            self._inputs.setdefault(key, []).extend(message[2])
        elif tag == protocol.CANCEL:
            self._inputs.pop(key, None)
            task = self._tasks.get(key)
            if task is not None:
                task.cancel()
                # A task that is cancelled before its first step never enters `_execute`, so nobody else would answer.
                task.add_done_callback(lambda _: self._answer_cancelled(key))
        elif tag == protocol.SEEN_REPLY:
            future = self._asked.pop(message[2], None)
            if future is not None and not future.done():
                future.set_result(message[3])

    async def _execute(self, message: list[Any], inputs: list[Any]) -> None:
        key: int = message[1]
        _current.set(key)  # this task's own context: children of the ritual inherit it
        started = time.perf_counter()
        version = ""
        try:
            ritual: LoadedRitual = self._rituals.load(message[2])
            version = ritual.version
            value = await ritual.function(ritual.context(message, inputs, self))
            answer = finished(
                key, started, version, value, CONSOLIDATION_BYTES_MAX if message[10] else KNOWLEDGE_BYTES_MAX
            )
        except asyncio.CancelledError:
            answer = [protocol.FAILED, key, 0, version, "cancelled", "the attempt was cancelled"]
        except BaseException as error:  # SystemExit too: it must end this attempt, not the loop and its neighbours
            answer = failure_of(key, started, version, error)
            del error
        self._tasks.pop(key, None)
        for update in self._reports.take(key):
            self._post(update)
        self._post(answer)

    def _answer_cancelled(self, key: int) -> None:
        if self._tasks.pop(key, None) is not None:
            self._post([protocol.FAILED, key, 0, "", "cancelled", "the attempt was cancelled"])

    # messages to the daemon

    def _post(self, message: list[Any]) -> None:
        self._outbox.append(message)
        if not self._is_flush_due and not self._unsent:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        while self._outbox and not self._unsent:
            batch: list[list[Any]] = []
            size = 0
            while self._outbox and size < BATCH_BYTES_SOFT:
                message = self._outbox.popleft()
                if message[0] == protocol.DONE:
                    size += len(message[4])
                batch.append(message)
            self._write(protocol.frame(pack(batch)))

    def _write(self, data: bytes) -> None:
        try:
            sent = self._channel.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return  # the reader sees the end of the stream and leaves
        if sent < len(data):
            self._unsent = data[sent:]
            self._loop.add_writer(self._channel, self._writable)

    def _writable(self) -> None:
        data, self._unsent = self._unsent, b""
        self._loop.remove_writer(self._channel)
        self._write(data)
        if not self._unsent:
            self._flush()

    # the Reporter of contexts

    def progress(self, key: int, fraction: float | None, message: str) -> None:
        self._reports.progress(key, fraction, message)

    def log(self, key: int, line: str) -> None:
        self._reports.log(key, line)

    def seen(self, key: int, phrases: list[str]) -> dict[str, int]:
        raise RuntimeError("an async ritual must use `await context.seen_async(...)`")

    async def seen_async(self, key: int, phrases: list[str]) -> dict[str, int]:
        self._asked_number += 1
        number = self._asked_number
        future: asyncio.Future[dict[str, int]] = self._loop.create_future()
        self._asked[number] = future
        self._post([protocol.SEEN, key, number, [str(phrase) for phrase in phrases[:SEEN_PHRASES_MAX]]])
        try:
            return await future
        finally:
            self._asked.pop(number, None)

    def _updates_pending(self) -> None:
        if not self._is_report_due:
            self._is_report_due = True
            with contextlib.suppress(RuntimeError):  # the loop is closing
                self._loop.call_soon_threadsafe(self._report)  # rituals may log from threads

    def _report(self) -> None:
        # The first report of a quiet worker leaves at once; those of the next interval share a frame.
        for update in self._reports.take_all():
            if update[1] in self._tasks:
                self._post(update)
        self._loop.call_later(LIVE_INTERVAL_S, self._report_due)

    def _report_due(self) -> None:
        self._is_report_due = False
        if self._reports.is_waiting():
            self._updates_pending()
