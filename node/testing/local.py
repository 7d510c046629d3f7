"""Daemons on this machine that form a mesh."""

import contextlib
import http.client
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from mesh.secrets import MeshSecret
from node.testing.daemon import DEADLINE_S, Daemon, MeshTestError
from node.testing.files import free_ports, to_toml

T = TypeVar("T")

POLL_S = 0.01


class LocalMesh:
    """Daemons `node-1` ... `node-N`. `settings` are merged into every configuration, section by section."""

    def __init__(
        self,
        directory: Path,
        cores: int = 3,
        *,
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
        ports = free_ports(2 * cores)
        self.daemons: dict[str, Daemon] = {}
        for number in range(1, cores + 1):
            daemon = Daemon(
                name=f"node-{number}",
                directory=directory / f"node-{number}",
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
        document: dict[str, dict[str, object]] = {
            "node": {"name": daemon.name, "tier": "core", "data_dir": str(daemon.directory / "data")},
            "mesh": {
                "name": self.name,
                "secret_file": str(self.secret_file),
                "bind": "127.0.0.1",
                "port": daemon.mesh_port,
                "bootstrap_expect": cores,
                "zeroconf": zeroconf,
                "seeds": seeds,
            },
            "http": {"bind": daemon.http_host, "port": daemon.http_port},
            "log": {"format": "json"},
        }
        for section, values in settings.items():
            document.setdefault(section, {}).update(values)
        daemon.config_path.write_text(to_toml(document))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process that was started."""
        for daemon in self.daemons.values():
            if daemon.is_running:
                daemon.signal(signal.SIGCONT)
            daemon.kill()

    def start(self, deadline_s: float = DEADLINE_S) -> str:
        """Starts all daemons that do not run and waits until they serve; answers the leader's name."""
        for daemon in self.daemons.values():
            if not daemon.is_running:
                daemon.start()
        return self.wait_ready(deadline_s)

    def wait_ready(self, deadline_s: float = DEADLINE_S) -> str:
        """Waits until every running daemon is ready and all name the same leader, which is one of them."""

        def all_ready() -> str | None:
            for daemon in self.running():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    if daemon.call("GET", "/readyz", timeout_s=5).status == 200:
                        continue
                return None
            return self._agreed_leader()

        return self.wait("every node is ready and agrees on a leader", all_ready, deadline_s)

    def running(self) -> list[Daemon]:
        return [daemon for daemon in self.daemons.values() if daemon.is_running]

    def __getitem__(self, name: str) -> Daemon:
        return self.daemons[name]

    def leader(self, deadline_s: float = DEADLINE_S) -> str:
        """Name of the leader that the running daemons agree on."""
        return self.wait("the nodes agree on a leader", self._agreed_leader, deadline_s)

    def followers(self) -> list[str]:
        leader = self.leader()
        return [daemon.name for daemon in self.running() if daemon.name != leader]

    def kill(self, name: str) -> None:
        """SIGKILL: nothing is said, nothing is saved."""
        self.daemons[name].kill()

    def pause(self, name: str) -> None:
        """SIGSTOP: the process hears nothing and says nothing, its connections stay open."""
        self.daemons[name].signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.daemons[name].signal(signal.SIGCONT)

    def restart(self, name: str) -> None:
        """Starts it again with the same data directory; does not wait."""
        self.daemons[name].start()

    def any_running(self) -> Daemon:
        running = self.running()
        if not running:
            raise MeshTestError("no daemon is running")
        return running[0]

    def submit(self, body: Mapping[str, object] | None = None, *, on: str | None = None, **fields: object) -> Any:
        """Submits a session; answers the created session. The body is that of `POST /v1/sessions`."""
        daemon = self.daemons[on] if on is not None else self.any_running()
        answer = daemon.call("POST", "/v1/sessions", {**(body or {}), **fields})
        return answer.expect(200, 201)["session"]

    def session(self, session_id: str, *, on: str | None = None) -> Any:
        daemon = self.daemons[on] if on is not None else self.any_running()
        return daemon.call("GET", f"/v1/sessions/{session_id}").expect(200)["session"]

    def wait_session(self, session_id: str, deadline_s: float = 60.0, *, on: str | None = None) -> Any:
        """Waits until the session is completed, failed or cancelled, over the loss of nodes; answers the session."""

        def finished() -> Any | None:
            daemon = self.daemons[on] if on is not None else self.any_running()
            try:
                answer = daemon.call("GET", f"/v1/sessions/{session_id}?wait=5s&until=terminal", timeout_s=10)
            except (OSError, http.client.HTTPException):
                return None
            session = answer.body.get("session", {}) if answer.status == 200 else {}
            return session if session.get("status") in ("completed", "failed", "cancelled") else None

        return self.wait(f"session {session_id} ends", finished, deadline_s)

    def wait(self, what: str, condition: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T:
        """Asks until the condition answers something true; MeshTestError with the daemons' last words after that."""
        ends_at = time.monotonic() + deadline_s
        while True:
            result = condition()
            if result:
                return result
            if time.monotonic() > ends_at:
                words = "\n".join(daemon.last_words() for daemon in self.daemons.values())
                raise MeshTestError(f"after {deadline_s} s it is still not so that {what}\n{words}")
            time.sleep(POLL_S)

    def _agreed_leader(self) -> str | None:
        leaders = set()
        for daemon in self.running():
            status = daemon.status()
            leaders.add(((status or {}).get("leader") or {}).get("name"))
        running = {daemon.name for daemon in self.running()}
        return leaders.pop() if len(leaders) == 1 and leaders <= running else None
