"""The daemon of a Leaf, from top to bottom.

Start: data directory (refused if another daemon has it) - identity - executor - HTTP - results that were not delivered
- uplink. Stop, within `STOP_S`: no new work - drain - deliver, or keep for the next start - uplink - HTTP.
"""

import asyncio
import contextlib
import gc
import random
from types import TracebackType

import structlog

from consensus.state.commands import Outcome
from consensus.state.versions import labelled
from mesh.identity import Identity, new_instance_id
from mesh.parents import Candidates
from mesh.secrets import Secrets
from mesh.tiers import LEAF
from mesh.uplink import Uplinks
from node import __version__, process
from node.common import (
    executor_settings,
    http_token,
    labels,
    mesh_settings,
    named_rituals,
    ritual_limits,
    ritual_offers,
)
from node.config import Config, join_host_port
from node.daemon import BaseDaemon
from node.executor.executor import Executor
from node.executor.work import AttemptKey
from node.http.guard import Guard
from node.leaf.http import LeafHttp
from node.leaf.multicast import Multicast
from node.leaf.outbox import Outbox
from node.leaf.status import Status
from node.leaf.uplink import Uplink
from node.process import STOP_S
from node.rituals.registry import Registry
from node.tiers import CONFIGURED
from node.uplinks.messages import Register, key_of
from storage.lock import DirectoryLock

OUTBOX_DIRECTORY = "results"

DRAIN_S = 2.0
"""For running rituals to finish; what is still running then is handed back and goes on elsewhere."""

DELIVER_S = 1.5
"""For the last results to be recorded; the others are kept for the next start."""

log = structlog.get_logger()


def run(config: Config, tier_why: str = CONFIGURED) -> int:
    """See `node.process.run`. `tier_why`: why it is a Leaf."""
    return process.run(lambda: Leaf(config, tier_why))


class Leaf(BaseDaemon):
    """One Leaf in this process: `async with Leaf(config) as leaf`."""

    def __init__(self, config: Config, tier_why: str = CONFIGURED) -> None:
        super().__init__()
        self._config = config
        self.tier_why = tier_why

    async def _start(self) -> None:
        config = self._config
        config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._exits.callback(DirectoryLock(config.data_dir).release)
        identity = Identity.load_or_create(config.data_dir / "identity")
        secrets = Secrets.load(config.secret_file) if config.secret_file is not None else None
        self.registry = await asyncio.to_thread(Registry.load, named_rituals(config))
        self.node_id = identity.node_id
        self.instance_id = new_instance_id()
        rng = random.Random()  # noqa: S311 - jitter and choices only
        self.links = Uplinks(mesh_settings(config, LEAF), identity, self.instance_id, secrets, log, rng)
        self._exits.push_async_callback(self.links.stop)
        multicast = Multicast(config.mesh.name, config.mesh.interfaces, is_wanted=config.mesh.zeroconf)
        self._exits.push_async_callback(multicast.close)
        self.outbox = Outbox(config.data_dir / OUTBOX_DIRECTORY, identity.sign, config.mesh.name)
        self.uplink = Uplink(
            config.node.name, self.links, Candidates(config.mesh.seeds), self.outbox, self._offer, multicast, rng
        )
        self.executor = self.uplink.executor = Executor(
            executor_settings(config, self.node_id),
            self.registry,
            on_outcome=self._on_outcome,
            on_live=self.uplink.publish,
            lookup_patterns=self.uplink.seen,
            on_event=lambda event, fields: log.info(event, **fields),
        )
        await asyncio.to_thread(self.outbox.open)
        await asyncio.to_thread(self.uplink.recall)
        status = Status(self)
        guard = Guard(config.http.bind, http_token(config), config.http.allow_unauthenticated)
        local = {"/status": status.document, "/healthz": status.health, "/readyz": status.readiness}
        self.http = LeafHttp(guard, config.http.bind, config.http.port, local, self.uplink.ask)
        self.links.start()
        await self.executor.start(is_warm=False)
        self._exits.push_async_callback(self.executor.stop)
        host, port = await self.http.start()
        self._exits.push_async_callback(self.http.stop)
        log.info("started", node=config.node.name, id=self.node_id, http=f"http://{join_host_port(host, port)}/")
        self.own("outbox", self.outbox.run())
        self.own("uplink", self.uplink.run())
        gc.collect()

    @property
    def config(self) -> Config:
        return self._config

    def look_at_secrets(self) -> None:
        self.links.look_at_secrets()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S - DELIVER_S):
                await self.uplink.farewell()
                await self.executor.drain(DRAIN_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DELIVER_S if self.uplink.parent is not None else 0):
                await self.outbox.wait_idle()
        await self._end_tasks()
        await self.outbox.keep()
        await self._exits.aclose()

    def _on_outcome(self, outcome: Outcome) -> None:
        self.outbox.add(outcome)
        self.uplink.ended(key_of(outcome))

    def _offer(self, running: list[AttemptKey]) -> Register:
        """What this instance registers with, or that it takes no more work."""
        config, takes_work = self._config, not self._is_stopping
        return Register(
            name=config.node.name,
            http_address=join_host_port(config.http.bind, config.http.port),
            slots=config.slots if takes_work else 0,
            async_slots=config.execution.async_slots if takes_work else 0,
            rituals=ritual_offers(self.registry),
            software=labelled(__version__),
            at_ms=self._registered_at_ms(),
            running=running,
            labels=labels(config),
            ritual_limits=ritual_limits(self.registry),
        )
