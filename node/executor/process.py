"""One worker process, seen from the daemon: starting it, talking to it, noticing its end.

All methods run on the daemon's event loop and none blocks, except `spawn`, which runs in the executor's spawner thread
(starting a process takes milliseconds). Nothing here decides; `node.executor.executor` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from node.executor import protocol
from node.executor.limits import STDERR_BYTES_PER_READ, STDERR_PAUSE_S, STDERR_TAIL_BYTES, STOP_GRACE_S
from node.rituals.registry import child_environment

TAIL_LINES = 6
"""Of a worker's last words in a failure's message."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[list[Any]]).decode


class Started:
    """A worker process that has been started and is not yet watched."""

    __slots__ = ("channel", "pidfd", "process", "stderr")

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, stderr: int, pidfd: int) -> None:
        self.process = process
        self.channel = channel
        self.stderr = stderr
        self.pidfd = pidfd

    def discard(self) -> None:
        """Kill it and wait for it; for a start that nobody wants any more."""
        self.process.kill()
        self.process.wait()
        self.channel.close()
        os.close(self.stderr)
        os.close(self.pidfd)


def spawn(directory: Path) -> Started:
    """Start a worker with `directory` as its working directory. OSError if the system refuses.

    Must run in a thread that lives as long as the worker may: PR_SET_PDEATHSIG is about the thread that forked.
    """
    directory.mkdir(parents=True, exist_ok=True)
    environment = child_environment()
    environment.setdefault("MALLOC_ARENA_MAX", "2")  # each arena takes 64 MB of the capped address space
    environment["PYTHONHASHSEED"] = "0"  # the same seed gives the same result, also where a ritual iterates a set
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(write_end, True)
            try:
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [sys.executable, "-P", "-m", "node.executor.worker", str(theirs.fileno()), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=write_end,
                    stderr=write_end,
                    pass_fds=[theirs.fileno()],
                    cwd=directory,
                    env=environment,
                    # A group of its own, because Ctrl-C in the daemon's terminal is not for rituals. Not a session of
                    # its own: Linux schedules sessions as equals (autogroup), whatever the niceness within, and a
                    # busy ritual would make every disk wait of the daemon 4 ms instead of 0.1.
                    process_group=0,
                )
            except BaseException:
                os.close(read_end)
                raise
            finally:
                os.close(write_end)
    except BaseException:
        ours.close()
        raise
    ours.setblocking(False)
    return Started(process, ours, read_end, os.pidfd_open(process.pid))


class Owner(Protocol):
    """Who is told what happens to a worker; called on the event loop."""

    def on_worker_message(self, worker: WorkerProcess, message: list[Any]) -> None: ...
    def on_worker_exit(self, worker: WorkerProcess) -> None: ...


