"""Meshes on loopback for tests: no multicast unless asked for, a log that is kept, and conditions instead of sleeps.

And a peer made by hand, for what no node of ours would say.
"""

import asyncio
import contextlib
import gc
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from mesh.handshake import Hello
from mesh.identity import Identity, new_instance_id
from mesh.links.frames import Kind
from mesh.mesh import Mesh, MeshSettings
from mesh.proposals import FoundingRecord
from mesh.secrets import MeshSecret, Secrets
from mesh.trust import make_trust
from storage.ids import InstanceId, NodeId

SECRET = MeshSecret(b"0123456789abcdef0123456789abcdef")
DEADLINE_S = 20.0


class KeptLog:
    """A logger that remembers (level, event, fields)."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def debug(self, event: str, **fields: Any) -> None:
        self.lines.append(("debug", event, fields))

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append(("warning", event, fields))

    def error(self, event: str, **fields: Any) -> None:
        self.lines.append(("error", event, fields))

    def refusals(self, reason: str) -> list[dict[str, Any]]:
        """Warnings about refused links with this reason."""
        return [
            fields
            for level, event, fields in self.lines
            if level == "warning" and event.startswith("link_refused") and fields["reason"] == reason
        ]

    def errors(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [line for line in self.lines if line[0] == "error"]


class MemoryFounding:
    """A founding store that survives as long as the object."""

    def __init__(self) -> None:
        self.record: FoundingRecord | None = None

    def load(self) -> FoundingRecord | None:
        return self.record

    def save(self, record: FoundingRecord) -> None:
        self.record = record


class Site:
    """Makes meshes under one directory, and stops whatever was started."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[Mesh] = []
        self.logs: dict[str, KeptLog] = {}
        self.stores: dict[str, MemoryFounding] = {}

    def make(
        self,
        name: str,
        *,
        secret: MeshSecret | None = SECRET,
        seeds: Sequence[str] = (),
        instance_id: InstanceId | None = None,
        data: str = "",
        clock: Callable[[], float] = time.time,
        **changes: Any,
    ) -> Mesh:
        data_dir = self._directory / (data or name)
        settings = MeshSettings(
            **{
                "mesh_name": "test",
                "node_name": name,
                "data_dir": data_dir,
                "bind_host": "127.0.0.1",
                "port": 0,
                "seeds": tuple(seeds),
                "zeroconf": False,
                **changes,
            }
        )
        log = self.logs.setdefault(name, KeptLog())
        store = self.stores.setdefault(name, MemoryFounding())
        identity = Identity.load_or_create(data_dir / "identity")
        secrets = None if secret is None else Secrets(secret)
        if settings.secret_file is not None:
            secrets = Secrets.load(settings.secret_file)
        return Mesh(settings, identity, instance_id or new_instance_id(), secrets, store, log, clock=clock)

    async def start(self, name: str, **changes: Any) -> Mesh:
        mesh = self.make(name, **changes)
        self._running.append(mesh)
        await mesh.start()
        return mesh

    async def stop(self) -> None:
        for mesh in self._running:
            await mesh.stop()


@asynccontextmanager
async def site(directory: Path) -> AsyncIterator[Site]:
    """A Site that leaves nothing: no task, no transport, and no error in any log."""
    before = asyncio.all_tasks()
    made = Site(directory)
    try:
        yield made
    finally:
        await made.stop()
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - before
        gc.collect()  # an unclosed transport warns here, and warnings are errors
        assert not left, left
    for name, log in made.logs.items():
        assert not log.errors(), f"{name}: {log.errors()}"


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait until the condition holds; fail with `what` after DEADLINE_S."""
    async with asyncio.timeout(DEADLINE_S) as deadline:
        while not condition():
            if deadline.expired():
                break
            await asyncio.sleep(0.005)
    assert condition(), what


def address(mesh: Mesh) -> str:
    return f"127.0.0.1:{mesh.port}"


async def linked(*meshes: Mesh) -> None:
    """Wait until every one is linked to every other."""
    for one in meshes:
        for other in meshes:
            if one is not other:
                await until(partial(one.is_up, other.node_id), f"{one.settings.node_name} is not linked")


def run(scenario: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """Scenarios are coroutines taking the test's directory; asyncio.run also ends the default executor's threads."""

    def test(tmp_path: Path) -> None:
        asyncio.run(scenario(tmp_path))

    test.__name__ = scenario.__name__
    test.__doc__ = scenario.__doc__
    return test


# --- a peer made by hand ---


def claims(node_id: NodeId) -> dict[str, object]:
    return {
        "protocol_min": 1,
        "protocol_max": 1,
        "mesh_name": "test",
        "node_id": node_id,
        "instance_id": "0011223344556677",
        "node_name": "stranger",
        "tier": "core",
    }


def encoded(hello: dict[str, object] | Hello) -> bytes:
    return msgspec.msgpack.encode(hello)


@asynccontextmanager
async def stranger(
    directory: Path, mesh: Mesh, identity: Identity | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, NodeId]]:
    """TLS with the right secret, and then whatever a test wants to say."""
    identity = identity or Identity.generate()
    context = make_trust(identity, Secrets(SECRET), "test", time.time()).client
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port, ssl=context, server_hostname="")
    try:
        yield reader, writer, identity.node_id
    finally:
        await close(writer)


async def read_frame(reader: asyncio.StreamReader) -> tuple[Kind, bytes]:
    length, kind = struct.unpack("!IB", await reader.readexactly(5))
    return Kind(kind), await reader.readexactly(length - 1)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()
