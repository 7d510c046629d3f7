"""What two nodes tell each other before a link is theirs, and whether one refuses the other. Sans-I/O and pure.

After TLS (which proved the secret and the peer's key) the dialler sends Hello; the acceptor answers Welcome (its own
Hello) or Refuse; the dialler judges the Welcome by the same rules. One round trip. Facts in a Hello are claims: only
the node id is checked (against the presented key). Unknown fields are ignored and missing ones have defaults, so a
later version may add fields; the first two fields are read before all others, from any version.
"""

from typing import Final

import msgspec

from mesh.limits import HANDSHAKE_FRAME_BYTES_MAX
from storage.ids import InstanceId, MeshId, NodeId

PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1

STREAMS: Final = "streams"
"""Among a Hello's features: this node takes a second connection for Raft frames."""

QUIET_CODES: Final = frozenset({"self", "duplicate", "stopping", "hung_up", "no_streams", "not_chosen"})
"""Refusals that are part of normal life: counted, not logged as warnings."""


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says of itself."""

    protocol_min: int
    protocol_max: int
    mesh_name: str
    node_id: NodeId
    instance_id: InstanceId
    node_name: str
    tier: str
    addresses: tuple[str, ...] = ()
    """`host:port` where this node accepts links, the likeliest first."""
    port: int = 0
    """The listening port: with the address the peer is seen from, one more way to reach it."""
    http_address: str = ""
    software: str = ""
    bootstrap_expect: int = 0
    mesh_id: MeshId | None = None
    voters: tuple[NodeId, ...] | None = None
    features: tuple[str, ...] = ()
    former: tuple[MeshId, ...] = ()
    """Meshes that the sender's goes on for."""
    secrets: tuple[str, ...] = ()
    """Fingerprints of the mesh secrets that this node accepts, the one it presents first. Empty: it has none, or is of
    a version that accepts only one and does not say which."""
    is_renewal: bool = False
    """From the dialler: this connection takes the place of the one that it dialled before, under new trust."""
    uplinks: tuple[int, int] | None = None
    """Of a node that takes Leaf nodes: how many hang on it, and how many at most."""
    is_auto: bool = False
    """The mesh chooses the sender's tier: as an Edge it may be asked to vote."""


class StreamHello(msgspec.Struct, frozen=True):
    """First on a stream, both ways. It belongs to the link between these two instances."""

    instance_id: InstanceId


class Refuse(msgspec.Struct, frozen=True):
    """Why the sender does not want the link. `code` is stable; `message` is for the other side's operator."""

    code: str
    message: str


class _Versions(msgspec.Struct):
    protocol_min: int
    protocol_max: int


_HELLO = msgspec.msgpack.Decoder(Hello)
_VERSIONS = msgspec.msgpack.Decoder(_Versions)
_REFUSE = msgspec.msgpack.Decoder(Refuse)
_STREAM = msgspec.msgpack.Decoder(StreamHello)
_ENCODER = msgspec.msgpack.Encoder()
_TEXT_CHARACTERS_MAX = 500
_ITEMS_MAX = 64


def encode(message: Hello | Refuse | StreamHello) -> bytes:
    return _ENCODER.encode(message)


def read_hello(body: bytes) -> Hello | Refuse:
    """The Hello in a frame, or the refusal its sender deserves (`protocol_version`, `garbage`). Takes any bytes."""
    if len(body) > HANDSHAKE_FRAME_BYTES_MAX:
        return Refuse("garbage", f"the hello has {len(body)} bytes, at most {HANDSHAKE_FRAME_BYTES_MAX} are allowed")
    try:
        versions = _VERSIONS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Refuse("garbage", f"the hello cannot be read: {error}")
    if versions.protocol_max < PROTOCOL_MIN or versions.protocol_min > PROTOCOL_MAX:
        return Refuse(
            "protocol_version",
            f"the nodes speak protocols {versions.protocol_min} to {versions.protocol_max} "
            f"and {PROTOCOL_MIN} to {PROTOCOL_MAX}: update the older one",
        )
    try:
        hello = _HELLO.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Refuse("garbage", f"the hello cannot be read: {error}")
    texts = [hello.mesh_name, hello.node_id, hello.instance_id, hello.node_name, hello.tier, hello.software]
    lists = (hello.addresses, hello.voters or (), hello.features, hello.former, hello.secrets)
    texts.extend(hello.secrets)
    if any(len(text) > _TEXT_CHARACTERS_MAX for text in texts) or any(len(items) > _ITEMS_MAX for items in lists):
        return Refuse("garbage", "the hello has a field that is too long")
    return hello