class WorkerProcess:
    """A watched worker. `on_worker_exit` is called exactly once, after the process has been reaped."""

    def __init__(self, started: Started, kind: str, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self.kind = kind
        self.pid = started.process.pid
        self.is_ready = False
        self.is_ending = False
        """Told to go or killed: gets no more work."""
        self.garbage: str | None = None
        """Why its stream was given up, if it was."""
        self.started_at = loop.time()
        self.executed = 0
        self.running: set[int] = set()
        """Keys of the attempts it executes."""
        self.exited = loop.create_future()
        self._process = started.process
        self._channel = started.channel
        self._stderr = started.stderr
        self._pidfd = started.pidfd
        self._owner = owner
        self._loop = loop
        self._frames = protocol.FrameBuffer()
        self._outbox: list[list[Any]] = []
        self._streams: dict[int, Iterator[list[Any]]] = {}
        self._unsent = b""
        self._is_flush_due = False
        self._is_open = True
        self._tail = b""
        self._pause: asyncio.TimerHandle | None = None
        self._grace: asyncio.TimerHandle | None = None
        loop.add_reader(self._channel, self._readable)
        loop.add_reader(self._stderr, self._stderr_readable)
        loop.add_reader(self._pidfd, self._exit)

    @property
    def returncode(self) -> int | None:
        """As `subprocess` has it: negative for a signal; None while it lives."""
        return self._process.returncode

    def tail(self) -> str:
        """The telling part of what it last wrote to its standard error, on one line."""
        text = self._tail.decode(errors="replace").strip()
        fatal = text.rfind("Fatal Python error")
        # In its last message the interpreter lists the innermost frame first.
        lines = text[fatal:].splitlines()[:TAIL_LINES] if fatal >= 0 else text.splitlines()[-TAIL_LINES:]
        return " | ".join(line.strip()[:200] for line in lines if line.strip())[:600]

    def post(self, message: list[Any]) -> None:
        """Send soon, together with everything else of this iteration of the loop."""
        self._outbox.append(message)
        self._flush_soon()

    def post_stream(self, key: int, messages: Iterator[list[Any]]) -> None:
        """Send the messages one by one, each when the former has left, yielding to the loop in between."""
        self._streams[key] = messages
        self._flush_soon()

    def drop_stream(self, key: int) -> None:
        self._streams.pop(key, None)

    def dismiss(self) -> None:
        """Let it go: close the socket, on which it leaves; kill it if it does not within the grace time."""
        if self.is_ending:
            return
        self.is_ending = True
        self._close_channel()
        self._grace = self._loop.call_later(STOP_GRACE_S, self._signal_group)

    def kill(self) -> None:
        """SIGKILL to the worker and to everything it has started in its process group."""
        self.is_ending = True
        self._signal_group()

    def _signal_group(self) -> None:
        if self._process.returncode is None:  # not reaped, so the pid is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.kill()

    # reading

    def _readable(self) -> None:
        try:
            data = self._channel.recv(1 << 18)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            # Its end follows, and the exit status tells more than the closed socket. A worker that lives on without
            # its socket is of no use.
            self._close_channel()
            if self._process.returncode is None and self._grace is None:
                self.is_ending = True
                self._grace = self._loop.call_later(STOP_GRACE_S, self._signal_group)
            return
        try:
            for payload in self._frames.feed(data):
                for message in _decode(payload):
                    protocol.check_from_worker(message)
                    self._owner.on_worker_message(self, message)
        except (protocol.NotAFrame, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # Only code of a ritual that writes into our socket can do this.
            self.garbage = str(error)
            self._close_channel()
            self.kill()

    def _stderr_readable(self) -> None:
        try:
            data = os.read(self._stderr, STDERR_BYTES_PER_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._stderr)
            return
        self._tail = (self._tail + data)[-STDERR_TAIL_BYTES:]
        if len(data) == STDERR_BYTES_PER_READ:
            self._loop.remove_reader(self._stderr)
            self._pause = self._loop.call_later(STDERR_PAUSE_S, self._stderr_resume)

    def _stderr_resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._stderr, self._stderr_readable)

    # writing

    def _flush_soon(self) -> None:
        if not self._is_flush_due and not self._unsent and self._is_open:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        if not self._is_open or self._unsent:
            return
        if self._outbox:
            messages, self._outbox = self._outbox, []
            self._write(protocol.frames([_encode(message) for message in messages]))
        if self._streams and not self._unsent:
            key = next(iter(self._streams))
            message = next(self._streams[key], None)
            if message is None:
                self._streams.pop(key, None)
            else:
                self._write(protocol.frames([_encode(message)]))
            self._flush_soon()

    def _write(self, data: bytes) -> None:
        try:
            sent = self._channel.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return  # it is dying; its exit follows
        if sent < len(data):
            self._unsent = data[sent:]
            self._loop.add_writer(self._channel, self._writable)

    def _writable(self) -> None:
        data, self._unsent = self._unsent, b""
        self._loop.remove_writer(self._channel)
        self._write(data)
        if not self._unsent:
            self._flush_soon()

    # its end

    def _close_channel(self) -> None:
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._channel)
            self._loop.remove_writer(self._channel)
            self._channel.close()
            self._streams.clear()
            self._outbox.clear()
            self._unsent = b""

    def _exit(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it has started; the pid is not reused before it is reaped
        if self._process.poll() is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        while self._is_open and not self._is_drained():  # results that it wrote before it died are still there
            self._readable()
        self._close_channel()
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._stderr)
        with contextlib.suppress(OSError):  # at most a pipe's capacity is left
            self._tail = (self._tail + os.read(self._stderr, 1 << 20))[-STDERR_TAIL_BYTES:]
        os.close(self._stderr)
        if self._grace is not None:
            self._grace.cancel()
        self.is_ending = True
        self._owner.on_worker_exit(self)
        if not self.exited.done():
            self.exited.set_result(None)

    def _is_drained(self) -> bool:
        try:
            return not self._channel.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return True


def describe_exit(worker: WorkerProcess) -> str:
    """How a worker ended, for a person."""
    code = worker.returncode
    if worker.garbage is not None:
        text = f"the worker wrote something into its channel that is not ours ({worker.garbage})"
    elif code is None:
        text = "the worker ended"
    elif code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        text = f"the worker was ended by {name}"
        if -code == signal.SIGKILL:
            text += " (from outside; perhaps the kernel ran out of memory)"
    else:
        text = f"the worker exited with code {code}"
    tail = worker.tail()
    return f"{text}; its last words: {tail}" if tail else text
