"""Where peers may be reached: bounded, newest address first. Pure.

Addresses are hints; only a handshake tells who is there.
"""

from collections.abc import Iterable

import msgspec

from mesh.limits import ADDRESS_BYTES_MAX, ADDRESSES_PER_PEER_MAX, PEERS_KNOWN_MAX
from storage.ids import NodeId


class KnownPeer(msgspec.Struct, frozen=True, array_like=True):
    """What gossip and the remembered file carry."""

    node_id: NodeId
    addresses: tuple[str, ...]
    name: str = ""


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
    return tuple(peer for peer in peers[:PEERS_KNOWN_MAX] if 0 < len(peer.node_id) <= 64 and len(peer.name) <= 255)


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


class AddressBook:
    """Addresses by node id."""

    def __init__(self, own: NodeId) -> None:
        self._own = own
        self._addresses: dict[NodeId, tuple[str, ...]] = {}
        self.names: dict[NodeId, str] = {}
        self.version = 0
        """Grows with every change."""

    def note(self, node_id: NodeId, addresses: Iterable[str], name: str = "", *, is_proven: bool = False) -> bool:
        """Learn addresses; True if any is new. Proven ones (a link came up) go first, hints after what is known.

        A full book forgets nobody for a hint: it ignores the newcomer, unless proven.
        """
        if node_id == self._own:
            return False
        if node_id not in self._addresses and len(self._addresses) >= PEERS_KNOWN_MAX:
            if not is_proven:
                return False
            self.forget(next(iter(self._addresses)))
        known = self._addresses.get(node_id, ())
        valid = tuple(address for address in addresses if _is_valid(address))
        merged = dict.fromkeys(valid + known if is_proven else known + valid)
        kept = tuple(merged)[:ADDRESSES_PER_PEER_MAX]
        is_new = bool(set(kept) - set(known)) or node_id not in self._addresses
        if kept != known or node_id not in self._addresses:
            self._addresses[node_id] = kept
            self.version += 1
        if name and self.names.get(node_id) != name:
            self.names[node_id] = name
            self.version += 1
        return is_new

    def drop(self, node_id: NodeId, address: str) -> None:
        """Somebody else answered at this address."""
        known = self._addresses.get(node_id, ())
        if address in known:
            self._addresses[node_id] = tuple(item for item in known if item != address)
            self.version += 1

    def forget(self, node_id: NodeId) -> None:
        self._addresses.pop(node_id, None)
        self.names.pop(node_id, None)
        self.version += 1

    def addresses(self, node_id: NodeId) -> tuple[str, ...]:
        return self._addresses.get(node_id, ())

    def peers(self) -> tuple[KnownPeer, ...]:
        return tuple(
            KnownPeer(node_id, addresses, self.names.get(node_id, "")) for node_id, addresses in self._addresses.items()
        )


def _is_valid(address: str) -> bool:
    try:
        split_address(address)
    except ValueError:
        return False
    return len(address) <= ADDRESS_BYTES_MAX
