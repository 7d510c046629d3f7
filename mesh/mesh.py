"""The mesh as the node uses it: start, who is there, frames to and from them, and the founding of the mesh.

Handlers (`on_raft`, `on_notice`, `on_link_up`, `on_link_down`, `on_suspicion`, `on_doubt`, `is_stalled`, `serve`) are
set before `start()` and called on the loop; they must not block. Order: frames of one class from one peer arrive in
order while one link lives. Delivery is not guaranteed; the errors of `request` say whether the peer may have acted.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mesh.bootstrap import Bootstrap
from mesh.discovery.diary import Diary, DiaryEntry
from mesh.discovery.remembered import load_peers, save_peers
from mesh.errors import MeshError
from mesh.founder import Founder, Founding, FoundingStore
from mesh.handshake import PROTOCOL_MAX, PROTOCOL_MIN, STREAMS, Hello, Refuse, encode, judge_mesh, read_hello
from mesh.identity import Identity
from mesh.linked import Linked
from mesh.links.book import Standing, join_address, split_address
from mesh.links.frames import Kind
from mesh.links.link import Link, Server
from mesh.links.listener import Listener
from mesh.links.streams import OnStream
from mesh.proposals import Announce, FoundingRecord, Message, encode_message
from mesh.secrets import Secrets
from mesh.settings import MeshSettings, PeerStatus
from mesh.supervise import Logger
from mesh.tiers import LEAF
from mesh.trust import Trust
from storage.ids import InstanceId, MeshId, NodeId

if TYPE_CHECKING:
    from mesh.discovery.lan import LanDiscovery

PeerHello = Hello

_PEERS_SAVED_EVERY_S = 5.0
_HELLO_TOPIC = "mesh.hello"
"""A notice with a Hello: what it says has changed since the link was made."""


class Mesh(Linked):
    """See the module. Made inside a running loop, started once, stopped once."""

    def __init__(
        self,
        settings: MeshSettings,
        identity: Identity,
        instance_id: InstanceId,
        secrets: Secrets | None,
        founding: FoundingStore,
        log: Logger,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            settings,
            identity,
            instance_id,
            secrets,
            _User(self),
            log,
            rng or random.Random(),  # noqa: S311 - jitter only
            clock,
        )
        self.tier = settings.tier
        self.on_raft: Callable[[NodeId, bytes], None] = lambda peer, payload: None
        self.on_link_up: Callable[[PeerHello], None] = lambda hello: None
        self.uplinks: Callable[[], tuple[int, int] | None] = lambda: None
        """How many Leaf nodes hang on this one, and how many may."""
        self.on_link_down: Callable[[NodeId, str, bool], None] = lambda peer, reason, closed_by_peer: None
        self.on_suspicion: Callable[[NodeId, bool], None] = lambda peer, is_suspect: None
        self.on_doubt: Callable[[], None] = lambda: None
        self.is_stalled: Callable[[], bool] = lambda: False
        self._store = founding
        self._log = log
        self._diary = Diary()
        self._record: FoundingRecord | None = None
        self._listener = Listener(self._manager.greet, self._refusals.note, self._tasks)
        self._founder: Founder | None = None
        self._lan: LanDiscovery | None = None
        self._discovery: asyncio.Task[None] | None = None
        self._book_saved = 0

    # --- life ---

    async def start(self) -> None:
        """Listen, dial, announce. Errors: BindError. On an error nothing is left running."""
        settings = self.settings
        record = await asyncio.to_thread(self._store.load)
        self._record = record if record is not None and record.state == "founded" else None
        await self._listener.start(settings.bind_host, settings.port, has_secret=self._keeper.trust.has_secret)
        loop = asyncio.get_running_loop()
        machine = Bootstrap(self.node_id, self.tier, settings.bootstrap_expect, record, loop.time())
        self._founder = Founder(
            machine, self._store, self._send_founding, self._on_founded, self._manager.unlinked_count, self._log
        )
        self._tasks.spawn(self._founder.run(), "mesh founder")
        self._manager.start()
        self._tasks.spawn(self._keeper.run(), "mesh keep trust")
        self._log.info("mesh_listening", node=self.node_id, host=settings.bind_host, port=self.port)
        for peer in await asyncio.to_thread(load_peers, settings.data_dir):
            if self._manager.learn(peer.node_id, peer.addresses, peer.name):
                self.note_diary("remembered", "known", f"{peer.name or peer.node_id} at {', '.join(peer.addresses)}")
        self._book_saved = self._manager.book.version
        for seed in settings.seeds:
            self.add_seed(seed)
        self._tasks.spawn(self._remember(), "mesh remember peers")
        if settings.zeroconf:
            self._discovery = self._tasks.spawn(self._discover(), "mesh discovery")

    async def stop(self) -> None:
        """Say goodbye and leave nothing behind. May be called after a failed start, and twice."""
        if self._discovery is not None:  # first: it would announce this node again
            self._discovery.cancel()
            await asyncio.wait([self._discovery])
        if self._lan is not None:
            lan, self._lan = self._lan, None
            await lan.stop()
        await self._listener.stop()
        await self._manager.stop()
        await self._tasks.close()
        await self._manager.stop()  # links whose handshake ended meanwhile
        await asyncio.sleep(0)  # aborted transports close their sockets in the next turn
        with contextlib.suppress(OSError):  # only hints; the data directory may be gone
            await self._save_peers()

    # --- trust ---

    def _on_trust(self, trust: Trust) -> None:
        super()._on_trust(trust)
        self._say_hello_again()

    def _say_hello_again(self) -> None:
        for link in self._manager.links.values():
            link.notify(_HELLO_TOPIC, encode(self._hello(link.local_host)))

    def _on_hello_again(self, peer: NodeId, payload: bytes) -> None:
        """What a peer says of itself has changed."""
        link, hello = self._manager.links.get(peer), read_hello(payload)
        if link is None or isinstance(hello, Refuse):
            return
        if (hello.node_id, hello.instance_id) == (peer, link.peer_instance):
            link.hello = hello

    def set_tier(self, tier: str) -> None:
        """What this node is from now on; those who are linked are told."""
        self.tier = tier
        self._say_hello_again()

    # --- who is there ---

    @property
    def port(self) -> int:
        """The port listened on."""
        return self._listener.port

    def peers(self) -> list[PeerStatus]:
        """Every known peer, linked ones first, then by id."""
        manager = self._manager
        known = dict.fromkeys([*manager.links, *(peer.node_id for peer in manager.book.peers())])
        return sorted((self._status(peer) for peer in known), key=lambda status: (status.state != "up", status.node_id))

    def addresses_for(self, peer: NodeId, listener: NodeId) -> tuple[str, ...]:
        """Where a linked `listener` may reach `peer`; what only means something on this machine is left out."""
        return self._manager.addresses_for(peer, listener)

    def is_doubting(self) -> bool:
        """Whether this node was too unwell lately to accuse others: its loop lagged, or it was stalled."""
        return self._manager.liveness.is_doubting(asyncio.get_running_loop().time())

    def lags(self) -> tuple[int, float]:
        """How often the loop of this node was late, and by how many seconds at most."""
        return self._manager.liveness.lags, self._manager.liveness.lag_s_max

    def diary(self) -> list[DiaryEntry]:
        """What discovery did, oldest first."""
        return self._diary.entries()

    def seed_errors(self) -> dict[str, str]:
        """Seeds that do not answer, with the reason."""
        return self._manager.dialler.seed_errors()

    def add_seed(self, address: str) -> None:
        """Dial `host:port` until linked, for as long as the mesh runs."""
        try:
            split_address(address)
        except ValueError as error:
            self.note_diary("seeds", "ignored", f"{error}: write seeds as host:port")
            self._log.warning("seed_ignored", seed=address, detail=str(error))
            return
        self.note_diary("seeds", "dialling", address)
        self._manager.dialler.add_seed(address)

    def add_hint(self, source: str, node_id: NodeId, addresses: tuple[str, ...], name: str = "") -> bool:
        """Somebody on the LAN says that a node is at these addresses. True if that was news."""
        return self._manager.learn(node_id, addresses, name, Standing.HEARD)

    def note_diary(self, source: str, event: str, detail: str, interface: str = "") -> None:
        self._diary.note(time.time_ns() // 1_000_000, source, event, detail, interface)

    # --- frames ---

    def send(self, peer: NodeId, payload: bytes) -> bool:
        """A Raft frame, above everything but heartbeats. False: not linked, or too much is waiting."""
        link = self._manager.links.get(peer)
        return link is not None and link.send_raft(payload)

    def start_streams(self, on_stream: OnStream) -> None:
        """From now on keep a connection for Raft frames beside every link, and hand each to `on_stream`, which owns and
        closes it. `send` works without one, and beside one."""
        self._manager.streams.start(on_stream)

    # --- founding ---

    async def founded(self) -> Founding:
        """The mesh this node belongs to, once it does. Waits as long as it takes."""
        if self._founder is None:
            raise MeshError("not_started", "start the mesh first")
        return await asyncio.shield(self._founder.result)

    @property
    def founding_status(self) -> str:
        """One sentence, such as `alone, waiting for 2 more`."""
        return "not started" if self._founder is None else self._founder.status

    @property
    def mesh_id(self) -> MeshId | None:
        """Of the mesh this node belongs to; None until it is founded."""
        return None if self._record is None else self._record.mesh_id

    # --- within ---

    def _hello(self, local_host: str) -> Hello:
        record = self._record
        advertise = self.settings.advertise
        addresses = [join_address(local_host, self.port)] if local_host else []
        if advertise:
            addresses.insert(0, advertise if _has_port(advertise) else join_address(advertise, self.port))
        return Hello(
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            mesh_name=self.settings.mesh_name,
            node_id=self.node_id,
            instance_id=self.instance_id,
            node_name=self.settings.node_name,
            tier=self.tier,
            addresses=tuple(dict.fromkeys(addresses)),
            port=self.port,
            http_address=self.settings.http_address,
            software=self.settings.software,
            bootstrap_expect=self.settings.bootstrap_expect,
            mesh_id=None if record is None else record.mesh_id,
            voters=None if record is None else record.voters,
            former=() if record is None else record.former,
            features=(STREAMS,),
            secrets=self._keeper.trust.accepted,
            uplinks=self.uplinks(),
            is_auto=self.settings.is_auto,
        )

    def _status(self, peer: NodeId) -> PeerStatus:
        manager = self._manager
        link: Link | None = manager.links.get(peer)
        now = asyncio.get_running_loop().time()
        hello = None if link is None else link.hello
        admission = None if link is None else link.admission
        addresses = manager.book.addresses(peer)
        error = manager.dialler.last_error(peer)
        return PeerStatus(
            node_id=peer,
            name=manager.book.names.get(peer, "") if hello is None else hello.node_name,
            tier="" if hello is None else hello.tier,
            address=link.remote if link is not None else (addresses[0] if addresses else ""),
            instance_id=None if hello is None else hello.instance_id,
            state="up" if link is not None else "connecting" if addresses and not error else "down",
            verdict=manager.liveness.verdict(peer, now),
            rtt_ms=None if link is None or link.rtt_s is None else round(link.rtt_s * 1000, 3),
            since_s=None if link is None else now - link.opened_at,
            last_heard_age_s=None if link is None else now - link.last_heard_at,
            http_address="" if hello is None else hello.http_address,
            software="" if hello is None else hello.software,
            is_dialled=None if link is None else link.is_dialled,
            last_error="" if link is not None else error,
            protocol=None if hello is None else min(PROTOCOL_MAX, hello.protocol_max),
            extra_s=round(manager.liveness.extra_s(peer, now), 1),
            secrets=() if hello is None else hello.secrets,
            admitted_by="" if admission is None else admission.secret,
            certificate_ends_at_ms=None if admission is None else int(admission.dates.ends_at * 1000),
            counters={} if link is None else {**link.counters(), **manager.streams.counters(peer)},
        )

    def _send_founding(self, peer: NodeId, message: Message) -> None:
        if (link := self._manager.links.get(peer)) is not None:
            link.send_control(Kind.FOUNDING, encode_message(message))

    def _on_founded(self, record: FoundingRecord) -> None:
        self._record = record
        self._log.info("mesh_founded", mesh=record.mesh_id, voters=list(record.voters), proposer=record.proposer)

    def _on_founding_frame(self, peer: NodeId, body: bytes) -> None:
        if self._founder is None:
            return
        message = self._founder.received(peer, body)
        if isinstance(message, Announce) and message.record is not None and message.record.state == "founded":
            hello = self.hello_of(peer)
            name = "" if hello is None else hello.node_name
            refuse = judge_mesh(self._hello(""), message.record.mesh_id, message.record.former, name)
            if refuse is not None:
                self._manager.refuse_link(peer, refuse)

    def _link_up(self, hello: Hello) -> None:
        if self._founder is not None and hello.tier != LEAF:
            self._founder.link_up(hello.node_id)
        self._guarded("on_link_up", lambda: self.on_link_up(hello))

    def _link_down(self, peer: NodeId, reason: str, closed_by_peer: bool) -> None:
        if self._founder is not None:
            self._founder.link_down(peer)  # passed over if it was no founder's
        self._guarded("on_link_down", lambda: self.on_link_down(peer, reason, closed_by_peer))

    def _guarded(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._manager.handler_failed(what, error)

    async def _remember(self) -> None:
        is_told = False
        while True:
            await asyncio.sleep(_PEERS_SAVED_EVERY_S)
            try:
                await self._save_peers()
                is_told = False
            except OSError as error:  # a full disk, perhaps: there will be room again
                if not is_told:
                    is_told = True
                    self._log.warning("peers_not_remembered", detail=str(error))

    async def _save_peers(self) -> None:
        book = self._manager.book
        if book.version != self._book_saved:
            version = book.version
            await asyncio.to_thread(save_peers, self.settings.data_dir, book.lasting())
            self._book_saved = version

    async def _discover(self) -> None:
        # Imported here and on a thread: 140 ms that a first result must not wait for.
        discovery = await asyncio.to_thread(_import_lan)
        self._lan = discovery(self, self._log)
        await self._lan.run()


class _User:
    """What the link manager may call; apart from `Mesh` so that its surface stays the node's."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def on_raft(self, peer: NodeId, payload: bytes) -> None:
        self._mesh.on_raft(peer, payload)

    def on_notice(self, peer: NodeId, topic: str, payload: bytes) -> None:
        if topic == _HELLO_TOPIC:
            self._mesh._on_hello_again(peer, payload)
        else:
            self._mesh.on_notice(peer, topic, payload)

    def on_founding_frame(self, peer: NodeId, body: bytes) -> None:
        self._mesh._on_founding_frame(peer, body)

    def server(self, method: str) -> Server | None:
        return self._mesh._servers.get(method)

    def link_up(self, hello: Hello) -> None:
        self._mesh._link_up(hello)

    def link_down(self, peer: NodeId, reason: str, *, closed_by_peer: bool) -> None:
        self._mesh._link_down(peer, reason, closed_by_peer)

    def suspicion(self, peer: NodeId, *, is_suspect: bool) -> None:
        self._mesh._guarded("on_suspicion", lambda: self._mesh.on_suspicion(peer, is_suspect))

    def doubt(self) -> None:
        self._mesh._guarded("on_doubt", self._mesh.on_doubt)

    def is_stalled(self) -> bool:
        return self._mesh.is_stalled()


def _has_port(address: str) -> bool:
    try:
        split_address(address)
    except ValueError:
        return False
    return True


def _import_lan() -> "type[LanDiscovery]":
    from mesh.discovery.lan import LanDiscovery

    return LanDiscovery


__all__ = ["Founding", "FoundingStore", "Mesh", "MeshSettings", "PeerHello", "PeerStatus"]
