"""A CPU ritual on a thread that runs only while the loop waits for it: it may block, and yet no two things ever run
side by side.

When its worker is killed it stops where it is, as a process would; what it has in `finally` runs when the mesh is
closed, because a thread cannot be thrown away.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

END_S = 1.0
"""For a thread that is told to end. One that refuses is left behind; it ends with the interpreter."""

_sleep = time.sleep


class Sleep(NamedTuple):
    seconds: float


class Ask(NamedTuple):
    """How often the mesh has recorded these."""

    phrases: list[str]


class Done(NamedTuple):
    answer: Callable[[], list[Any]]


Wish = Sleep | Ask | Done


class Ended(BaseException):
    """Nobody waits for this ritual any more."""


class Lockstep(threading.Thread):
    def __init__(self, work: Callable[[], Callable[[], list[Any]]]) -> None:
        super().__init__(name="virtual-worker", daemon=True)
        self._work = work
        self._may_run = threading.Semaphore(0)
        self._has_stopped = threading.Semaphore(0)
        self._wish: Wish = Sleep(0.0)
        self._granted: Any = None
        self._is_ended = False
        self.start()

    def go(self, granted: Any = None) -> Wish:
        """On the loop: with its last wish granted, until it has another one."""
        self._granted = granted
        self._may_run.release()
        self._has_stopped.acquire()
        return self._wish

    def wish(self, wish: Wish) -> Any:
        """On its thread: stands still until that is granted."""
        if not self._is_ended:
            self._wish = wish
            self._has_stopped.release()
            self._may_run.acquire()
        if self._is_ended:
            raise Ended
        return self._granted

    def end(self) -> None:
        if self.is_alive():
            self._is_ended = True
            self._may_run.release()
            self.join(END_S)

    def run(self) -> None:
        self._may_run.acquire()
        try:
            if not self._is_ended:
                self._wish = Done(self._work())
        except Ended:
            return
        self._has_stopped.release()


def sleep(seconds: float) -> None:
    """`time.sleep`: virtual for a ritual, real for everybody else."""
    thread = threading.current_thread()
    if isinstance(thread, Lockstep):
        thread.wish(Sleep(seconds))
    else:
        _sleep(seconds)
