"""Is a peer alive, as far as this node can tell? Pure: time is an argument.

Evidence is anything heard on the peer's link. Two thresholds of silence, `suspect` and `silent`, which adapt:

- A peer that came back from a long silence is given that much more the next time, and half of it a minute later. Phi
  accrual (Hayashibara et al., SRDS 2004) asks how unlikely a silence is, but takes gaps for normally distributed, and
  those of an overloaded machine are not: it is regular, and then stalls. So the worst stall it survived is remembered.
- Self-doubt (Lifeguard, arXiv:1707.00788, section 3): while this node's own loop ran late, silence proves nothing,
  since what the peers sent lies unread in our sockets. That time does not count as their silence. And for a while after
  it, or after a stall of the disk, this node accuses nobody; but a node that is never well must still find the dead, so
  doubt that lasts is believed no more.
"""

from dataclasses import dataclass
from typing import Literal

from mesh.limits import (
    DOUBT_S,
    DOUBT_S_MAX,
    EXTRA_HALVES_S,
    EXTRA_S_MAX,
    HEARTBEAT_S,
    LAG_NOISE_S,
    LAG_S,
    PEERS_KNOWN_MAX,
    SILENCE_S,
    SUSPECT_S,
)
from storage.ids import InstanceId, NodeId

Verdict = Literal["alive", "suspect", "silent"]


@dataclass(slots=True)
class _Past:
    """What is remembered of a peer, also without a link to it."""

    instance: InstanceId
    extra_s: float = 0.0
    """What it was given at `extra_at` beyond the usual."""
    extra_at: float = 0.0
    lost_at: float | None = None
    """When it was last heard, if it was given up for silence."""


class Liveness:
    """What was heard of whom, and how well this node itself was. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._heard_at: dict[NodeId, float] = {}
        """Of linked peers; moved on by what this node was deaf for."""
        self._past: dict[NodeId, _Past] = {}
        self._doubt_at = self._doubting_since = float("-inf")
        self.lags = 0
        """How often this node's loop was late."""
        self.lag_s_max = 0.0

    # -- what happens --

    def met(self, peer: NodeId, instance: InstanceId, now: float) -> None:
        """A link to `peer` is up. If it was given up for silence and is still the same process, it was only slow."""
        self._heard_at[peer] = now
        past = self._past.pop(peer, None)
        if past is None or past.instance != instance:
            past = _Past(instance)
        self._past[peer] = past
        if past.lost_at is not None:
            self._survived(peer, now - past.lost_at, now)
            past.lost_at = None
        if len(self._past) > PEERS_KNOWN_MAX:
            self._past.pop(next((peer for peer in self._past if peer not in self._heard_at), peer))

    def heard(self, peer: NodeId, at: float) -> None:
        """Something of `peer` was read at `at`."""
        before = self._heard_at.get(peer)
        if before is not None and at > before:
            self._heard_at[peer] = at
            self._survived(peer, at - before, at)

    def forget(self, peer: NodeId, *, is_silent: bool = False) -> None:
        """The link to `peer` is gone: there is no evidence either way."""
        heard_at = self._heard_at.pop(peer, None)
        if is_silent and peer in self._past:
            self._past[peer].lost_at = heard_at

    def loop_was_late(self, lag_s: float, now: float) -> None:
        """A timer of this node ran `lag_s` seconds late."""
        if lag_s < LAG_NOISE_S:
            return
        for peer, heard_at in self._heard_at.items():
            self._heard_at[peer] = min(heard_at + lag_s, now)
        if lag_s >= LAG_S:
            self.lags += 1
            self.lag_s_max = max(self.lag_s_max, lag_s)
            self.doubt(now)

    def doubt(self, now: float) -> None:
        """This node is not well."""
        if now - self._doubt_at > DOUBT_S:
            self._doubting_since = now
        self._doubt_at = now

    # -- what follows --

    def is_doubting(self, now: float) -> bool:
        return now - self._doubt_at < DOUBT_S and now - self._doubting_since < DOUBT_S_MAX

    def extra_s(self, peer: NodeId, now: float) -> float:
        """What `peer` is given beyond SUSPECT_S and SILENCE_S."""
        past = self._past.get(peer)
        return 0.0 if past is None else past.extra_s * 0.5 ** (max(0.0, now - past.extra_at) / EXTRA_HALVES_S)

    def silence_s(self, peer: NodeId, now: float) -> float | None:
        """Seconds since `peer` was heard, not counting time this node was not listening; None if not linked."""
        heard_at = self._heard_at.get(peer)
        return None if heard_at is None else max(0.0, now - heard_at)

    def verdict(self, peer: NodeId, now: float) -> Verdict:
        """`suspect` is an observation, `silent` the accusation that ends the link. A peer without one is `silent`."""
        silence_s = self.silence_s(peer, now)
        if silence_s is None:
            return "silent"
        silence_s -= self.extra_s(peer, now)
        if silence_s >= SILENCE_S and not self.is_doubting(now):
            return "silent"
        return "suspect" if silence_s >= SUSPECT_S else "alive"

    def next_look(self, now: float) -> float:
        """When the first verdict changes if nothing more is heard; early rather than late."""
        waits = [SUSPECT_S]
        for peer, heard_at in self._heard_at.items():
            silence_s = now - heard_at - self.extra_s(peer, now)
            waits.append((SUSPECT_S if silence_s < SUSPECT_S else SILENCE_S) - silence_s)
        return now + min(waits)

    def _survived(self, peer: NodeId, gap_s: float, now: float) -> None:
        extra_s = min(gap_s - 2 * HEARTBEAT_S, EXTRA_S_MAX)
        if extra_s > self.extra_s(peer, now):
            past = self._past.get(peer)
            if past is not None:
                past.extra_s, past.extra_at = extra_s, now
