"""Any daemon as a process: signals, exit codes, and an end that comes whatever happens."""

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import structlog

from consensus.errors import ConsensusError
from mesh.errors import MeshError
from node.http.guard import HttpConfigError
from storage.errors import StorageError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CANNOT_START = 2

STOP_S = 5.0
"""From signal to exit. Service managers kill after 10 to 90 s; a person waits about this long."""

LAST_RESORT_S = 10.0
"""From signal to exit whatever happens (a disk that hangs): everything is crash-safe, so the process just ends."""

THREAD_SWITCH_S = 0.0005
"""How long one thread keeps the interpreter while the other waits. The default of 5 ms would be added to a commit
whenever the loop and the replica thread meet."""

COLLECT_AFTER = (20_000, 20, 20)
"""New objects that live before cycles among them are looked for, and so many such looks before one at older objects.
Nearly all is freed without it; the default of 700 is met by every other HTTP request and costs it a tenth or more."""

log = structlog.get_logger()


class Daemon(Protocol):
    """What is run: started by entering it, stopped by leaving it."""

    withdrawn: str | None
    """Why it takes part no more, though it still answers."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    async def wait_failed(self) -> None: ...
    def look_at_secrets(self) -> None: ...


def run(make: Callable[[], Daemon]) -> int:
    """Runs the daemon until SIGTERM or SIGINT; answers the exit code: 0 stopped as asked, 1 failed while running,
    2 could not start."""
    sys.setswitchinterval(THREAD_SWITCH_S)
    try:
        asyncio.run(_serve(make))
    except (MeshError, StorageError, HttpConfigError, ConsensusError, OSError) as error:
        log.error("cannot_run", reason=str(error), code=getattr(error, "code", type(error).__name__))
        return EXIT_CANNOT_START
    except Failed as error:
        log.error("failed", reason=str(error), exc_info=error.__cause__)
        return EXIT_FAILED
    return EXIT_OK


async def _serve(make: Callable[[], Daemon]) -> None:
    stopping = asyncio.Event()
    last_resort = threading.Timer(LAST_RESORT_S, _end_now)
    last_resort.daemon = True

    def stop() -> None:
        if stopping.is_set():
            _end_now()  # asked twice: somebody is in a hurry
        stopping.set()
        last_resort.start()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with make() as node:
        loop.add_signal_handler(signal.SIGHUP, node.look_at_secrets)
        gc.set_threshold(*COLLECT_AFTER)
        gc.freeze()  # what start-up made stays: no need to look at it again in every collection
        asked = asyncio.create_task(stopping.wait())
        failed = asyncio.create_task(node.wait_failed())
        await asyncio.wait({asked, failed}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        log.info("stopping")
        failure = failed.exception() if failed.done() else None
        failed.cancel()
    last_resort.cancel()
    if failure is not None:
        raise Failed(str(failure)) from failure
    if node.withdrawn is not None:
        raise Failed(node.withdrawn)
    log.info("stopped")


def _end_now() -> None:
    log.error("stopped_at_once", reason="the daemon did not stop in time, or was asked twice; nothing accepted is lost")
    os._exit(EXIT_FAILED)


class Failed(Exception):
    """Something went wrong while running that this daemon could not go on without; the cause says what."""
