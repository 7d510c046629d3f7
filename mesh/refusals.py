"""Who was refused and why: counted by reason, each (reason, remote address) logged once, whatever a stranger does."""

import ssl
from collections import Counter, OrderedDict

from mesh.errors import FrameError
from mesh.handshake import QUIET_CODES
from mesh.limits import REFUSAL_REASONS_MAX, REFUSALS_REMEMBERED_MAX
from mesh.links.book import neighbourhood
from mesh.links.link import cause_of
from mesh.supervise import Logger

_WRONG_SECRET = (
    "CERTIFICATE_VERIFY_FAILED",
    "TLSV1_ALERT_UNKNOWN_CA",
    "TLSV1_ALERT_DECRYPT_ERROR",
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED",
)


class Refusals:
    """Bounded memory: the oldest pair is forgotten, and may then be logged again."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._logged: OrderedDict[tuple[str, str, bool], None] = OrderedDict()
        self.counters: Counter[str] = Counter()
        """By reason code; both those we refused and those who refused us."""

    def note(self, code: str, remote: str, message: str, *, by_peer: bool = False, outbound: bool = False) -> None:
        """Count a refusal. `remote` is `host:port`; the port is ignored when remembering, since strangers change it."""
        is_counted = code in self.counters or len(self.counters) < REFUSAL_REASONS_MAX
        self.counters[code if is_counted else "other"] += 1
        host = remote if outbound else _host(remote)
        key = (code, host, by_peer)
        if key in self._logged:
            self._logged.move_to_end(key)
            return
        self._logged[key] = None
        if len(self._logged) > REFUSALS_REMEMBERED_MAX:
            self._logged.popitem(last=False)
        event = "link_refused_by_peer" if by_peer else "link_refused"
        level = self._log.debug if code in QUIET_CODES else self._log.warning
        level(event, reason=code, address=remote, detail=message, direction="dialled" if outbound else "accepted")

    def forgive(self, remote: str) -> None:
        """A link to this address came up: log its next refusal again."""
        host = _host(remote)
        for key in [key for key in self._logged if key[1] in (remote, host)]:
            del self._logged[key]


def _host(remote: str) -> str:
    return neighbourhood(remote.rpartition(":")[0].strip("[]"))


def explain(error: Exception, *, is_server: bool) -> tuple[str, str]:
    """Code and words for a connection that failed before both sides were welcome."""
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        if any(word in reason for word in _WRONG_SECRET):
            who = (
                "the peer refused our certificate"
                if "ALERT" in reason
                else "the peer's certificate is not of this mesh"
            )
            return "wrong_secret", (
                f"{who}: the two nodes have different mesh secrets, or one has none; "
                "copy the secret file of one node to the other ([mesh] secret_file), or give the meshes different names"
            )
        return "garbage", f"not a meshnode, or a proxy in between (TLS: {reason or error})"
    if isinstance(error, FrameError):
        return error.code, str(error)
    if isinstance(error, OSError):
        return "hung_up", f"the {'caller' if is_server else 'peer'} hung up during the handshake"
    return "garbage", cause_of(error)
