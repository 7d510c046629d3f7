"""An asyncio loop on the virtual clock, in which many processes live: the product's own shells run on it as they are.

What a process plans (tasks, timers, callbacks) carries its `Life` in the context. Of a process that is dead nothing
runs any more, not even a `finally`; of one that is paused everything waits, in order, until it goes on. What belongs to
no process belongs to the world: the network, clients, faults.
"""

import asyncio
import contextlib
from asyncio import events
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Life:
    """One life of a process, from its start to its death."""

    def __init__(self) -> None:
        self.is_alive = True
        self.paused_until = 0.0


CURRENT: ContextVar[Life | None] = ContextVar("life", default=None)

WORLD = Context()
"""For what belongs to no process."""


class Tcp(Protocol):
    """How processes reach each other; arguments as those of the loop's methods."""

    def listen(self, factory: Any, host: str | None, port: int | None, sock: Any) -> Any: ...

    async def connect(self, factory: Any, host: str, port: int) -> tuple[Any, Any]: ...

    def attach(self, factory: Any, sock: Any) -> tuple[Any, Any]:
        """To one end of a pair of sockets."""


class _Handle(events.Handle):
    __slots__ = ()

    def _run(self) -> None:
        if _may_run(self):
            super()._run()


class _TimerHandle(events.TimerHandle):
    __slots__ = ()

    def _run(self) -> None:
        if _may_run(self):
            super()._run()


def _may_run(handle: Any) -> bool:
    life: Life | None = handle._context.get(CURRENT)
    if life is None:
        return True
    if life.is_alive and life.paused_until > handle._loop.time():
        handle._loop.freeze(life, handle)
        return False
    return life.is_alive


class VirtualLoop(asyncio.BaseEventLoop):
    """Without signals; connections are those of `tcp`. Work for other threads is done on this one."""

    tcp: Tcp

    def __init__(self) -> None:
        self.now = 100.0
        super().__init__()
        self._selector = self
        self._frozen: dict[Life, list[events.Handle]] = {}
        self.run_on_thread: Callable[[Life | None, Callable[[], Any]], None] = lambda life, do: do()
        """How what would run on another thread is done."""

    def time(self) -> float:
        return self.now

    # -- as the base class wants it --

    def select(self, timeout: float | None) -> list[Any]:
        assert timeout is not None, "nothing is left to do"
        self.now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There is no other thread to wake up from."""

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> events.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]  # of the base class
        return handle

    def call_at(  # type: ignore[override]  # the types of the arguments are those of the callback, whatever they are
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> events.TimerHandle:
        timer = super().call_at(when, callback, *args, context=context)
        timer.__class__ = _TimerHandle
        return timer

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        done = self.create_future()

        def work() -> None:
            try:
                answer, error = func(*args), None
            except Exception as raised:
                answer, error = None, raised
            self.call_soon(tell, answer, error, context=here)

        def tell(answer: Any, error: Exception | None) -> None:
            if done.cancelled():
                return
            if error is None:
                done.set_result(answer)
            else:
                done.set_exception(error)

        life, here = CURRENT.get(), copy_context()
        self.run_on_thread(life, work)
        return done

    async def create_server(
        self, protocol_factory: Any, host: Any = None, port: Any = None, *, sock: Any = None, **options: Any
    ) -> Any:
        return self.tcp.listen(protocol_factory, host, port, sock)

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, *, sock: Any = None, **options: Any
    ) -> tuple[Any, Any]:
        if sock is not None:
            return self.tcp.attach(protocol_factory, sock)
        return await self.tcp.connect(protocol_factory, host, port)

    async def connect_accepted_socket(self, protocol_factory: Any, sock: Any, **options: Any) -> tuple[Any, Any]:
        return self.tcp.attach(protocol_factory, sock)

    def remove_reader(self, fd: Any) -> bool:
        return False

    # -- processes that pause --

    def freeze(self, life: Life, handle: events.Handle) -> None:
        frozen = self._frozen.setdefault(life, [])
        frozen.append(handle)
        if len(frozen) == 1:
            self._thaw_at(life)

    def _thaw_at(self, life: Life) -> None:
        self.call_at(life.paused_until, self.thaw, life, context=WORLD)

    def thaw(self, life: Life) -> None:
        if life.is_alive and life.paused_until > self.now:
            self._thaw_at(life)
            return
        self._ready.extend(self._frozen.pop(life, ()))  # type: ignore[attr-defined]  # of the base class


class LoopClock:
    """The loop's time, and what is done at which."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(self._on_exception)
        self.loop.set_task_factory(self._make_task)
        self._tasks: list[asyncio.Task[Any]] = []
        """All of them: those of dead processes never end, and must not be missed by anybody."""
        self._failure: BaseException | None = None

    @property
    def now(self) -> float:
        return self.loop.now

    def at(self, delay_s: float, do: Callable[..., None], *arguments: Any) -> None:
        self.loop.call_later(delay_s, do, *arguments, context=WORLD)

    def run_for(self, seconds: float) -> None:
        self.loop.call_later(seconds, self.loop.stop, context=WORLD)
        self.loop.run_forever()
        if self._failure is not None:
            raise self._failure

    def run_until_done(self, work: Coroutine[Any, Any, T]) -> T:
        task = self.loop.create_task(work)
        task.add_done_callback(lambda _: self.loop.stop())
        self.loop.run_forever()
        if self._failure is not None:
            raise self._failure
        return task.result()

    def fail(self, error: BaseException) -> None:
        """Ends the run."""
        if self._failure is None:
            self._failure = error
            self.loop.stop()

    def close(self) -> None:
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # its process is dead
                with contextlib.suppress(RuntimeError):
                    task.get_coro().close()
        self._tasks.clear()
        self.loop.close()

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        self._tasks.append(task)
        return task

    def _on_exception(self, loop: object, context: dict[str, Any]) -> None:
        self.fail(context.get("exception") or RuntimeError(context["message"]))
