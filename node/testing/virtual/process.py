"""A machine of the virtual mesh, and one life of the daemon on it: `node.app.Node` as it is."""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context as ContextVars
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh.identity import KEY_FILE, write_private
from mesh.tiers import LEAF
from node.app import Node
from node.config import Config
from node.leaf.app import Leaf
from node.rituals.context import Context
from node.testing.harness import DEADLINE_S, Answer
from node.testing.virtual.lockstep import Lockstep
from node.testing.virtual.loop import CURRENT, Life
from node.testing.virtual.network import Host
from node.wiring import STORE_TABLES
from storage.memory import MemoryStore

if TYPE_CHECKING:
    from node.testing.virtual.mesh import VirtualMesh

SAID_MAX = 200
"""Log lines kept of a node: enough to see what led to a failure."""


class Process(Life):
    """One life of a daemon."""

    def __init__(self, machine: "Machine") -> None:
        super().__init__()
        self.machine = machine
        self._stopping = asyncio.Event()
        self._pids = 0
        self._context: ContextVars = copy_context()
        self._context.run(CURRENT.set, self)

    @property
    def rituals(self) -> Mapping[str, Callable[[Context], Any]]:
        return self.machine.mesh.rituals

    @property
    def cpu_s(self) -> Mapping[str, float]:
        return self.machine.mesh.cpu_s

    def start(self, loop: asyncio.AbstractEventLoop) -> "asyncio.Task[None]":
        return self._context.run(loop.create_task, self._live())

    def stop(self) -> None:
        """It ends by itself soon."""
        self._stopping.set()

    def lockstep(self, work: Callable[[], Callable[[], list[Any]]]) -> Lockstep:
        """A CPU ritual, which the mesh ends at last."""
        ritual = Lockstep(work)
        self.machine.mesh.locksteps[ritual] = None
        return ritual

    def forget(self, ritual: Lockstep) -> None:
        """It is done."""
        del self.machine.mesh.locksteps[ritual]

    def next_pid(self) -> int:
        """Of its next worker."""
        self._pids += 1
        return self._pids

    async def _live(self) -> None:
        config = self.machine.config
        async with Leaf(config) if config.node.tier == LEAF else Node(config) as node:
            stopped = asyncio.create_task(self._stopping.wait())
            failed = asyncio.create_task(node.wait_failed())
            await asyncio.wait([stopped, failed], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            failed.cancel()
        if failed.done() and not failed.cancelled():
            failed.result()


class Machine:
    """What outlives a process: a disk, an address, a configuration. In the words of the harness it is the node."""

    def __init__(self, mesh: "VirtualMesh", name: str, host: Host, dice: random.Random, config: Config) -> None:
        self.mesh = mesh
        self._name = name
        self.host = host
        self.dice = dice
        self.config = config
        self.store = MemoryStore(STORE_TABLES)
        self.snapshot_part = bytearray()
        self.said: deque[str] = deque(maxlen=SAID_MAX)
        self.process: Process | None = None
        self._make_identity(config.data_dir / "identity")

    @property
    def name(self) -> str:
        return self._name

    @property
    def is_running(self) -> bool:
        return self.process is not None

    def call(self, method: str, path: str, body: object = None, timeout_s: float = DEADLINE_S) -> Answer:
        return self.mesh.request(self, method, path, body, timeout_s)

    def status(self, timeout_s: float = 5.0) -> Any:
        try:
            answer = self.call("GET", "/status", timeout_s=timeout_s)
        except OSError:
            return None
        return answer.body if answer.status == 200 else None

    def last_words(self, lines: int = 15) -> str:
        state = "runs" if self.is_running else "does not run"
        return "\n".join([f"--- {self.name} ({state})", *list(self.said)[-lines:]])

    def _make_identity(self, directory: Path) -> None:
        """Drawn, so that a seed has the same ids every time."""
        directory.mkdir(mode=0o700, parents=True)
        key = Ed25519PrivateKey.from_private_bytes(self.dice.randbytes(32))
        write_private(directory / KEY_FILE, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def current_process() -> Process:
    """The one whose code runs."""
    life = CURRENT.get()
    assert isinstance(life, Process), "this is done by a node, not by the world"
    return life
