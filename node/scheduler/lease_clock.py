"""For how long attempts have run, and which leases have run out, by how long this leader has seen them. Pure.

The deadline in a lease is by the wall clock of whoever gave it, which may be wrong, or set while the branch executes:
it is for people. A lease has run out when its leader has seen it for as long as it lasts. A new leader counts anew.
That delays what is only the last resort: a node that works enforces the time-out of an attempt itself, and one that
does not is found dead by its silence. A second attempt beside a slow one waits as long (`speculation`).
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from consensus.state.rows import Lease

LONG_S = 2.0
"""How long a lease lasts is looked up when it has been seen for so long: most have ended by then."""

_Key: TypeAlias = tuple[str, int, int]


def _key(lease: Lease) -> _Key:
    return (lease.session_id, lease.branch_index, lease.attempt)


class LeaseClock:
    """Of one time of leadership."""

    def __init__(self) -> None:
        self._seen_at: dict[_Key, float] = {}
        self._lasts_s: dict[_Key, float] = {}

    def run_out(self, leases: Sequence[Lease], now_s: float, lasts_ms: Callable[[Lease], int]) -> list[Lease]:
        """To be asked now and then, with all `leases` there are and a clock that is never set."""
        seen_at, lasts_s, over = self._seen_at, self._lasts_s, []
        self._seen_at, self._lasts_s = {}, {}
        for lease in leases:
            key = _key(lease)
            since = self._seen_at[key] = seen_at.get(key, now_s)
            if now_s - since < LONG_S:
                continue
            lasts = lasts_s[key] if key in lasts_s else lasts_ms(lease) / 1000
            self._lasts_s[key] = lasts
            if now_s - since >= lasts:
                over.append(lease)
        return over

    def age_ms(self, lease: Lease, now_s: float) -> int:
        """0 of one that the last look has not seen yet."""
        return int((now_s - self._seen_at.get(_key(lease), now_s)) * 1000)
