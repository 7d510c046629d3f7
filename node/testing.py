"""A mesh of real daemons on this machine, with failures on demand: for the tests of people who write rituals, for the
project's own system tests, its benchmarks and its demonstration.

    with LocalMesh(folder, cores=3) as mesh:
        mesh.start()
        session = mesh.submit(thought="?", branches=[{"ritual": "echo", "task": "hello"}])
        mesh.kill(mesh.leader())
        mesh.wait_session(session["id"])

Every daemon is a process of its own with its own data directory, configuration and loopback ports; they find each other
by multicast on the loopback interface or by seeds. Everything blocks the calling thread and has a deadline; whatever
happens, leaving the `with` block ends every process that was started, by its process id.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from mesh.secrets import MeshSecret

T = TypeVar("T")

POLL_S = 0.01
DEADLINE_S = 30.0
"""Default for everything that waits: far beyond the usual, so that only a real failure meets it."""

STOP_DEADLINE_S = 10.0


class MeshTestError(Exception):
    """Something did not happen in time, or a node answered what was not asked for. The message carries the last words
    of the daemons."""


@dataclass(slots=True)
class Answer:
    """Of a node: HTTP status and decoded body."""

    status: int
    body: Any

    def expect(self, *statuses: int) -> Any:
        """The body, if the status is one of these; else MeshTestError."""
        if self.status not in statuses:
            raise MeshTestError(f"answered {self.status}, expected {statuses}: {self.body}")
        return self.body


@dataclass(slots=True)
class Daemon:
    """One `meshnode` process and where it lives. `prefix` goes before the command and `connect` reaches its HTTP port,
    for daemons that live in a network namespace of their own; `program` is what the interpreter runs."""

    name: str
    directory: Path
    http_host: str
    http_port: int
    mesh_port: int
    prefix: tuple[str, ...] = ()
    program: tuple[str, ...] = ("-m", "node")
    environment: Mapping[str, str] = field(default_factory=dict)
    connect: Callable[[str, int], socket.socket] | None = None
    process: subprocess.Popen[bytes] | None = None
    _connection: http.client.HTTPConnection | None = None

    @property
    def config_path(self) -> Path:
        return self.directory / "meshnode.toml"

    @property
    def log_path(self) -> Path:
        return self.directory / "log.jsonl"

    @property
    def url(self) -> str:
        return f"http://{self.http_host}:{self.http_port}"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        assert not self.is_running, f"{self.name} is running"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and files
                [*self.prefix, sys.executable, *self.program, "--config", str(self.config_path)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment},
                process_group=0,
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone. Its workers end by themselves."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._forget_connection()

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> int:
        """SIGTERM, as a service manager does; answers the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise MeshTestError(f"{self.name} did not stop within {deadline_s} s\n{self.last_words()}") from None
        finally:
            self._forget_connection()

    def call(self, method: str, path: str, body: object = None, timeout_s: float = DEADLINE_S) -> Answer:
        """One HTTP request over a kept connection. Raises OSError or http.client.HTTPException if the node is away."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self.http_host, self.http_port, timeout=timeout_s)
            if self.connect is not None:
                self._connection.sock = self.connect(self.http_host, self.http_port)
        connection = self._connection
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            if connection.sock is not None:
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            response = connection.getresponse()
            raw = response.read()
        except BaseException:
            self._forget_connection()
            raise
        is_json = "json" in response.headers.get("Content-Type", "")
        return Answer(response.status, json.loads(raw) if is_json else raw.decode(errors="replace"))

    def status(self, timeout_s: float = 5.0) -> Any | None:
        """The status document, or None if the node does not answer."""
        try:
            return self.call("GET", "/status", timeout_s=timeout_s).expect(200)
        except (OSError, http.client.HTTPException, MeshTestError):
            return None

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def last_words(self, lines: int = 15) -> str:
        return "\n".join([f"--- {self.name}", *self.log_text().splitlines()[-lines:]])

    def _forget_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


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


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on, below the range that the kernel hands to outgoing connections, so that
    none of those takes one before the daemon does."""
    ports: list[int] = []
    dice = random.SystemRandom()
    while len(ports) < count:
        port = dice.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


def to_toml(document: Mapping[str, Mapping[str, object]]) -> str:
    """A document of sections whose values are strings, numbers, booleans or lists of strings."""

    def lines() -> Iterator[str]:
        for section, values in document.items():
            yield f"[{section}]"
            for key, value in values.items():
                yield f"{key} = {json.dumps(value)}"  # for these types JSON and TOML agree

    return "\n".join(lines()) + "\n"
