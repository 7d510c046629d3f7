"""Is a peer alive, as far as this node can tell? Pure: time is an argument.

Evidence is anything heard on the peer's link. Self-doubt (Lifeguard, arXiv:1707.00788, section 3): when this node's own
loop ran late, silence proves nothing about the peers, since what they sent may lie unread in our sockets. After a lag
everybody gets a whole new interval to be heard in.
"""

from typing import Literal

from mesh.limits import LAG_S, SILENCE_S, SUSPECT_S
from storage.ids import NodeId

Verdict = Literal["alive", "suspect", "silent"]


class Liveness:
    """What was heard of whom, and how late this node itself was."""

    __slots__ = ("_amnesty_at", "_heard_at", "lag_s_max", "lags")

    def __init__(self) -> None:
        self._heard_at: dict[NodeId, float] = {}
        self._amnesty_at = float("-inf")
        self.lags = 0
        """How often this node's loop was late."""
        self.lag_s_max = 0.0

    def heard(self, peer: NodeId, now: float) -> None:
        """Something of `peer` was read at `now` (monotonic seconds)."""
        self._heard_at[peer] = now

    def forget(self, peer: NodeId) -> None:
        """The link to `peer` is gone: there is no evidence either way."""
        self._heard_at.pop(peer, None)

    def loop_was_late(self, lag_s: float, now: float) -> None:
        """A timer of this node ran `lag_s` seconds late. Below LAG_S it is noise."""
        if lag_s >= LAG_S:
            self.lags += 1
            self.lag_s_max = max(self.lag_s_max, lag_s)
            self._amnesty_at = now

    def silence_s(self, peer: NodeId, now: float) -> float | None:
        """Seconds since `peer` was heard, not counting time this node was not listening; None if not linked."""
        heard_at = self._heard_at.get(peer)
        return None if heard_at is None else max(0.0, now - max(heard_at, self._amnesty_at))

    def verdict(self, peer: NodeId, now: float) -> Verdict:
        """`silent` closes the link. A peer without a link is `silent`."""
        silence_s = self.silence_s(peer, now)
        if silence_s is None or silence_s >= SILENCE_S:
            return "silent"
        return "suspect" if silence_s >= SUSPECT_S else "alive"
