"""What a virtual node has of its own in place of what needs a machine: disk, threads, processes, sockets.

Everything else is the product as it is: `node.app.Node` puts it together, links shake hands and speak TLS, HTTP is
served by the same application.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import aiohttp.web_app

import mesh.links.listener
import node.app
import node.executor.pool
import node.http.inward
import node.leaf.app
import node.share
from mesh.links.streams import OnStream
from mesh.mesh import Mesh
from node.config import Config
from node.rituals.definition import declaration_of
from node.rituals.registry import Registry
from node.testing.virtual.driver import VirtualGroup
from node.testing.virtual.lockstep import sleep
from node.testing.virtual.network import Network, VirtualSocket
from node.testing.virtual.process import current_process
from node.testing.virtual.worker import VirtualWorker, spawn
from node.testing.virtual.workshop import VirtualWorkshop


class VirtualLinks(Mesh):
    """Without streams, which are for another thread."""

    def start_streams(self, on_stream: OnStream) -> None:
        """Frames take the links."""


class VirtualRegistry(Registry):
    @classmethod
    def load(cls, extra: Any = None, *, entry_points: bool = True) -> Registry:
        return current_process().machine.mesh.registry


class VirtualLock:
    """A machine has one process at a time, and the kernel knows nothing of its death."""

    def __init__(self, directory: object) -> None:
        pass

    def release(self) -> None:
        pass


def forget_applications() -> None:
    """aiohttp remembers how it answered the last thousand kinds of requests, and with them whole nodes."""
    remembered = getattr(aiohttp.web_app, "_cached_build_middleware", None)
    if remembered is not None:
        remembered.cache_clear()


def registry_of(installed: Registry, given: Any) -> Registry:
    """Installed rituals and those of the test, which go before."""
    definitions = {
        name: declaration_of(function).definition(name, f"{function.__module__}:{function.__qualname__}", "test")
        for name, function in given.items()
    }
    return Registry({**installed, **definitions}, installed.problems)


@contextlib.contextmanager
def virtual_parts(network: Network) -> Iterator[None]:
    """While it lasts, nodes are made of them."""

    def open_store(config: Config) -> Any:
        return current_process().machine.store

    def workshop(store: Any, folder: object) -> VirtualWorkshop:
        return VirtualWorkshop(store, current_process().machine.snapshot_part)

    def open_sockets(host: str, port: int, *, has_secret: bool) -> list[VirtualSocket]:
        return [network.bind(host, port)]

    with contextlib.ExitStack() as patches:
        for module, name, part in (
            (node.app, "open_store", open_store),
            (node.app, "Workshop", workshop),
            (node.app, "Registry", VirtualRegistry),
            (node.app, "Mesh", VirtualLinks),
            (node.leaf.app, "Registry", VirtualRegistry),
            (node.leaf.app, "DirectoryLock", VirtualLock),
            (node.http.inward, "socket", network),
            (node.share, "Group", VirtualGroup),
            (time, "sleep", sleep),
            (node.executor.pool, "spawn", spawn),
            (node.executor.pool, "WorkerProcess", VirtualWorker),
            (mesh.links.listener, "open_sockets", open_sockets),
        ):
            patches.enter_context(mock.patch.object(module, name, part))
        yield
