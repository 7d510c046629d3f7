"""One `meshnode` process and what can be asked of it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from node.testing.harness import DEADLINE_S, Answer, MeshTestError
from node.testing.lifeline import open_lifeline, tie

STOP_DEADLINE_S = 10.0


class Process(Protocol):
    """Of a daemon: what is needed of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""

    def send_signal(self, number: int, /) -> None: ...


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
    process: Process | None = None
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
        if self.is_running:
            raise MeshTestError(f"{self.name} runs: kill it or stop it first")
        with self.log_path.open("ab") as log:
            self.process = self._launch(log)

    def _launch(self, log: BinaryIO) -> Process:
        """In a process group of its own, so that Ctrl-C does not reach it; it ends with this process."""
        lifeline = open_lifeline()
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and files
                [*self.prefix, sys.executable, *self.program, "--config", str(self.config_path)],
                stdout=log,
                stderr=log,
                stdin=lifeline,
                env={**os.environ, **self.environment},
                process_group=0,
            )
            tie(lifeline, process.pid)
        finally:
            os.close(lifeline)
        return process

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone. Its workers end by themselves."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self._forget_connection()

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> int:
        """SIGTERM, as a service manager does; answers the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
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

    def status(self, timeout_s: float = 5.0) -> Any:
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
