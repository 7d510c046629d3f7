"""Who is linked: greets those who call, dials those who are known, keeps one link a pair, and notices silence.

One link a pair. Crossing dials give two; both ends keep the one dialled by the lower node id and retire the other
without anybody noticing. A second link that is not such a crossing means that one side lost the first, or that an
identity was cloned: the old link is pinged, and whoever answers stays.
"""

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Callable
from typing import Any, Protocol

from msgspec.structs import replace

from mesh.errors import FrameError, HandshakeRefused, MeshError
from mesh.handshake import Hello, Refuse, cloned_instance, judge, read_hello, read_refuse
from mesh.identity import Identity
from mesh.limits import (
    CONFLICT_PING_S,
    DIAL_TIMEOUT_S,
    HANDSHAKE_TIMEOUT_S,
    LINKS_MAX,
    UNSENT_LOW_WATER_BYTES,
)
from mesh.links.book import AddressBook, KnownPeer, Standing, decode_peers, encode_peers, join_address, split_address
from mesh.links.copies import Copies
from mesh.links.dialler import Dialled, Dialler
from mesh.links.frames import Kind
from mesh.links.heartbeat import Heartbeat, SilenceUser
from mesh.links.link import Link, Server
from mesh.links.listener import Doorstep, is_loopback
from mesh.links.names import Names
from mesh.links.remake import Remaking
from mesh.links.streams import Streams
from mesh.links.tls import TlsConnection
from mesh.liveness import Liveness
from mesh.refusals import Refusals, explain
from mesh.supervise import Logger, Supervisor
from mesh.tiers import LEAF
from mesh.trust import Trust, admit, peer_node_id
from storage.ids import InstanceId, NodeId

_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)  # named in Python 3.12; 25 is Linux's number
_ORDINARY_ENDS = frozenset({"closed_by_peer", "stopping", "duplicate", "replaced", "silent", "not_chosen"})
_STOP_S = 2.0  # a link flushes for one second at most


class LinkUser(SilenceUser, Protocol):
    """Whom the manager works for (`Mesh`)."""

    def on_raft(self, peer: NodeId, payload: bytes) -> None: ...
    def on_notice(self, peer: NodeId, topic: str, payload: bytes) -> None: ...
    def on_founding_frame(self, peer: NodeId, body: bytes) -> None: ...
    def server(self, method: str) -> Server | None: ...
    def link_up(self, hello: Hello) -> None: ...
    def link_down(self, peer: NodeId, reason: str, *, closed_by_peer: bool) -> None: ...


