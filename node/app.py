"""The daemon, from top to bottom: what is built from what, in which order things start, and how they stop.

Start: data directory (refused if another daemon has it) - identity - links - HTTP, so that a node that waits for others
can say so - founding - replica - registration - executor - scheduling.
Stop (SIGTERM, Ctrl-C), within `STOP_S`: no new work - drain - hand leadership over - replica - links - HTTP - store.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from types import TracebackType

import structlog

from consensus.changes import CHANGE
from consensus.courier import PROPOSE, READ_INDEX
from consensus.errors import ConsensusError, UpgradeRequired
from consensus.group import Group
from consensus.state import queries
from consensus.state.commands import Outcome, RegisterMember
from consensus.steps import ReplicaStatus
from mesh.errors import MeshError
from mesh.handshake import Hello
from mesh.identity import Identity, new_instance_id
from mesh.mesh import Mesh
from mesh.secrets import Secrets
from mesh.tiers import AUTO, LEAF
from node import __version__, process
from node.backups import Backups
from node.common import executor_settings, mesh_settings, named_rituals
from node.config import Config, join_host_port
from node.daemon import BaseDaemon
from node.disk import DiskWatch
from node.executor.executor import Executor
from node.http.inward import Inward
from node.live import TOPIC as LIVE_TOPIC
from node.live import LiveBoard
from node.lookout import Lookout
from node.process import STOP_S
from node.rituals.registry import Registry
from node.scheduler.testimony import TOPIC as TESTIMONY_TOPIC
from node.service import secrets as all_secrets
from node.service.backlog import Waits
from node.service.ports import NodeFacts
from node.service.service import NodeService
from node.service.sight import ASK_S, Sights
from node.service.sight import METHOD as SIGHT
from node.service.times import now_ms
from node.share import Share
from node.snapshots import METHOD as SNAPSHOT
from node.tiers import Decided, in_mesh
from node.uplinks.proxy import Proxy
from node.wiring import (
    FoundingRecords,
    decided_tier,
    http_server,
    open_store,
    registration,
    voting_policy,
)
from node.workshop import Workshop
from storage.errors import DiskFull, StorageError
from storage.ids import NodeId
from storage.space import Space

DRAIN_S = 2.0
"""Of that, for running rituals to finish; what is still running then is handed back and goes on elsewhere."""

HAND_OVER_S = 1.0
"""For another node to take leadership."""


log = structlog.get_logger()


def run(config: Config) -> int:
    """See `node.process.run`."""
    return process.run(lambda: Node(config))


class Node(BaseDaemon):
    """One daemon in this process: `async with Node(config) as node`. Usable by tests and benchmarks as it is."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config
        self._serving = asyncio.Event()
        self._leaves: set[NodeId] = set()
        """To whom there is a link; all else about them is the share's."""
        self._share: Share | None = None

    @property
    def group(self) -> Group:
        """Only after `wait_serving`."""
        assert self._share is not None, "the mesh is not founded yet"
        return self._share.group

    # -- start: in this order --

    async def _start(self) -> None:
        config = self._config
        self.store = await asyncio.to_thread(open_store, config)
        self.workshop = Workshop(self.store, config.data_dir)
        self._exits.callback(self.store.close)
        identity = Identity.load_or_create(config.data_dir / "identity")
        secrets = Secrets.load(config.secret_file) if config.secret_file is not None else None
        self.registry = await asyncio.to_thread(Registry.load, named_rituals(config))
        self.node_id = identity.node_id
        decided = decided_tier(config, self.node_id, self.store)
        self.facts = NodeFacts(
            node_id=identity.node_id,
            instance_id=new_instance_id(),
            name=config.node.name,
            tier=decided.tier,
            tier_why=decided.why,
            mesh_name=config.mesh.name,
            data_dir=str(config.data_dir),
            http_address=join_host_port(config.http.bind, config.http.port),
        )
        self.disk = DiskWatch(self.store, str(config.data_dir))
        self.live = LiveBoard(self.node_id, self._broadcast)
        records = FoundingRecords(self.store)
        self.mesh = Mesh(mesh_settings(config, decided.tier), identity, self.facts.instance_id, secrets, records, log)
        self.mesh.on_raft = self._on_raft
        self.mesh.on_notice = self._on_notice
        self.mesh.on_link_up = self._on_link_up
        self.mesh.on_link_down = self._on_link_down
        self.lookout = Lookout(self.node_id, self._notify, self.mesh.is_doubting, self._judge_anew)
        self.mesh.on_suspicion = self.lookout.suspicion
        self.mesh.on_doubt = self.lookout.doubt
        self.mesh.is_stalled = self._is_stalled
        self.executor = Executor(
            executor_settings(config, self.node_id),
            self.registry,
            on_outcome=self._on_outcome,
            on_live=self.live.publish,
            lookup_patterns=self._lookup_patterns,
            on_event=lambda event, fields: log.info(event, **fields),
        )
        self.service = NodeService(
            self.facts,
            mesh=self.mesh,
            registry=self.registry,
            live=self.live,
            store=self.store,
            disk=self.disk,
            backups=Backups(self.store, config.data_dir, self._backup_facts),
            now_ms=now_ms,
        )
        self.service.lookout = self.lookout
        self.http = http_server(config, self.service)
        self.inward = Inward(self.service)
        self._proxy = Proxy(self.mesh, self.inward.connect, self._has_leaf)
        self.mesh.serve(all_secrets.METHOD, all_secrets.serving(self.mesh))
        await self.mesh.start()
        self._exits.push_async_callback(self.mesh.stop)
        await self.executor.start()
        self._exits.push_async_callback(self.executor.stop)
        host, port = await self.http.start()
        self._exits.push_async_callback(self.http.stop)
        await self.inward.start()
        self._exits.push_async_callback(self.inward.stop)
        self._exits.push_async_callback(self.service.stop)
        log.info("started", node=config.node.name, id=self.node_id, http=f"http://{join_host_port(host, port)}/")
        self.own("disk watch", self.disk.run())
        self.own("taking part", self._take_part())

    async def _take_part(self) -> None:
        """Waits until this node belongs to a founded mesh, then does its share in it."""
        founding = await self.mesh.founded()
        if self._config.node.tier == AUTO:
            self._take_tier(decided_tier(self._config, self.node_id, self.store))
        share = Share(self, founding.voters, voting_policy(self._config))
        self.service.attach(
            share.group, self.executor, share.places.offer, share.snapshots, share.changes, share.steward
        )
        self.service.sights = sights = Sights(
            self.node_id, lambda: share.group.status().leader, self.lookout.outlook, share.dispatcher.stuck, self._ask
        )
        self.service.waits = waits = Waits(share.group)
        share.group.subscribe_events(waits.on_events)
        self.mesh.serve(PROPOSE, share.group.on_request)
        self.mesh.serve(READ_INDEX, share.group.on_read_request)
        self.mesh.serve(CHANGE, share.changes.on_request)
        self.mesh.serve(SNAPSHOT, share.snapshots.on_request)
        self.mesh.serve(SIGHT, sights.on_request)
        await share.snapshots.open()
        share.group.start()
        self._share = share
        for peer in self.lookout.linked():
            share.group.on_link_up(peer)
        self.mesh.start_streams(share.group.on_stream)
        for name, work in share.tasks():
            self.own(name, work)
        await share.register(self._registration)
        if self._config.node.tier == AUTO:
            share.group.subscribe_status(self._on_configuration)
            self._on_configuration(share.group.status())
        self._serving.set()

    async def wait_serving(self) -> None:
        """Returns when this node is a registered member of a founded mesh."""
        await self._serving.wait()

    def look_at_secrets(self) -> None:
        self.mesh.look_at_secrets()

    # -- stop: in this order --

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        share = self._share
        self._is_stopping = True
        if self.withdrawn is None:
            await self._take_leave(share)
        await self._end_tasks()
        if share is not None:
            share.snapshots.stop()
            share.parent.stop()
            await share.group.stop()
        await self._exits.aclose()

    async def _take_leave(self, share: Share | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S - HAND_OVER_S):
                if share is not None:
                    await share.take_no_more(self._registration())
                await self.executor.drain(DRAIN_S)
                if share is not None:
                    await share.reporter.wait_idle()
        if share is not None:
            await share.group.transfer_leadership(HAND_OVER_S)

    # -- what the parts tell each other --

    async def _ask(self, leader: NodeId) -> bytes | None:
        with contextlib.suppress(MeshError):
            return await self.mesh.request(leader, SIGHT, b"", ASK_S)
        return None

    def _on_raft(self, peer: NodeId, payload: bytes) -> None:
        if self._share is not None:
            self._share.group.on_peer_message(peer, payload)

    def _on_notice(self, peer: NodeId, topic: str, payload: bytes) -> None:
        if topic == LIVE_TOPIC:
            self.live.receive(peer, payload)
        elif topic == TESTIMONY_TOPIC and peer not in self._leaves:  # they accuse nobody
            self.lookout.receive(peer, payload)

    def _has_leaf(self, peer: NodeId) -> bool:
        return self._share is not None and self._share.parent.has(peer)

    def _on_link_up(self, peer: Hello) -> None:
        if peer.tier == LEAF:
            self._leaves.add(peer.node_id)
            if self._share is not None:
                self._share.parent.link_up(peer)
            return
        self.lookout.link_up(peer.node_id, peer.instance_id)
        if self._share is not None:
            self._share.group.on_link_up(peer.node_id)

    def _on_link_down(self, peer: NodeId, reason: str, closed_by_peer: bool) -> None:
        if peer in self._leaves:
            self._leaves.discard(peer)
            self._proxy.link_down(peer)
            if self._share is not None:
                self._share.parent.link_down(peer)
            return
        self.lookout.link_down(peer, reason, closed_by_peer=closed_by_peer)
        if self._share is not None:
            self._share.group.on_link_down(peer, closed_by_peer)

    def _on_configuration(self, status: ReplicaStatus) -> None:
        """Of a node whose tier the mesh chooses: it votes, or does so no more."""
        assert self._share is not None
        if self.node_id not in status.configuration.members or self._share.has_left():
            return
        is_voter = self.node_id in status.configuration.voters
        if self._take_tier(in_mesh(is_voter=is_voter)) and not self._is_stopping:
            self.own("registering again", self._share.register(self._registration))

    def _take_tier(self, decided: Decided) -> bool:
        """Whether that is news."""
        is_other = decided.tier != self.facts.tier
        self.facts.tier, self.facts.tier_why = decided.tier, decided.why
        if is_other:
            log.info("tier_chosen", tier=decided.tier, why=decided.why)
            self.mesh.set_tier(decided.tier)
        return is_other

    def _on_outcome(self, outcome: Outcome) -> None:
        assert self._share is not None, "an attempt ended that nobody can have assigned"
        self._share.reporter.add(outcome)

    def on_replica_failure(self, error: Exception, is_final: bool) -> None:
        if isinstance(error, DiskFull) and self.disk.space is Space.FULL:
            return  # the watch has said so, once; the replica waits for room
        log.error("replica_failed", reason=str(error), goes_on="no" if is_final else "yes")
        if not is_final:
            return
        self.service.note_replica_failure(str(error))
        if isinstance(error, StorageError | UpgradeRequired):
            self.own("withdrawing", self._withdraw(str(error)))
        else:
            self._fail(error)

    async def _withdraw(self, reason: str) -> None:
        """The store cannot be written any more, or the log not applied, and a restart would not change that. So nobody
        may count on this node: its links end, and others take over what it led and executed. But what it had made
        durable can still be read here, marked as such, until somebody stops the process."""
        self.withdrawn = reason
        await self._end_tasks()
        await self.executor.stop()
        await self.mesh.stop()
        log.error("withdrawn", reason=reason, goes_on="reading over HTTP, until it is stopped")

    def _broadcast(self, topic: str, payload: bytes) -> None:
        for peer in self.lookout.linked():
            self._notify(peer, topic, payload)

    def _notify(self, peer: NodeId, topic: str, payload: bytes) -> bool:
        with contextlib.suppress(MeshError):  # news are never worth a failure; the link counts what it sheds
            return self.mesh.notify(peer, topic, payload)
        return False

    def _judge_anew(self) -> None:
        if self._share is not None:
            self._share.dispatcher.wake()

    def _is_stalled(self) -> bool:
        return self._share is not None and self._share.group.is_stalled()

    def _lookup_patterns(self, patterns: list[str]) -> Mapping[str, int]:
        """Nothing is known while the replica cannot be read."""
        with contextlib.suppress(ConsensusError, StorageError), self.group.read() as txn:
            return queries.pattern_counts(txn, patterns)
        return {}

    def _registration(self) -> RegisterMember:
        """The command by which this instance becomes a member, or says that it takes no more work."""
        at_ms = self._registered_at_ms()
        return registration(self._config, self.facts, self.registry, at_ms, takes_work=not self._is_stopping)

    def _backup_facts(self) -> Mapping[str, object]:
        """What a backup says of where it comes from."""
        return {
            "mesh": self.facts.mesh_name,
            "mesh_id": self.mesh.mesh_id,
            "node_id": self.node_id,
            "node": self.facts.name,
            "voters": list(self.group.status().voters),
            "software": __version__,
            "at_ms": now_ms(),
        }
