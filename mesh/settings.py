"""What the node tells the mesh at start, and what the mesh shows of its peers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from storage.ids import InstanceId, NodeId


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """One mesh's worth of configuration; checked by `node.config`, except what needs the network."""

    mesh_name: str
    node_name: str
    data_dir: Path
    tier: str = "core"
    """At the start; see `Mesh.set_tier`."""
    is_auto: bool = False
    """The mesh chooses the tier."""
    bind_host: str = "auto"
    """`auto` (all addresses; needs a secret) or an IP address."""
    port: int = 7781
    """0 takes any free port (see `Mesh.port`)."""
    advertise: str = ""
    """`host` or `host:port` to announce first, for nodes behind NAT; empty: the address each peer sees."""
    http_address: str = ""
    bootstrap_expect: int = 3
    seeds: Sequence[str] = ()
    """`host:port` of nodes to try always."""
    zeroconf: bool = True
    interfaces: Literal["auto"] | Sequence[str] = "auto"
    """Interfaces for zeroconf, by name or address."""
    software: str = "meshnode"
    secret_file: Path | None = None
    """Where the secrets came from: looked at again and again, and taken over when it has changed."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer as this node sees it now."""

    node_id: NodeId
    name: str
    tier: str
    address: str
    """Where the link leads, or the first known address."""
    instance_id: InstanceId | None
    state: Literal["up", "connecting", "down"]
    verdict: Literal["alive", "suspect", "silent"]
    rtt_ms: float | None
    since_s: float | None
    """Age of the link in seconds."""
    last_heard_age_s: float | None
    extra_s: float
    """What its silence may last beyond that of others, because it came back from longer ones."""
    http_address: str
    software: str
    is_dialled: bool | None
    """Whether this node dialled the link."""
    last_error: str = ""
    """Why the last dial failed."""
    protocol: int | None = None
    """The link protocol both ends speak."""
    secrets: tuple[str, ...] = ()
    """Fingerprints of the secrets it accepts, the one it presents first."""
    admitted_by: str = ""
    """Fingerprint of the secret under which it was admitted when the link was made."""
    certificate_ends_at_ms: int | None = None
    """Of the certificate that it presented then."""
    counters: dict[str, int] = field(default_factory=dict)


def mesh_name_hash(mesh_name: str) -> str:
    """16 hex digits that stand for a mesh name where it is seen by everybody (certificates, multicast)."""
    return hashlib.blake2b(mesh_name.encode("utf-8"), digest_size=8, person=b"meshnode-name").hexdigest()
