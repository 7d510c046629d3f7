"""Where the torture takes place: daemons in network namespaces of their own (on loopback without root), each under a
clock that can be stepped, the last one on a small disk that can be filled. Leaving it ends and removes everything.
"""

import contextlib
import http.client
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from node.testing import Daemon, LocalMesh, MeshTestError
from tests.system import lan as lan_module
from tests.system.lan import Lan
from tests.torture.shifted_clock import set_offset

DISK_MB = 2048
"""Of the small disk, a memory file system that takes only what is written. Far more than half an hour fills."""

RESIZE_TRIES = 50
"""It cannot shrink below what it holds, and its node may write between the question and the act."""

ROOT = Path(__file__).resolve().parents[2]


class Ground:
    """`skipped`: kind of fault -> why it is not possible here."""

    def __init__(self, folder: Path, nodes: int, *, with_network: bool = True) -> None:
        self.folder = folder
        self.skipped: dict[str, str] = {}
        self._stack = contextlib.ExitStack()
        self._down: dict[str, int] = dict.fromkeys([f"node-{number}" for number in range(1, nodes + 1)], 0)
        self._lock = threading.Lock()
        self._without_majority_since: float | None = None
        self.without_majority: list[tuple[float, float]] = []
        """When so many nodes were down, cut off or not yet back that no write could succeed."""
        self.lan: Lan | None = None
        reason = (lan_module.unavailable_because() or lan_module.spoiling_unavailable_because()) if with_network else ""
        if with_network and reason is None:
            self.lan = self._stack.enter_context(Lan(nodes))
        else:
            self.skipped["network"] = reason or "not asked for"
        try:
            self.mesh = self._stack.enter_context(LocalMesh(folder, nodes, name="torture", environment=environment()))
            for number, daemon in enumerate(self.daemons):
                self._settle(number, daemon)
            self.small_disk = self._make_small_disk(self.daemons[-1])
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def daemons(self) -> list[Daemon]:
        return list(self.mesh.daemons.values())

    def number(self, daemon: Daemon) -> int:
        return self.daemons.index(daemon)

    def _settle(self, number: int, daemon: Daemon) -> None:
        clock = self.clock_path(daemon)
        set_offset(clock, 0)
        daemon.program = ("-m", "tests.torture.shifted_clock", str(clock))
        if self.lan is None:
            return
        lan = self.lan
        daemon.prefix = lan.prefix(number)
        daemon.connect = lambda host, port: lan.connect(number, host, port)
        self.mesh.configure(daemon, len(self.daemons), True, [], {"mesh": {"bind": "auto"}})

    def clock_path(self, daemon: Daemon) -> Path:
        return daemon.directory / "clock"

    def _make_small_disk(self, daemon: Daemon) -> Path | None:
        if os.geteuid() != 0:
            self.skipped["disk"] = "mounting a small file system needs root"
            return None
        folder = self.folder / "small-disk"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            self.skipped["disk"] = f"a small file system cannot be mounted here: {done.stderr.strip()}"
            return None
        self._stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=False)
        old, new = str(daemon.directory / "data"), str(folder / "data")
        daemon.config_path.write_text(daemon.config_path.read_text().replace(old, new))
        return folder

    def data_dir(self, daemon: Daemon) -> Path:
        is_small = self.small_disk is not None and daemon is self.daemons[-1]
        return (self.small_disk if is_small and self.small_disk else daemon.directory) / "data"

    def resize_disk(self, *, is_full: bool) -> None:
        """A file system that shrinks to what it holds is a full one, and costs no memory."""
        assert self.small_disk is not None
        for _ in range(RESIZE_TRIES):
            size = f"{shutil.disk_usage(self.small_disk).used >> 10}k" if is_full else f"{DISK_MB}m"
            command = ["mount", "-o", f"remount,size={size}", str(self.small_disk)]
            if subprocess.run(command, check=False, capture_output=True).returncode == 0:
                return
        raise MeshTestError(f"the small disk could not be resized in {RESIZE_TRIES} tries, because its node writes")

    @contextlib.contextmanager
    def out(self, daemons: list[Daemon]) -> Iterator[None]:
        """These nodes cannot be counted on meanwhile."""
        self._count(daemons, 1)
        try:
            yield
        finally:
            self._count(daemons, -1)

    def _count(self, daemons: list[Daemon], change: int) -> None:
        with self._lock:
            for daemon in daemons:
                self._down[daemon.name] += change
            up = sum(not count for count in self._down.values())
            is_lost = up <= len(self._down) // 2
            now = time.monotonic()
            if is_lost and self._without_majority_since is None:
                self._without_majority_since = now
            elif not is_lost and self._without_majority_since is not None:
                self.without_majority.append((self._without_majority_since, now))
                self._without_majority_since = None

    def wait_answering(self, daemon: Daemon, deadline_s: float) -> bool:
        """Until the process serves; whether the mesh works is not asked."""
        probe = Daemon(daemon.name, daemon.directory, daemon.http_host, daemon.http_port, 0, connect=daemon.connect)
        ends_at = time.monotonic() + deadline_s
        try:
            while time.monotonic() < ends_at:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    if probe.call("GET", "/healthz", timeout_s=1).status == 200:
                        return True
                time.sleep(0.02)
        finally:
            probe.kill()
        return False

    def leader(self) -> Daemon | None:
        """As most see it now; None if they disagree."""
        votes: dict[str, int] = {}
        for daemon in self.mesh.running():
            probe = Daemon(daemon.name, daemon.directory, daemon.http_host, daemon.http_port, 0, connect=daemon.connect)
            name = ((probe.status(timeout_s=1.0) or {}).get("leader") or {}).get("name")
            probe.kill()
            if name is not None:
                votes[name] = votes.get(name, 0) + 1
        best = max(votes, key=lambda name: votes[name], default=None)
        return self.mesh[best] if best is not None and votes[best] > len(self.daemons) // 2 else None


def environment() -> dict[str, str]:
    """The daemons find the launcher wherever they are started."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
