"""The listening port: which addresses to bind, and how many strangers may be at the door at once."""

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from mesh.errors import BindError
from mesh.limits import HANDSHAKES_PENDING_MAX, HANDSHAKES_PENDING_PER_ADDRESS_MAX
from mesh.links.book import join_address, neighbourhood
from mesh.supervise import Supervisor

Greet = Callable[[asyncio.Transport, str], Coroutine[Any, Any, None]]
"""Takes a raw TCP transport (reading paused) and the remote address; owns the transport from then on."""

_BACKLOG = 128


class Doorstep(asyncio.Protocol):
    """A TCP connection before TLS: nothing is read until `start_tls` takes the transport over."""

    def __init__(self, on_made: Callable[[asyncio.Transport], None] | None = None) -> None:
        self._on_made = on_made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # or the first bytes would come here and be lost to TLS
        if self._on_made is not None:
            self._on_made(transport)


class Listener:
    """Accepts connections and hands each to `greet` in a supervised task."""

    def __init__(self, greet: Greet, refused: Callable[[str, str, str], None], tasks: Supervisor) -> None:
        self._greet = greet
        self._refused = refused
        self._tasks = tasks
        self._servers: list[asyncio.Server] = []
        self._greeted: dict[str, dict[asyncio.Task[None], str]] = {}
        """By neighbourhood, the oldest first: who has not said who he is, and his address."""
        self.port = 0

    async def start(self, host: str, port: int, *, has_secret: bool) -> None:
        """Bind and listen. Errors: BindError `secret_required`, `port_in_use`, `bind_failed`."""
        loop = asyncio.get_running_loop()
        for bound in open_sockets(host, port, has_secret=has_secret):
            self.port = bound.getsockname()[1]
            self._servers.append(await loop.create_server(lambda: Doorstep(self._knock), sock=bound, backlog=_BACKLOG))

    async def stop(self) -> None:
        """Stop listening; connections being greeted belong to the supervisor."""
        await stop_accepting(*self._servers)
        self._servers.clear()

    def _knock(self, transport: asyncio.Transport) -> None:
        name = transport.get_extra_info("peername")
        if not name:  # gone already
            transport.abort()
            return
        host = str(name[0]).removeprefix("::ffff:")
        remote = join_address(host, name[1])
        source = neighbourhood(host)
        if not self._has_room(len(self._greeted.get(source, ()))):
            self._turn_away(remote)
            transport.abort()
            return
        task = self._tasks.spawn(self._greet(transport, remote), f"mesh greet {remote}")
        if task is None:
            transport.abort()
            return
        self._greeted.setdefault(source, {})[task] = remote
        task.add_done_callback(lambda task: self._leave(source, task, transport))

    def _has_room(self, taken: int) -> bool:
        """For one more from where `taken` are from. If all places are taken it gets one of those who have the most."""
        if taken >= HANDSHAKES_PENDING_PER_ADDRESS_MAX:
            return False
        if sum(map(len, self._greeted.values())) < HANDSHAKES_PENDING_MAX:
            return True
        source = max(self._greeted, key=lambda source: len(self._greeted[source]))
        if len(self._greeted[source]) < taken + 2:
            return False
        oldest, remote = next(iter(self._greeted[source].items()))
        self._forget(source, oldest)
        self._turn_away(remote)
        oldest.cancel()
        return True

    def _turn_away(self, remote: str) -> None:
        self._refused("too_many_handshakes", remote, "too many connections that have not said who they are")

    def _leave(self, source: str, task: asyncio.Task[None], transport: asyncio.Transport) -> None:
        if task.cancelled():
            transport.abort()  # if it was cancelled before its first step it has closed nothing
        self._forget(source, task)

    def _forget(self, source: str, task: asyncio.Task[None]) -> None:
        greeted = self._greeted.get(source, {})
        greeted.pop(task, None)
        if not greeted:
            self._greeted.pop(source, None)


async def stop_accepting(*servers: asyncio.Server) -> None:
    """Closes them, once all that was accepted is handed over: what is on its way to a closed one is never closed."""
    loop = asyncio.get_running_loop()
    for server in servers:
        for bound in server.sockets:
            loop.remove_reader(bound.fileno())
    for _ in range(3):
        await asyncio.sleep(0)
    for server in servers:
        server.close()


def open_sockets(host: str, port: int, *, has_secret: bool) -> list[socket.socket]:
    """Bound sockets for `host` (`auto`: every IPv4 and IPv6 address on one port)."""
    if not has_secret and (host == "auto" or not is_loopback(host)):
        raise BindError(
            "secret_required",
            f"refusing to listen on {'all addresses' if host == 'auto' else host} without a mesh secret, as anybody "
            "could join: make one with `meshnode secret new`, copy it to every node and set [mesh] secret_file; "
            'or set [mesh] bind = "127.0.0.1" to stay on this machine',
        )
    if host != "auto":
        return [_open(host, port)]
    first = _open("0.0.0.0", port)  # noqa: S104 - the secret guards it
    sockets = [first]
    with contextlib.suppress(BindError):  # no IPv6 on this machine
        sockets.append(_open("::", first.getsockname()[1]))
    return sockets


def _open(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise BindError("bind_failed", f"cannot listen on {host}: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
        # Listening now, not when the loop gets to it: of two daemons on one port the second must fail here.
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise BindError(
                "port_in_use", f"port {port} on {host} is in use: stop the other program or set another [mesh] port"
            ) from error
        raise BindError(
            "bind_failed", f"cannot listen on {host}:{port}: {error.strerror}; check [mesh] bind"
        ) from error
    return bound


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine and nobody else."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
