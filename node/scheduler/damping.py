"""Who went up and down too often rests before it gets new work again. Pure.

Route flap damping (RFC 2439): each loss of the link adds to a penalty that decays; above SUPPRESS the node rests until
it has fallen to REUSE. So one loss costs nothing, and the rest grows with every further one.
"""

from dataclasses import dataclass
from math import log2

from storage.ids import NodeId

HALVES_S = 15.0
"""In which half the penalty is forgotten."""

SUPPRESS = 2.0
"""Of losses: the third within some seconds."""

REUSE = 1.0

PENALTY_MAX = 16.0
"""Then a node rests for a minute, which is the longest."""

_FORGOTTEN = 0.05


@dataclass(slots=True)
class _Record:
    penalty: float
    at: float
    is_resting: bool = False


class Damping:
    def __init__(self) -> None:
        self._records: dict[NodeId, _Record] = {}

    def lost(self, peer: NodeId, now: float) -> None:
        """Its link has ended, and not because somebody asked for it."""
        for other in [other for other, record in self._records.items() if _decayed(record, now) < _FORGOTTEN]:
            del self._records[other]
        record = self._records.setdefault(peer, _Record(0.0, now))
        record.penalty, record.at = min(_decayed(record, now) + 1.0, PENALTY_MAX), now
        record.is_resting = record.is_resting or record.penalty > SUPPRESS

    def rests_s(self, peer: NodeId, now: float) -> float:
        """For how much longer it rests; 0 if it does not."""
        record = self._records.get(peer)
        if record is None or not record.is_resting:
            return 0.0
        penalty = _decayed(record, now)
        if penalty <= REUSE:
            record.is_resting = False
            return 0.0
        return HALVES_S * log2(penalty / REUSE)


def _decayed(record: _Record, now: float) -> float:
    return float(record.penalty * 0.5 ** (max(0.0, now - record.at) / HALVES_S))
