"""What a node says of secrets and certificates, its own and those of its peers: never a secret, only fingerprints."""

from typing import Any, Final

from node.service.service import NodeService
from node.service.times import iso
from storage.ids import NodeId

CERTIFICATE_DAYS_WARN: Final = 14
"""Certificates are renewed two months before they end: one that is this near to its end could not be."""

_DAY_MS: Final = 86_400_000


def document(service: NodeService) -> dict[str, Any]:
    trust = service.mesh.trust_status()
    return {
        "secret": {
            "presents": trust.accepted[0] if trust.accepted else None,
            "accepts": list(trust.accepted),
            "second_is": trust.role,
            "second_since": None if trust.second_since is None else trust.second_since.isoformat(),
        },
        "certificate": {
            "ends_at": iso(int(trust.certificate_ends_at * 1000)),
            "renews_at": iso(int(trust.certificate_renews_at * 1000)),
        },
    }


def warnings(service: NodeService) -> list[str]:
    trust, now_ms = service.mesh.trust_status(), service.now_ms()
    found = list(trust.warnings)
    ends = [("this node's certificate", int(trust.certificate_ends_at * 1000))]
    for peer in service.mesh.peers():
        ends_at_ms = getattr(peer, "certificate_ends_at_ms", None)
        if ends_at_ms is not None:
            ends.append((f"the certificate of {peer.name or peer.node_id} on its link to this node", ends_at_ms))
    for what, ends_at_ms in ends:
        if ends_at_ms - now_ms <= CERTIFICATE_DAYS_WARN * _DAY_MS:
            days = max(ends_at_ms - now_ms, 0) // _DAY_MS
            found.append(
                f"{what} ends in {days} days: it could not be renewed, or a clock is wrong; see that node's log"
            )
    return found


def accepted_by(service: NodeService) -> dict[NodeId, list[str]]:
    """Fingerprints of the secrets that each node accepts, as far as it is linked to this one and says so; the one it
    presents first."""
    known = {peer.node_id: list(peer.secrets) for peer in service.mesh.peers() if getattr(peer, "secrets", ())}
    return {**known, service.facts.node_id: list(service.mesh.trust_status().accepted)}
