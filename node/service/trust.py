"""What a node of any tier says of its secrets and certificates: never a secret, only fingerprints."""

from collections.abc import Iterable
from typing import Any, Final

from mesh.keeper import TrustStatus
from node.service.times import iso

CERTIFICATE_DAYS_WARN: Final = 14
"""Certificates are renewed two months before they end: one that is this near to its end could not be."""

_DAY_MS: Final = 86_400_000


def document(trust: TrustStatus) -> dict[str, Any]:
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


def warnings(trust: TrustStatus, linked: Iterable[tuple[str, int | None]], now_ms: int) -> list[str]:
    """`linked`: names of peers, and when the certificates on their links end."""
    found = list(trust.warnings)
    ends: list[tuple[str, int | None]] = [("this node's certificate", int(trust.certificate_ends_at * 1000))]
    ends += [(f"the certificate of {name} on its link to this node", ends_at_ms) for name, ends_at_ms in linked]
    for what, ends_at_ms in ends:
        if ends_at_ms is not None and ends_at_ms - now_ms <= CERTIFICATE_DAYS_WARN * _DAY_MS:
            days = max(ends_at_ms - now_ms, 0) // _DAY_MS
            found.append(
                f"{what} ends in {days} days: it could not be renewed, or a clock is wrong; see that node's log"
            )
    return found