def read_stream_hello(body: bytes) -> StreamHello | Refuse:
    """Takes any bytes."""
    try:
        return _STREAM.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Refuse("garbage", f"the stream's hello cannot be read: {error}")


def read_refuse(body: bytes) -> Refuse:
    """The refusal in a frame; never fails, as the link ends either way."""
    try:
        refuse = _REFUSE.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Refuse("garbage", "the peer refused with a message that cannot be read")
    return Refuse(refuse.code[:64], refuse.message[:_TEXT_CHARACTERS_MAX])


def judge(ours: Hello, theirs: Hello, presented: NodeId) -> Refuse | None:
    """Whether this node refuses a peer that said `theirs` and presented the key of id `presented`.

    Each message is read by the operator of either side, so it names both sides' values.
    """
    if theirs.node_id != presented:
        return Refuse("garbage", f"the peer says it is {theirs.node_id} but presented the key of {presented}")
    if theirs.node_id == ours.node_id:
        if theirs.instance_id == ours.instance_id:
            return Refuse("self", "a node dialled itself")
        return Refuse(
            "cloned_identity",
            f"two running nodes ({ours.node_name!r} and {theirs.node_name!r}) have the same identity {ours.node_id}: "
            "a data directory was copied; stop one of them and remove its data directory, it will start as a new node",
        )
    if theirs.mesh_name != ours.mesh_name:
        return Refuse(
            "other_mesh_name",
            f"the meshes have different names, {ours.mesh_name!r} ({ours.node_name}) and {theirs.mesh_name!r} "
            f"({theirs.node_name}): set the same [mesh] name on both, or give each mesh a secret of its own",
        )
    return judge_mesh(ours, theirs.mesh_id, theirs.former, theirs.node_name)


def judge_mesh(ours: Hello, mesh_id: MeshId | None, former: tuple[MeshId, ...], peer_name: str) -> Refuse | None:
    """Two meshes were founded under one name and secret, for example on two sides of a cut cable; or one of them goes
    on for the other (`former`: for which ones the peer's does)."""
    if ours.mesh_id is None or mesh_id is None or ours.mesh_id == mesh_id:
        return None
    if mesh_id in ours.former:
        return _superseded(peer_name, mesh_id, ours.node_name, ours.mesh_id)
    if ours.mesh_id in former:
        return _superseded(ours.node_name, ours.mesh_id, peer_name, mesh_id)
    return Refuse(
        "other_mesh_id",
        f"{ours.node_name!r} belongs to mesh {ours.mesh_id} and {peer_name!r} to mesh {mesh_id}, founded separately "
        "under the same name: keep one, and remove the data directories of the other's nodes so that they join it",
    )


def _superseded(old_name: str, old: MeshId, new_name: str, new: MeshId) -> Refuse:
    return Refuse(
        "superseded_mesh",
        f"{old_name!r} still belongs to mesh {old}, which was given up: {new_name!r} recovered or restored it as mesh "
        f"{new}. Stop {old_name!r}, move its data directory away (keep it until nothing is missed) and start it "
        "again: it joins as a new node",
    )


def cloned_instance(theirs: Hello, name: str, instance_id: InstanceId) -> Refuse:
    """A second live instance of a node id that is linked as `name`, here or elsewhere (decided by asking that one)."""
    return Refuse(
        "cloned_identity",
        f"node {theirs.node_id} is already linked as {name!r} (instance {instance_id}) and that "
        f"one answers: {theirs.node_name!r} (instance {theirs.instance_id}) runs on a copy of its data directory; stop "
        "one of them and remove its data directory, it will start as a new node",
    )
