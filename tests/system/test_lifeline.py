"""Daemons of a test end with it, whatever ends it: they must not go on for ever."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node.rituals.registry import child_environment

OWNER = """
import signal, sys, threading
from pathlib import Path
from scripts.forked import ForkedDaemon
from node.testing import Daemon, LocalMesh

mesh = LocalMesh(Path(sys.argv[1]), 3, zeroconf=False, with_seeds=True)
first, second, third = mesh.daemons.values()
copy = ForkedDaemon(third.name, third.directory, third.http_host, third.http_port, third.mesh_port)
copy.start()  # while there is one thread
starting = threading.Thread(target=lambda: (first.start(), second.start()))
starting.start()
starting.join()
mesh.wait("two answer", lambda: first.status() and copy.status())
second.signal(signal.SIGSTOP)
print(first.process.pid, second.process.pid, copy.process.pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_daemons_end_with_the_process_that_started_them_also_if_they_are_paused(
    tmp_path: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=child_environment()
    ) as owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(lives, pids))
        owner.send_signal(number)
    deadline = time.monotonic() + 20
    while any(map(lives, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if lives(pid)]
        time.sleep(0.01)


def lives(pid: int) -> bool:
    """Nobody may be there to wait for it: a zombie is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
