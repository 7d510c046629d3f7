"""TCP between the processes of one virtual loop: ordered, with a latency, cut and slowed on demand.

Who is cut off is not told: what was sent waits, as TCP would repeat it, connections that are being made wait too, and
all of it arrives when the network is healed. A process that dies closes its connections, as its kernel would.
"""

import asyncio
import errno
import random
import socket
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from node.testing.virtual.loop import CURRENT, WORLD, Life, VirtualLoop

LATENCY_S = 0.0005
"""Of a frame, at most half as much again: a local network."""

SOCKET_BYTES = 256 * 1024
"""What a kernel takes before the sender has to wait."""

CLIENTS = "127.0.0.1"
"""Where those are that belong to no process; nothing cuts them off."""

_EOF = b""
_EPHEMERAL = 40_000

Protocol = asyncio.BaseProtocol


@dataclass(eq=False)
class Host:
    """A machine with one address, on which one process at a time lives."""

    name: str
    address: str
    life: Life | None = None
    ends: dict["End", None] = field(default_factory=dict)
    """Of the connections of its process, in the order in which they were made."""


class VirtualSocket:
    """What shells ask of a socket."""

    family, type, proto = socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP

    def __init__(self, own: tuple[str, int], peer: tuple[str, int] | None = None) -> None:
        self._own, self._peer = own, peer

    def getsockname(self) -> tuple[str, int]:
        return self._own

    def getpeername(self) -> tuple[str, int] | None:
        return self._peer

    end: "End"
    """Of one of a pair of sockets."""

    def fileno(self) -> int:
        return -1

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def setsockopt(self, *arguments: object) -> None:
        """There is nothing to set."""

    def close(self) -> None:
        """Its server closes it."""


class Server:
    """A port that is listened on."""

    def __init__(self, network: "Network", host: Host, port: int, factory: Callable[[], Protocol]) -> None:
        self.host, self.factory, self.context = host, factory, copy_context()
        self.life = host.life
        self.sockets = (VirtualSocket((host.address, port)),)
        self._network = network
        self.key = (host.address, port)

    def close(self) -> None:
        if self._network.servers.get(self.key) is self:
            del self._network.servers[self.key]

    def is_serving(self) -> bool:
        return self._network.servers.get(self.key) is self

    async def wait_closed(self) -> None:
        """Its connections belong to their protocols."""


class End(asyncio.Transport):
    """One end of a connection. What arrives is given to its protocol in the process that it belongs to."""

    def __init__(self, network: "Network", host: Host, own: tuple[str, int], peer: tuple[str, int]) -> None:
        super().__init__({"socket": VirtualSocket(own, peer), "sockname": own, "peername": peer})
        self._network, self.host = network, host
        self._context: Context = WORLD
        self._protocol: Any = None
        self._is_reading = True
        self._is_closing = self._is_over = self._has_sent_eof = False
        self._unread: deque[bytes] = deque()
        self._sent: deque[tuple[float, bytes]] = deque()
        """On its way: when it is due, and what; `_EOF` ends this direction."""
        self._sent_bytes = 0
        self._is_full = False
        self._high, self._low = 64 * 1024, 16 * 1024
        self.other: End = self
        host.ends[self] = None

    def made(self, protocol: Protocol, context: Context) -> None:
        self._protocol, self._context = protocol, context
        protocol.connection_made(self)
        self._read()

    # -- as a transport --

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._soon(self._read)

    def is_closing(self) -> bool:
        return self._is_closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * 1024 if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return max(self._sent_bytes - SOCKET_BYTES, 0)

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self._is_closing and not self._has_sent_eof:
            self._send(bytes(data))
            if not self._is_full and self.get_write_buffer_size() > self._high:
                self._is_full = True
                self._protocol.pause_writing()

    def write_eof(self) -> None:
        if not self._has_sent_eof and not self._is_closing:
            self._has_sent_eof = True
            self._send(_EOF)

    def close(self) -> None:
        if not self._is_closing:
            self.write_eof()
            self._is_closing = True
            self._soon(self._lose, None)

    def abort(self) -> None:
        self.close()

    # -- for the network --

    def vanish(self) -> None:
        """Its process is dead."""
        self.write_eof()
        self._is_closing = self._is_over = True

    def flush(self) -> None:
        """Something may arrive now that could not."""
        for due, _ in self._sent:
            self._network.at(due, self._arrive)

    def _send(self, data: bytes) -> None:
        due = max(self._network.due(self.host, self.other.host), self._sent[-1][0] if self._sent else 0.0)
        self._sent.append((due, data))
        self._sent_bytes += len(data)
        self._network.at(due, self._arrive)

    def _arrive(self) -> None:
        if self._network.is_cut(self.host, self.other.host):
            return  # until it is healed
        while self._sent and self._sent[0][0] <= self._network.loop.time():
            _, data = self._sent.popleft()
            self._sent_bytes -= len(data)
            if not self.other._is_over:
                self.other._soon(self.other._take, data)
            elif data:  # nobody listens: its kernel says so
                self._soon(self._lose, ConnectionResetError(errno.ECONNRESET, "the peer is gone"))
        if self._is_full and self.get_write_buffer_size() <= self._low:
            self._is_full = False
            self._soon(self._resume_writing)

    # -- in the process --

    def _soon(self, do: Callable[..., None], *arguments: object) -> None:
        self._network.loop.call_soon(do, *arguments, context=self._context)

    def _take(self, data: bytes) -> None:
        self._unread.append(data)
        self._read()

    def _read(self) -> None:
        while self._unread and self._is_reading and not self._is_over and self._protocol is not None:
            data = self._unread.popleft()
            if data:
                self._protocol.data_received(data)
            elif not self._protocol.eof_received():
                self.close()

    def _resume_writing(self) -> None:
        if not self._is_over:
            self._protocol.resume_writing()

    def _lose(self, error: Exception | None) -> None:
        if not self._is_over:
            self._is_closing = self._is_over = True
            self.host.ends.pop(self, None)
            self._protocol.connection_lost(error)


