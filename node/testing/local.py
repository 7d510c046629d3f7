"""Daemons on this machine that form a mesh."""

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from mesh.secrets import MeshSecret
from node.testing.daemon import Daemon
from node.testing.files import free_ports, node_document, to_toml
from node.testing.harness import DEADLINE_S, Harness, MeshTestError

T = TypeVar("T")

POLL_S = 0.01


class DaemonMesh(Harness):
    """Daemons by their names, and what can be done to a process."""

    daemons: dict[str, Daemon]

    def close(self) -> None:
        """Ends every process that was started."""
        for daemon in self.daemons.values():
            if daemon.is_running:
                daemon.signal(signal.SIGCONT)
            daemon.kill()

    def nodes(self) -> list[str]:
        return list(self.daemons)

    def __getitem__(self, name: str) -> Daemon:
        try:
            return self.daemons[name]
        except KeyError:
            raise MeshTestError(f"no node is called {name}; there are {', '.join(self.daemons)}") from None

    def running(self) -> list[Daemon]:
        return [daemon for daemon in self.daemons.values() if daemon.is_running]

    def any_running(self) -> Daemon:
        return self[super().any_running().name]

    def kill(self, name: str) -> None:
        self[name].kill()

    def stop(self, name: str) -> None:
        code = self[name].stop()
        if code != 0:
            raise MeshTestError(f"{name} stopped with exit code {code}\n{self[name].last_words()}")

    def pause(self, name: str) -> None:
        self[name].signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self[name].signal(signal.SIGCONT)

    def restart(self, name: str) -> None:
        self[name].start()

    @property
    def now(self) -> float:
        return time.monotonic()

    def run_for(self, seconds: float) -> None:
        time.sleep(seconds)

    def wait(self, what: str, condition: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T:
        ends_at = time.monotonic() + deadline_s
        while True:
            result = condition()
            if result:
                return result
            if time.monotonic() > ends_at:
                raise self._failed_wait(what, deadline_s)
            time.sleep(POLL_S)


class LocalMesh(DaemonMesh):
    """Core daemons `node-1` ... `node-N` and Edge daemons `edge-1` ... `settings` are merged into every configuration,
    section by section."""

    def __init__(
        self,
        directory: Path,
        cores: int = 3,
        *,
        edges: int = 0,
        name: str = "test",
        settings: Mapping[str, Mapping[str, object]] | None = None,
        zeroconf: bool = True,
        with_seeds: bool = False,
        secret: MeshSecret | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.name = name
        directory.mkdir(parents=True, exist_ok=True)
        self.secret_file = directory / "secret"
        if not self.secret_file.exists():
            (secret or MeshSecret.new()).save(self.secret_file)
        ports = free_ports(2 * (cores + edges))
        self.daemons: dict[str, Daemon] = {}
        names = [f"node-{number}" for number in range(1, cores + 1)]
        names += [f"edge-{number}" for number in range(1, edges + 1)]
        for name_of_node in names:
            daemon = Daemon(
                name=name_of_node,
                directory=directory / name_of_node,
                http_host="127.0.0.1",
                http_port=ports.pop(),
                mesh_port=ports.pop(),
                environment=environment or {},
            )
            self.daemons[daemon.name] = daemon
        seeds = [f"127.0.0.1:{daemon.mesh_port}" for daemon in self.daemons.values()] if with_seeds else []
        for daemon in self.daemons.values():
            self.configure(daemon, cores, zeroconf, seeds, settings or {})

    def configure(
        self,
        daemon: Daemon,
        cores: int,
        zeroconf: bool,
        seeds: list[str],
        settings: Mapping[str, Mapping[str, object]],
    ) -> None:
        """Writes the daemon's configuration file."""
        daemon.directory.mkdir(exist_ok=True)
        mesh: dict[str, object] = {
            "name": self.name,
            "secret_file": str(self.secret_file),
            "bind": "127.0.0.1",
            "port": daemon.mesh_port,
            "bootstrap_expect": cores,
            "zeroconf": zeroconf,
            "seeds": seeds,
        }
        document = node_document(
            name=daemon.name,
            tier="edge" if daemon.name.startswith("edge") else "core",
            directory=daemon.directory,
            mesh=mesh,
            http=(daemon.http_host, daemon.http_port),
            settings=settings,
        )
        daemon.config_path.write_text(to_toml(document))

    def start(self, deadline_s: float = DEADLINE_S) -> str:
        """Starts all daemons that do not run and waits until they serve; answers the leader's name."""
        for daemon in self.daemons.values():
            if not daemon.is_running:
                daemon.start()
        return self.wait_ready(deadline_s)
