"""Daemons that begin as a copy of this process instead of importing everything anew: on one machine a hundred nodes
would import the same for half a minute. The calling process must have one thread."""

import gc
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import node.app
import node.leaf.app  # noqa: F401 - so that no copy has to
from node.cli.main import main
from node.testing import Daemon
from node.testing.daemon import Process
from node.testing.lifeline import open_lifeline, tie

gc.freeze()  # or the first collection of every copy would write to all pages it shares


class ForkedProcess:
    """A child of this process; see `node.testing.daemon.Process`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
                os.close(self._pidfd)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self._code is None:
            ending = select.poll()
            ending.register(self._pidfd, select.POLLIN)
            ending.poll(None if timeout is None else timeout * 1000)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(["meshnode"], timeout or 0.0)
        return code

    def send_signal(self, number: int, /) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


@dataclass(slots=True)
class ForkedDaemon(Daemon):
    enter: Callable[[], None] | None = None
    """Called in the child before anything else: moves it into a network namespace."""

    def _launch(self, log: BinaryIO) -> Process:
        sys.stdout.flush()
        sys.stderr.flush()
        lifeline = open_lifeline()
        pid = os.fork()
        if pid:
            os.close(lifeline)
            return ForkedProcess(pid)
        code = 1
        try:
            tie(lifeline, os.getpid())
            code = self._become(log, lifeline)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _become(self, log: BinaryIO, lifeline: int) -> int:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the daemon has its own way
        Path("/proc/self/comm").write_text(self.name)  # what `ps` and `top` show
        os.dup2(lifeline, 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        if self.enter is not None:
            self.enter()
        os.environ.update(self.environment)
        return main(["--config", str(self.config_path)])