class Network:
    def __init__(self, loop: VirtualLoop, dice: random.Random) -> None:
        self.loop = loop
        self.servers: dict[tuple[str, int], Server] = {}
        self._dice = dice
        self._hosts: dict[str, Host] = {}
        self._clients = Host("client", CLIENTS)
        self._cut: set[tuple[str, str]] = set()
        """Directions, by names of hosts."""
        self._slow: dict[tuple[str, str], float] = {}
        self._healed: asyncio.Future[None] | None = None
        self._last_port = _EPHEMERAL
        loop.tcp = self

    def add_host(self, name: str, address: str) -> Host:
        host = self._hosts[address] = Host(name, address)
        return host

    # -- what goes wrong --

    def cut(self, source: str, target: str) -> None:
        """Nothing goes from the one to the other."""
        self._cut.add((source, target))

    def slow(self, source: str, target: str, delay_s: float) -> None:
        self._slow[source, target] = delay_s

    def heal(self) -> None:
        self._cut.clear()
        self._slow.clear()
        if self._healed is not None:
            self._healed.set_result(None)
            self._healed = None
        for host in self._hosts.values():
            for end in host.ends:
                end.flush()
                end.other.flush()

    def end_of(self, host: Host) -> None:
        """Its process is dead."""
        host.life = None
        for server in [server for server in self.servers.values() if server.host is host]:
            server.close()
        for end in host.ends:
            end.vanish()
        host.ends.clear()

    # -- for connections --

    def is_cut(self, source: Host, target: Host) -> bool:
        return (source.name, target.name) in self._cut

    def due(self, source: Host, target: Host) -> float:
        if source is target:
            return self.loop.time()
        delay_s = LATENCY_S * (1 + self._dice.random() / 2)
        return self.loop.time() + delay_s + self._slow.get((source.name, target.name), 0.0)

    def at(self, due: float, do: Callable[[], None]) -> None:
        self.loop.call_at(due, do, context=WORLD)

    # -- for the loop --

    def bind(self, host: str, port: int) -> VirtualSocket:
        """As `listener.open_sockets`, for the process that asks."""
        return VirtualSocket((host, port or self._port()))

    def listen(
        self, factory: Callable[[], Protocol], host: str | None, port: int | None, sock: VirtualSocket | None
    ) -> Server:
        address, number = (host or "", port or 0) if sock is None else sock.getsockname()
        number = number or self._port()
        if (address, number) in self.servers:
            raise OSError(errno.EADDRINUSE, f"{address}:{number} is in use")
        server = self.servers[address, number] = Server(self, self._hosts[address], number, factory)
        return server

    def socketpair(self) -> tuple[VirtualSocket, VirtualSocket]:
        """Within the process that asks."""
        host, name = self._host_of(CURRENT.get()), ("", 0)
        ours, theirs = End(self, host, name, name), End(self, host, name, name)
        ours.other, theirs.other = theirs, ours
        sockets = VirtualSocket(name, name), VirtualSocket(name, name)
        sockets[0].end, sockets[1].end = ours, theirs
        return sockets

    def attach(self, factory: Callable[[], Protocol], sock: VirtualSocket) -> tuple[End, Protocol]:
        protocol = factory()
        sock.end.made(protocol, copy_context())
        return sock.end, protocol

    async def connect(self, factory: Callable[[], Protocol], host: str, port: int) -> tuple[End, Protocol]:
        source, target = self._host_of(CURRENT.get()), self._hosts.get(host)
        if target is None:
            raise OSError(errno.EHOSTUNREACH, f"nobody is at {host}")
        while self.is_cut(source, target) or self.is_cut(target, source):
            if self._healed is None:
                self._healed = self.loop.create_future()
            await asyncio.shield(self._healed)
        await asyncio.sleep(self.due(source, target) + self.due(target, source) - 2 * self.loop.time())
        server = self.servers.get((host, port))
        if server is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at {host}:{port}")
        own, peer = (source.address, self._port()), (host, port)
        ours, theirs = End(self, source, own, peer), End(self, target, peer, own)
        ours.other, theirs.other = theirs, ours
        theirs._context = server.context
        self.loop.call_soon(lambda: theirs.made(server.factory(), server.context), context=server.context)
        protocol = factory()
        ours.made(protocol, copy_context())
        return ours, protocol

    def _host_of(self, life: Life | None) -> Host:
        return next((host for host in self._hosts.values() if life is not None and host.life is life), self._clients)

    def _port(self) -> int:
        self._last_port += 1
        return self._last_port
