"""Ends processes with the one that started them, however that one ends, and also while they are paused.

Their standard input is a pipe that nobody writes to. When the starter is gone the kernel closes the other end and
sends SIGKILL in place of the SIGIO with which it tells of input (fcntl(2), F_SETSIG). Unlike with PR_SET_PDEATHSIG a
thread of the starter may end before.
"""

import fcntl
import os
import signal


def open_lifeline() -> int:
    """A descriptor to `tie` a process to: its own end of the pipe of this process."""
    return os.open(f"/proc/self/fd/{_reading_end()}", os.O_RDONLY)


def tie(lifeline: int, pid: int) -> None:
    """The process must have `lifeline` open for as long as it lives."""
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, pid)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)


def _reading_end() -> int:
    """The writing end is closed when this process ends."""
    if not _pipe:
        _pipe.extend(os.pipe())
    return _pipe[0]


def _forget() -> None:
    """A copy of this process must not hold the line of others, and makes one of its own."""
    while _pipe:
        os.close(_pipe.pop())


_pipe: list[int] = []
os.register_at_fork(after_in_child=_forget)