class LinkManager:
    """See the module. `hello(local_host)` makes this node's Hello for a connection seen from `local_host`."""

    def __init__(
        self,
        identity: Identity,
        instance_id: InstanceId,
        hello: Callable[[str], Hello],
        trust: Trust,
        user: LinkUser,
        refusals: Refusals,
        tasks: Supervisor,
        log: Logger,
        rng: random.Random,
        clock: Callable[[], float],
        *,
        keeps_links: bool = True,
    ) -> None:
        """`keeps_links`: everybody who is known is dialled, again and again. Otherwise only `dial` does."""
        self.own = own = identity.node_id
        self.links: dict[NodeId, Link] = {}
        self.book = AddressBook(own, self.links.__contains__, lambda peer: self.dialler.end(peer), rng)
        self.liveness = Liveness()
        self.dialler = Dialler(own, self.book, self.dial, self.links.__contains__, rng, log)
        self._hello = hello
        self._trust = trust
        self._user = user
        self._refusals = refusals
        self._tasks = tasks
        self._log = log
        self._clock = clock
        self._heartbeat = Heartbeat(self.links, self.liveness, user)
        self._keeps_links = keeps_links
        self._remaking = Remaking(self.links, self._redial, tasks)
        self._names = Names()
        self._open: set[Link] = set()  # every link with a transport, also retired and closing ones
        self.streams = Streams(instance_id, self.links, self._connect, tasks)
        self.copies = Copies(identity, instance_id, self.links, tasks, self.refuse_link, self._tell)
        self._greeting: set[NodeId] = set()  # peers to whom an own dial has got as far as TLS

    def start(self) -> None:
        self._tasks.spawn(self._heartbeat.run(), "mesh heartbeat")

    async def stop(self) -> None:
        """Say goodbye on every link and wait until all transports are gone (a second at most)."""
        await self.dialler.stop()
        for link in tuple(self._open):
            link.close("stopping", Refuse("stopping", "the node is stopping"))
        if closing := [link.closed for link in self._open]:
            await asyncio.wait(closing, timeout=_STOP_S)

    def use(self, trust: Trust) -> None:
        """For every handshake from now on; links that are up are made anew, one at a time."""
        self._trust = trust
        self.dialler.retry_refused()
        self._remaking.begin(trust)

    def learn(
        self, node_id: NodeId, addresses: tuple[str, ...], name: str = "", standing: Standing = Standing.TOLD
    ) -> bool:
        """A hint from discovery, gossip or memory. True if it was new."""
        is_new = self.book.note(node_id, addresses, name, standing)
        if self._keeps_links and self.book.addresses(node_id):
            self.dialler.hint(node_id, is_new=is_new)
        return is_new

    def unlinked_count(self) -> int:
        """Nodes known or hinted at that are not linked, and seeds of which nothing is known yet."""
        unlinked = sum(peer.node_id not in self.links for peer in self.book.peers())
        return unlinked + self.dialler.seeds_untried()

    def refuse_link(self, peer: NodeId, refuse: Refuse) -> None:
        """Close an established link for a reason found later (two founded meshes)."""
        if (link := self.links.get(peer)) is not None:
            self._refusals.note(refuse.code, link.remote, refuse.message, outbound=link.is_dialled)
            link.close(refuse.code, refuse)

    # --- those who call ---

    async def greet(self, transport: asyncio.Transport, remote: str) -> None:
        """Take an accepted TCP connection through TLS and Hello, or refuse it, within HANDSHAKE_TIMEOUT_S."""
        link = Link(self, self._tasks, remote, is_dialled=False)
        stage = "TLS"
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                tls = await self._start_tls(transport, link, is_server=True)
                stage = "the hello"
                presented = peer_node_id(tls)
                kind, body = await link.first_frame
                if kind is Kind.STREAM:
                    await self.streams.accept(link, presented, body)
                    return
                theirs = self._read(kind, body, Kind.HELLO)
                ours = self._hello(link.local_host)
                refuse = judge(ours, theirs, presented) or await self._conflict(theirs)
                if refuse is not None:
                    raise HandshakeRefused(refuse.code, refuse.message)
                if link.closed.done():
                    raise ConnectionResetError("the caller hung up meanwhile")
                link.hello_out(Kind.WELCOME, ours)
                self._establish(link, theirs, is_renewal=theirs.is_renewal)
        except HandshakeRefused as refusal:
            link.close(refusal.code, None if refusal.by_peer else Refuse(refusal.code, str(refusal)))
            self._refusals.note(refusal.code, remote, str(refusal), by_peer=refusal.by_peer)
        except TimeoutError:
            self._refusals.note("slow_loris", remote, f"no end of {stage} within {HANDSHAKE_TIMEOUT_S:g} s")
            link.abort("slow_loris")
            transport.abort()
        except (OSError, MeshError) as error:
            # ssl.SSLError is an OSError: both stages end here when the stranger is not one of ours or hangs up.
            code, message = explain(error, is_server=True)
            self._refusals.note(code, remote, message)
            link.abort(code)
            transport.abort()
        except asyncio.CancelledError:
            link.abort("stopping")
            transport.abort()
            raise

    async def _conflict(self, theirs: Hello) -> Refuse | None:
        """Whether an existing link forbids a new one from its peer. May take CONFLICT_PING_S."""
        if (refuse := self.copies.refuses(theirs)) is not None:
            return refuse
        old = self.links.get(theirs.node_id)
        if old is None or old.hello is None:
            is_full = len(self.links) >= LINKS_MAX
            return Refuse("too_many_links", f"this node has {LINKS_MAX} links already") if is_full else None
        if old.hello.instance_id != theirs.instance_id:
            if await old.prove_alive(CONFLICT_PING_S):
                return cloned_instance(theirs, old.hello.node_name, old.hello.instance_id)
        elif not (old.is_dialled and self.own < theirs.node_id):
            return None  # the peer dialled again, so it lost the old link; or the new one wins the crossing
        elif await old.prove_alive(CONFLICT_PING_S):
            return Refuse("duplicate", "one link a pair: the other one is alive")
        old.close("replaced")
        return None

    # --- those whom we call ---

    async def dial(self, address: str) -> Dialled:
        """One attempt at one address. Never raises, except for cancellation."""
        return await self._dial(address, None)

    async def _redial(self, old: Link) -> None:
        """Put a new connection in the place of one that this end dialled."""
        await self._dial(old.remote, old)

    async def _dial(self, address: str, renewed: Link | None) -> Dialled:
        """`renewed`: the link that the new one is to take the place of."""
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                transport = await self._reach(address)
        except TimeoutError:
            return Dialled(None, False, None, f"{address}: no answer within {DIAL_TIMEOUT_S:g} s")
        except (OSError, ValueError) as error:
            return Dialled(None, False, None, f"{address}: {getattr(error, 'strerror', None) or error}")
        link = Link(self, self._tasks, address, is_dialled=True)
        presented: NodeId | None = None
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                presented = peer_node_id(await self._start_tls(transport, link, is_server=False))
                is_renewal = renewed is not None and self.links.get(presented) is renewed
                if (presented in self.links and not is_renewal) or presented in self._greeting:
                    link.close("duplicate", Refuse("duplicate", "one link a pair"))
                    return Dialled(presented, presented in self.links, None)
                self._greeting.add(presented)
                try:
                    await self._ask(link, presented, is_renewal=is_renewal)
                finally:
                    self._greeting.discard(presented)
                return Dialled(presented, presented in self.links, None)
        except HandshakeRefused as refusal:
            link.close(refusal.code, None if refusal.by_peer else Refuse(refusal.code, str(refusal)))
            self._refusals.note(refusal.code, address, str(refusal), by_peer=refusal.by_peer, outbound=True)
            is_normal = refusal.code in ("duplicate", "stopping")
            return Dialled(presented, False, None if is_normal else refusal.code, f"{address}: {refusal}")
        except TimeoutError:
            link.abort("timed_out")
            transport.abort()
            return Dialled(presented, False, None, f"{address}: the handshake took over {HANDSHAKE_TIMEOUT_S:g} s")
        except (OSError, MeshError) as error:
            link.abort("handshake_failed")
            transport.abort()
            code, message = explain(error, is_server=False)
            if code == "hung_up":
                return Dialled(presented, False, None, f"{address}: {message}")
            self._refusals.note(code, address, message, outbound=True)
            return Dialled(presented, False, code, f"{address}: {message}")
        except asyncio.CancelledError:
            link.abort("stopping")
            transport.abort()
            raise

    async def _reach(self, address: str) -> asyncio.Transport:
        """TCP. Raises OSError, ValueError."""
        host, port = split_address(address)
        failure = OSError(f"{host} has no address")
        for found in await self._names.addresses(host):
            try:
                transport, _ = await asyncio.get_running_loop().create_connection(Doorstep, found, port)
            except OSError as error:
                failure = error
            else:
                return transport
        raise failure

    async def _connect(self, address: str) -> tuple[Link, NodeId]:
        """TCP and TLS, and nothing said yet. Raises OSError."""
        transport = await self._reach(address)
        link = Link(self, self._tasks, address, is_dialled=True)
        try:
            return link, peer_node_id(await self._start_tls(transport, link, is_server=False))
        except BaseException:
            transport.abort()
            raise

    async def _ask(self, link: Link, presented: NodeId, *, is_renewal: bool) -> None:
        """Say Hello, await the Welcome. It is judged inside `data_received`: frames may follow in the same piece."""
        ours = replace(self._hello(link.local_host), is_renewal=is_renewal)
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def answered(kind: Kind, body: bytes) -> None:
            if outcome.done():
                return
            try:
                theirs = self._read(kind, body, Kind.WELCOME)
                if (refuse := judge(ours, theirs, presented) or self.copies.refuses(theirs)) is not None:
                    raise HandshakeRefused(refuse.code, refuse.message)
                old = self.links.get(theirs.node_id)
                if old is not None and old.hello is not None and old.hello.instance_id != theirs.instance_id:
                    outcome.set_result(theirs)
                    return
                self._establish(link, theirs, is_renewal=is_renewal)
                outcome.set_result(None)
            except MeshError as error:
                outcome.set_exception(error)

        link.on_first_frame = answered
        ended: asyncio.Future[Any] = link.first_frame  # never answered here: set when the connection ends first
        link.hello_out(Kind.HELLO, ours)
        try:
            await asyncio.wait([outcome, ended], return_when=asyncio.FIRST_COMPLETED)
            if not outcome.done():
                ended.result()  # raises what ended the connection
            elif (theirs := await outcome) is not None:
                # A link to another instance of this id came up while we dialled: is it the clone, or a corpse?
                old = self.links.get(presented)
                if old is not None and old.hello is not None and old.hello.instance_id != theirs.instance_id:
                    if await old.prove_alive(CONFLICT_PING_S):
                        refuse = cloned_instance(theirs, old.hello.node_name, old.hello.instance_id)
                        raise HandshakeRefused(refuse.code, refuse.message)
                    old.close("replaced")
                link.close("replaced", Refuse("duplicate", "dial again: an old link was in the way"))
        finally:
            if outcome.done() and not outcome.cancelled():
                outcome.exception()
            outcome.cancel()

    # --- both ---

    async def _start_tls(self, transport: asyncio.Transport, link: Link, *, is_server: bool) -> ssl.SSLObject:
        raw = transport.get_extra_info("socket")
        # asyncio sets this only on sockets made with an explicit protocol number, which accepted ones need not be.
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # not on every system; only bulk latency suffers
            raw.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_LOW_WATER_BYTES)
        trust = self._trust
        connection = TlsConnection(transport, trust.server if is_server else trust.client, link, is_server=is_server)
        self._open.add(link)
        link.closed.add_done_callback(lambda _: self._open.discard(link))
        connection.start()
        await connection.handshaken
        link.trust, link.admission = trust, admit(trust, connection.ssl_object, self._clock())
        return connection.ssl_object

    def _read(self, kind: Kind, body: bytes, wanted: Kind) -> Hello:
        if kind in (Kind.REFUSE, Kind.BYE):
            said = read_refuse(body)
            raise HandshakeRefused(said.code, said.message, by_peer=True)
        if kind is not wanted:
            raise HandshakeRefused("garbage", f"expected {wanted.name}, got {kind.name}")
        read = read_hello(body)
        if isinstance(read, Refuse):
            raise HandshakeRefused(read.code, read.message)
        return read

    def _establish(self, link: Link, theirs: Hello, *, is_renewal: bool) -> None:
        """Both sides agreed: the link is up, and the only one to its peer."""
        link.open(theirs)
        peer = theirs.node_id
        old = self.links.get(peer)
        is_same = old is not None and old.peer_instance == link.peer_instance
        is_renewal = is_renewal and is_same and old is not None and old.is_dialled == link.is_dialled
        is_crossing = is_same and old is not None and old.is_dialled != link.is_dialled
        if old is not None and (is_crossing or is_renewal):
            keeps_new = is_renewal or link.is_dialled == (self.own < peer)
            if not keeps_new:
                link.retire()
                return
            self.links[peer] = link
            old.retire()
        else:
            if old is not None:
                old.close("replaced")
            self.links[peer] = link
        now = asyncio.get_running_loop().time()
        self.liveness.met(peer, theirs.instance_id, now)
        self._refusals.forgive(link.remote)
        if theirs.tier != LEAF:
            self.book.note(peer, self._proven_addresses(link, theirs), theirs.node_name, Standing.PROVEN)
            if self._keeps_links and self.book.addresses(peer):
                self.dialler.hint(peer, is_new=False)
        self.streams.link_up(peer)
        if is_renewal and link.is_dialled:
            self.streams.renew(peer)
        if link.trust is not self._trust:  # it has changed during the handshake
            self._remaking.begin(self._trust)
        if is_crossing or is_renewal:
            return
        self._log.info(
            "link_up",
            peer=peer,
            name=theirs.node_name,
            address=link.remote,
            direction=_direction(link),
            tier=theirs.tier,
        )
        link.ping()
        self._gossip(link)
        self._user.link_up(theirs)

    def _proven_addresses(self, link: Link, theirs: Hello) -> tuple[str, ...]:
        """Where the peer can be reached, likeliest first: the address that worked, or the one it is seen from."""
        seen = link.remote
        if not link.is_dialled:
            host, _ = split_address(link.remote)
            seen = join_address(host, theirs.port)
        return (seen, *theirs.addresses)

    def _gossip(self, link: Link) -> None:
        """Tell the newcomer whom we are linked to, and them of the newcomer: seeds-only meshes become full. Leaf nodes
        are told by their parents."""
        others = [other for other in self.links.values() if other is not link and not _is_leaf(other)]
        if _is_leaf(link):
            return
        if others:
            link.send_control(Kind.PEERS, encode_peers(self._known(other.peer, link) for other in others))
        for other in others:
            other.send_control(Kind.PEERS, encode_peers([self._known(link.peer, other)]))

    def addresses_for(self, peer: NodeId, listener: NodeId) -> tuple[str, ...]:
        """Where a linked `listener` may reach `peer`."""
        link = self.links.get(listener)
        return () if link is None else self._known(peer, link).addresses

    def _known(self, peer: NodeId, listener: Link) -> KnownPeer:
        """What to tell `listener` of `peer`: loopback addresses mean something on this machine only."""
        addresses = self.book.addresses(peer)
        if not is_loopback(split_address(listener.remote)[0]):
            addresses = tuple(item for item in addresses if not is_loopback(split_address(item)[0]))
        instance = self.links[peer].peer_instance if peer in self.links else None
        return KnownPeer(peer, addresses, self.book.names.get(peer, ""), instance or InstanceId(""))

    def _tell(self, listener: NodeId, peer: NodeId) -> None:
        if (link := self.links.get(listener)) is not None:
            link.send_control(Kind.PEERS, encode_peers([self._known(peer, link)]))

    # --- LinkEvents ---

    def on_raft(self, peer: NodeId, payload: bytes) -> None:
        self._user.on_raft(peer, payload)

    def on_notice(self, peer: NodeId, topic: str, payload: bytes) -> None:
        self._user.on_notice(peer, topic, payload)

    def on_peers(self, link: Link, body: bytes) -> None:
        peers = decode_peers(body)
        for peer in peers:
            self.learn(peer.node_id, peer.addresses, peer.name)
        self.copies.told(link.peer, peers)

    def on_founding(self, link: Link, body: bytes) -> None:
        self._user.on_founding_frame(link.peer, body)

    def server(self, method: str) -> Server | None:
        return self._user.server(method)

    def link_closed(self, link: Link, reason: str, *, closed_by_peer: bool) -> None:
        peer = link.peer
        if self.links.get(peer) is not link:
            return  # retired or replaced: the pair has a better one
        del self.links[peer]
        self.liveness.forget(peer, is_silent=reason == "silent")
        self._heartbeat.forget(peer)
        self.dialler.unlinked(peer)
        level = self._log.info if reason in ("stopping", "replaced", "not_chosen") else self._log.warning
        level("link_down", peer=peer, name=self.book.names.get(peer, ""), reason=reason, closed_by_peer=closed_by_peer)
        if closed_by_peer and reason not in _ORDINARY_ENDS:
            message = "the peer closed the link for this reason: see its log"
            self._refusals.note(reason, link.remote, message, by_peer=True, outbound=link.is_dialled)
        self._user.link_down(peer, reason, closed_by_peer=closed_by_peer)

    def link_misbehaved(self, link: Link, error: FrameError) -> None:
        self._refusals.note(error.code, link.remote, str(error), outbound=link.is_dialled)

    def handler_failed(self, what: str, error: Exception) -> None:
        self._log.error("mesh_handler_failed", handler=what, exc_info=error)


def _is_leaf(link: Link) -> bool:
    return link.hello is not None and link.hello.tier == LEAF


def _direction(link: Link) -> str:
    return "dialled" if link.is_dialled else "accepted"
