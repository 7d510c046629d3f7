"""Where peers may be reached: bounded, newest address first. Pure.

Addresses are hints; only a handshake tells who is there. Anybody on the LAN can make up as many peers as he likes, so
a newcomer takes the place of one that is no better founded, and of nobody who is linked. Which of those is drawn: if
the newcomer were left out, a flood that came first would keep all others out for ever; if the oldest had to go, a
stranger could push each peer out just after it was heard. Drawn, a peer outlasts as many names as the book has
places with a chance of one in three, whoever sends them, and one dial is all that it needs. The same holds for the
addresses of one peer, but for the first, which is the one that worked last.
"""

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Protocol, TypeVar

import msgspec

from mesh.limits import ADDRESS_BYTES_MAX, ADDRESSES_PER_PEER_MAX, PEERS_KNOWN_MAX
from storage.ids import InstanceId, NodeId

T = TypeVar("T")


class KnownPeer(msgspec.Struct, frozen=True, array_like=True):
    """What gossip and the remembered file carry."""

    node_id: NodeId
    addresses: tuple[str, ...]
    name: str = ""
    instance_id: InstanceId = InstanceId("")
    """To which the teller is linked; empty if to none."""


_DECODER = msgspec.msgpack.Decoder(tuple[KnownPeer, ...])
_ENCODER = msgspec.msgpack.Encoder()


def encode_peers(peers: Iterable[KnownPeer]) -> bytes:
    return _ENCODER.encode(tuple(peers)[:PEERS_KNOWN_MAX])


def decode_peers(body: bytes) -> tuple[KnownPeer, ...]:
    """Peers in any bytes; what is not one is left out, never raised: gossip is only a hint."""
    try:
        peers = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()
    return tuple(
        peer
        for peer in peers[:PEERS_KNOWN_MAX]
        if 0 < len(peer.node_id) <= 64 and len(peer.name) <= 255 and len(peer.instance_id) <= 64
    )


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` as (host, port). ValueError if it is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not host:port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{address!r}: an IPv6 address goes in brackets, as in [fd00::1]:7781")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def neighbourhood(host: str) -> str:
    """Whom a stranger can pass for at will: with IPv6 he has all addresses of a /64."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


class Standing(IntEnum):
    """How well founded it is that a peer exists."""

    HEARD = 0
    """Anybody on the LAN may have said so."""
    TOLD = 1
    """By a linked peer, or remembered from last time."""
    PROVEN = 2
    """A handshake succeeded."""


class Dice(Protocol):
    """Of a `random.Random`."""

    def choice(self, seq: Sequence[T], /) -> T: ...


class AddressBook:
    """Addresses by node id."""

    def __init__(
        self,
        own: NodeId,
        is_linked: Callable[[NodeId], bool],
        on_forgotten: Callable[[NodeId], None],
        rng: Dice,
    ) -> None:
        self._own = own
        self._is_linked = is_linked
        self._on_forgotten = on_forgotten
        self._rng = rng
        self._addresses: dict[NodeId, tuple[str, ...]] = {}
        self._standing: dict[NodeId, Standing] = {}
        """In the order of the last proof."""
        self.names: dict[NodeId, str] = {}
        self.version = 0
        """Grows with every change of what `lasting` gives."""

    def note(
        self, node_id: NodeId, addresses: Iterable[str], name: str = "", standing: Standing = Standing.HEARD
    ) -> bool:
        """Learn addresses; True if any is new. Proven ones (a link came up) go first, hints after what is known."""
        is_proven = standing is Standing.PROVEN
        valid = tuple(address for address in addresses if _is_valid(address))[:ADDRESSES_PER_PEER_MAX]
        is_newcomer = node_id not in self._addresses
        if node_id == self._own or (is_newcomer and not valid and standing is Standing.HEARD):
            return False
        if is_newcomer and len(self._addresses) >= PEERS_KNOWN_MAX and not self._make_room(standing):
            return False
        known = self._addresses.get(node_id, ())
        merged = list(dict.fromkeys(valid + known if is_proven else known + valid))
        while len(merged) > ADDRESSES_PER_PEER_MAX:
            merged.remove(merged[-1] if is_proven else self._rng.choice(merged[1:]))
        kept = tuple(merged)
        before = (known, self.names.get(node_id), self._standing.get(node_id))
        self._addresses[node_id] = kept
        if name:
            self.names[node_id] = name
        best = max(standing, self._standing.get(node_id, standing))
        if is_proven:
            self._standing.pop(node_id, None)
        self._standing[node_id] = best
        if best > Standing.HEARD and before != (kept, self.names.get(node_id), best):
            self.version += 1
        return is_newcomer or bool(set(kept) - set(known))

    def _make_room(self, standing: Standing) -> bool:
        """For a newcomer of that standing, if anybody may go: hints at random, the proven by age."""
        free = [node_id for node_id in self._standing if not self._is_linked(node_id)]
        least = min((self._standing[node_id] for node_id in free), default=None)
        if least is None or least > standing:
            return False
        lowest = [node_id for node_id in free if self._standing[node_id] is least]
        self.forget(lowest[0] if least is Standing.PROVEN else self._rng.choice(lowest))
        return True

    def drop(self, node_id: NodeId, address: str) -> None:
        """Somebody else answered at this address."""
        known = self._addresses.get(node_id, ())
        if address in known:
            self._addresses[node_id] = tuple(item for item in known if item != address)
            self.version += 1

    def forget(self, node_id: NodeId) -> None:
        if self._addresses.pop(node_id, None) is None:
            return
        self.names.pop(node_id, None)
        if self._standing.pop(node_id) > Standing.HEARD:
            self.version += 1
        self._on_forgotten(node_id)

    def addresses(self, node_id: NodeId) -> tuple[str, ...]:
        return self._addresses.get(node_id, ())

    def is_lasting(self, node_id: NodeId) -> bool:
        """Whether it is better founded than what strangers say."""
        return self._standing.get(node_id, Standing.HEARD) > Standing.HEARD

    def peers(self) -> tuple[KnownPeer, ...]:
        return tuple(
            KnownPeer(node_id, addresses, self.names.get(node_id, "")) for node_id, addresses in self._addresses.items()
        )

    def lasting(self) -> tuple[KnownPeer, ...]:
        """Those worth remembering."""
        return tuple(peer for peer in self.peers() if self.is_lasting(peer.node_id))


def _is_valid(address: str) -> bool:
    try:
        split_address(address)
    except ValueError:
        return False
    return len(address) <= ADDRESS_BYTES_MAX
