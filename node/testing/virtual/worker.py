"""Workers without processes: rituals run on the virtual loop, through the messages of real workers.

An async ritual runs beside all others, `asyncio.sleep` takes virtual time. A CPU ritual runs in lockstep with the loop,
`time.sleep` takes virtual time, and its end is told after what the mesh was told that it takes besides.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, assert_never

import msgspec

from node.executor import protocol
from node.executor.async_worker import AsyncWorker
from node.executor.limits import CONSOLIDATION_BYTES_MAX, KNOWLEDGE_BYTES_MAX, SEEN_PHRASES_MAX
from node.executor.packing import pack, unpack_messages
from node.executor.process import Owner
from node.executor.reports import Reports
from node.executor.running import LoadedRitual, Rituals, failure_of, finished
from node.rituals.context import Context
from node.rituals.definition import declaration_of
from node.testing.virtual.lockstep import Ask, Done, Ended, Lockstep, Sleep
from node.testing.virtual.process import Process, current_process

START_S = 0.1
"""From the wish for a worker to its first word."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[list[Any]]).decode


class GivenRituals(Rituals):
    """Those of the test by the functions themselves, the others by name."""

    def __init__(self, targets: dict[str, str], given: Mapping[str, Callable[[Context], Any]]) -> None:
        super().__init__(targets)
        for name, function in given.items():
            declaration = declaration_of(function)
            self._loaded[name] = LoadedRitual(declaration.version, declaration.kind, function, declaration.parameters)


class VirtualWorker:
    """What `node.executor.process.WorkerProcess` is to an executor."""

    def __init__(self, started: object, kind: str, owner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.kind = kind
        self.process = current_process()
        self.pid = self.process.next_pid()
        self.is_ready = self.is_ending = False
        self.garbage: str | None = None
        self.returncode: int | None = None
        self.started_at = loop.time()
        self.executed = 0
        self.running: set[int] = set()
        self.exited: asyncio.Future[None] = loop.create_future()
        self._owner: Owner = owner
        self._loop = loop
        self._does: _Async | _Cpu | None = None

    def tail(self) -> str:
        return ""

    def post(self, message: list[Any]) -> None:
        for one in unpack_messages(pack_messages([message])):
            self._loop.call_soon(self._handle, one)

    def post_stream(self, key: int, messages: Iterator[list[Any]]) -> None:
        for message in messages:
            self.post(message)

    def drop_stream(self, key: int) -> None:
        """It has left already."""

    def dismiss(self) -> None:
        self._end(0)

    def kill(self) -> None:
        self._end(-9)

    def say(self, messages: list[list[Any]]) -> None:
        """To the executor, which may have ended this worker meanwhile."""
        for message in _decode(pack(messages)):
            protocol.check_from_worker(message)
            self._loop.call_soon(self._tell, message)

    def _tell(self, message: list[Any]) -> None:
        if self.returncode is None:
            self._owner.on_worker_message(self, message)  # type: ignore[arg-type]

    def _handle(self, message: list[Any]) -> None:
        if self.returncode is not None:
            return
        if message[0] == protocol.HELLO:
            rituals = GivenRituals(message[1]["rituals"], self.process.rituals)
            self._does = _Async(self, rituals) if self.kind == "async" else _Cpu(self, rituals)
            self._loop.call_later(START_S, self.say, [[protocol.READY, self.pid]])
        else:
            assert self._does is not None
            self._does.handle(message)

    def _end(self, code: int) -> None:
        self.is_ending = True
        if self.returncode is None:
            self.returncode = code
            if self._does is not None:
                self._does.end()
            self._loop.call_soon(self._gone)

    def _gone(self) -> None:
        self._owner.on_worker_exit(self)  # type: ignore[arg-type]
        if not self.exited.done():
            self.exited.set_result(None)


def pack_messages(messages: list[list[Any]]) -> bytes:
    return b"\xdd" + len(messages).to_bytes(4, "big") + b"".join(_encode(message) for message in messages)


class _Async(AsyncWorker):
    def __init__(self, worker: VirtualWorker, rituals: Rituals) -> None:
        no_pipe: Any = SimpleNamespace(left_over=list)
        super().__init__(no_pipe, no_pipe, rituals, [])
        self._worker = worker
        self._loop = worker._loop

    def handle(self, message: list[Any]) -> None:
        self._handle(message)

    def end(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def _write(self, data: bytes) -> None:
        self._worker.say(_decode(data[protocol.LENGTH_BYTES :]))


class _Cpu:
    """As `node.executor.worker.CpuWorker`, on a thread in lockstep with the loop."""

    def __init__(self, worker: VirtualWorker, rituals: Rituals) -> None:
        self._worker = worker
        self._loop = worker._loop
        self._rituals = rituals
        self._reports = Reports(lambda: None)
        self._inputs: list[Any] = []
        self._key = 0
        self._declared_s = 0.0
        self._ritual: Lockstep | None = None
        self._timer: asyncio.TimerHandle | None = None

    def handle(self, message: list[Any]) -> None:
        if message[0] == protocol.INPUTS:
            self._inputs += message[2]
        elif message[0] == protocol.SEEN_REPLY:
            self._go(message[3])
        elif message[0] == protocol.RUN:
            inputs, self._inputs = self._inputs, []
            self._key = message[1]
            self._declared_s = self._worker.process.cpu_s.get(message[2], 0.0)
            self._ritual = self._worker.process.lockstep(lambda: self._run(message, inputs))
            self._go()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _go(self, granted: Any = None) -> None:
        assert self._ritual is not None
        wish = self._ritual.go(granted)
        if reports := self._reports.take_all():
            self._worker.say(reports)
        match wish:
            case Sleep(seconds):
                self._timer = self._loop.call_later(seconds, self._go)
            case Ask(phrases):
                self._worker.say([[protocol.SEEN, self._key, 1, phrases]])
            case Done(answer):
                self._worker.process.forget(self._ritual)
                self._timer = self._loop.call_later(self._declared_s, lambda: self._worker.say([answer()]))
            case _:
                assert_never(wish)

    # -- on the thread of the ritual --

    def _run(self, message: list[Any], inputs: list[Any]) -> Callable[[], list[Any]]:
        key, started, version = message[1], time.perf_counter(), ""
        try:
            ritual = self._rituals.load(message[2])
            version = ritual.version
            value = ritual.function(ritual.context(message, inputs, self))
        except Ended:
            raise
        except BaseException as error:
            failure = error
            return lambda: failure_of(key, started, version, failure)
        bytes_max = CONSOLIDATION_BYTES_MAX if message[10] else KNOWLEDGE_BYTES_MAX
        return lambda: finished(key, started, version, value, bytes_max)

    def progress(self, key: int, fraction: float | None, message: str) -> None:
        self._reports.progress(key, fraction, message)

    def log(self, key: int, line: str) -> None:
        self._reports.log(key, line)

    def seen(self, key: int, phrases: list[str]) -> dict[str, int]:
        assert self._ritual is not None
        counts: dict[str, int] = self._ritual.wish(Ask([str(phrase) for phrase in phrases[:SEEN_PHRASES_MAX]]))
        return counts

    async def seen_async(self, key: int, phrases: list[str]) -> dict[str, int]:
        return self.seen(key, phrases)


def spawn(directory: object) -> object:
    """In place of starting a process."""
    return Process
