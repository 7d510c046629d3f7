"""On whom a Leaf hangs: whom it asks, whom it takes, and when a parent sends some of its Leaf nodes elsewhere. Pure.

Cost. The way counts by its magnitude: one that is twice as long weighs as much as `LEAVES_PER_DOUBLING` more Leaf
nodes, and as much as being a Core, which has the mesh to run. A Leaf does not simply take the cheapest: when a parent
is lost, all its Leaf nodes choose at the same moment by the same figures, and would meet again at one. So it draws, and
the cheaper, the likelier (`choose`); what chance leaves uneven is evened out later (`moves`).

Asking. Those told by the last parent first, as it knows who is alive; then all others in random order; whoever has
refused or not answered is left alone for a while that doubles.

Hints. Anybody on the LAN can make up as many candidates as he likes, so only those that answered, were told of or
remembered, and the seeds, last; every hint is taken in the place of another one, and among those asked at the same time
there are some of either kind.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec

from mesh.limits import (
    ADDRESSES_PER_PEER_MAX,
    LEAVES_PER_DOUBLING,
    MOVES_AT_ONCE_MAX,
    PARENT_PATIENCE_MAX_S,
    PARENT_RETRY_FIRST_S,
    PARENT_RETRY_MAX_S,
    PARENTS_KNOWN_MAX,
    PARENTS_PROBED_AT_ONCE,
)
from storage.ids import NodeId

_RTT_FLOOR_MS = 1.0
"""Shorter ways are all the same: what differs then is how busy a machine is at that moment."""

_CHOICE_SHARPNESS = 3.0
"""Being cheaper by one doubling makes a candidate eight times as likely."""

_HYSTERESIS_LEAVES = 3
_HYSTERESIS_SHARE = 0.25
"""A parent sends nobody away for a smaller difference than this many Leaf nodes, or this part of its own."""


T = TypeVar("T")


class Dice(Protocol):
    """Of a `random.Random`."""

    def random(self) -> float: ...
    def shuffle(self, x: Any, /) -> None: ...
    def choices(self, population: Sequence[T], weights: Sequence[float], /) -> list[T]: ...


class Alternative(msgspec.Struct, frozen=True, array_like=True):
    """A node that may be a parent, as others tell of it."""

    node_id: NodeId
    name: str
    tier: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A candidate that has answered: how far it is, and how many hang on it already."""

    node_id: NodeId
    tier: str
    rtt_s: float
    taken: int
    most: int

    @property
    def has_room(self) -> bool:
        return self.taken < self.most

    @property
    def cost(self) -> float:
        """In doublings of the way."""
        way = math.log2(max(self.rtt_s * 1000, _RTT_FLOOR_MS))
        return way + burden(self.tier, self.taken) / LEAVES_PER_DOUBLING


def burden(tier: str, taken: int) -> int:
    """What a parent bears, in Leaf nodes."""
    return taken + (LEAVES_PER_DOUBLING if tier == "core" else 0)


def choose(samples: Iterable[Sample], rng: Dice) -> Sample | None:
    """One of those that have room."""
    found = sorted((sample for sample in samples if sample.has_room), key=lambda sample: sample.node_id)
    if not found:
        return None
    least = min(sample.cost for sample in found)
    weights = [2.0 ** (_CHOICE_SHARPNESS * (least - sample.cost)) for sample in found]
    return rng.choices(found, weights)[0]


@dataclass(slots=True)
class _Candidate:
    addresses: tuple[str, ...]
    is_told: bool = False
    is_lasting: bool = True
    """Better founded than what strangers say."""
    failures: int = 0
    retry_at: float = field(default=float("-inf"))


class Candidates:
    """Whom a Leaf knows, by node id, or by address as long as it is not known who lives there. `now`: monotonic."""

    def __init__(self, seeds: Sequence[str]) -> None:
        self._known: dict[str, _Candidate] = {seed: _Candidate((seed,)) for seed in seeds}
        self._seeds = frozenset(seeds)

    def __len__(self) -> int:
        return len(self._known)

    def hint(self, node_id: NodeId, addresses: tuple[str, ...], rng: Dice) -> bool:
        """Of discovery. True if it was news, and then it is tried at once."""
        found = self._known.get(node_id) or _Candidate((), is_lasting=False)
        both = found.addresses + addresses if found.is_lasting else addresses + found.addresses
        kept = tuple(dict.fromkeys(both))[:ADDRESSES_PER_PEER_MAX]
        if set(kept) == set(found.addresses):
            return False
        if node_id not in self._known and len(self._known) >= PARENTS_KNOWN_MAX and not self._forget_heard(rng):
            return False
        self._known[node_id] = _Candidate(kept, is_told=found.is_told, is_lasting=found.is_lasting)
        return True

    def recall(self, node_id: NodeId, addresses: tuple[str, ...]) -> None:
        """A parent of last time."""
        if node_id not in self._known and len(self._known) < PARENTS_KNOWN_MAX:
            self._known[node_id] = _Candidate(addresses[:ADDRESSES_PER_PEER_MAX])

    def told(self, alternatives: Iterable[Alternative]) -> None:
        """By the parent, which knows better than hints: they go first, and nobody else does."""
        for candidate in self._known.values():
            candidate.is_told = False
        for one in alternatives:
            if one.addresses:
                if one.node_id not in self._known and len(self._known) >= PARENTS_KNOWN_MAX and not self._forget_one():
                    continue
                self._known[one.node_id] = _Candidate(one.addresses[:ADDRESSES_PER_PEER_MAX], is_told=True)

    def failed(self, key: str, now: float, rng: Dice) -> None:
        """It did not answer, or refused."""
        candidate = self._known.get(key)
        if candidate is not None:
            pause_s = min(PARENT_RETRY_MAX_S, PARENT_RETRY_FIRST_S * 2 ** min(candidate.failures, 16))
            candidate.retry_at = now + pause_s * (0.5 + 0.5 * rng.random())
            candidate.failures += 1

    def answered(self, key: str) -> None:
        candidate = self._known.get(key)
        if candidate is not None:
            candidate.failures, candidate.retry_at, candidate.is_lasting = 0, float("-inf"), True

    def hurry(self) -> None:
        """A parent was lost: what is known of the others may be long past."""
        for candidate in self._known.values():
            candidate.failures, candidate.retry_at = 0, float("-inf")

    def next(self, now: float, rng: Dice) -> list[tuple[str, tuple[str, ...]]]:
        """Whom to ask now, and where; may be empty."""
        due = [(key, candidate) for key, candidate in self._known.items() if candidate.retry_at <= now]
        rng.shuffle(due)
        due.sort(key=lambda item: (item[1].failures, not item[1].is_told))
        lasting = [item for item in due if item[1].is_lasting]
        heard = [item for item in due if not item[1].is_lasting]
        share = max(PARENTS_PROBED_AT_ONCE - 1, PARENTS_PROBED_AT_ONCE - len(heard))
        asked = [*lasting[:share], *heard][:PARENTS_PROBED_AT_ONCE]
        rng.shuffle(asked)  # who asks one only takes the first
        return [(key, candidate.addresses) for key, candidate in asked]

    def due_at(self) -> float | None:
        """When somebody may be asked again; None if nobody is known."""
        return min((candidate.retry_at for candidate in self._known.values()), default=None)

    def known(self) -> dict[str, tuple[str, ...]]:
        """Node id -> addresses, to be remembered; seeds are in the configuration."""
        return {key: one.addresses for key, one in self._known.items() if one.is_lasting and key not in self._seeds}

    def _forget_heard(self, rng: Dice) -> bool:
        """False if all are lasting."""
        heard = [key for key, one in self._known.items() if not one.is_lasting]
        rng.shuffle(heard)  # otherwise a flood could be timed to push out a certain one before it is asked
        if heard:
            del self._known[max(heard, key=lambda key: self._known[key].failures)]
        return bool(heard)

    def _forget_one(self) -> bool:
        """False if there are seeds only: those stay."""
        others = [key for key in self._known if key not in self._seeds]
        if others:
            del self._known[max(others, key=lambda key: (not self._known[key].is_lasting, self._known[key].failures))]
        return bool(others)


def patience_s(refusals: int, rng: Dice) -> float:
    """Before anybody is asked again, after so many rounds in which somebody answered and nobody took the Leaf."""
    return min(PARENT_PATIENCE_MAX_S, PARENT_RETRY_FIRST_S * 2.0 ** min(refusals - 1, 16)) * (0.5 + 0.5 * rng.random())


@dataclass(frozen=True, slots=True)
class Load:
    """A possible parent as the replicated state shows it."""

    node_id: NodeId
    tier: str
    taken: int

    @property
    def burden(self) -> int:
        return burden(self.tier, self.taken)


def moves(own: NodeId, loads: Sequence[Load]) -> Mapping[NodeId, int]:
    """How many of its Leaf nodes `own` should send where now; empty when things are even enough. Every parent decides
    this for itself by the same figures, so each sends a part of what would make the two equal: together they do not
    overshoot, and the next look sees what has become of it."""
    by_id = {load.node_id: load for load in loads}
    here = by_id.get(own)
    others = [load for load in loads if load.node_id != own]
    if here is None or here.taken == 0 or not others:
        return {}
    target = min(others, key=lambda load: (load.burden, load.node_id))

    def is_donor(load: Load) -> bool:
        return load.burden - target.burden > max(_HYSTERESIS_LEAVES, _HYSTERESIS_SHARE * load.burden)

    if not is_donor(here):
        return {}
    donors = sum(is_donor(load) for load in loads if load.taken)
    excess = (here.burden - target.burden) // (1 + donors)
    count = min(here.taken, MOVES_AT_ONCE_MAX, max(1, excess))
    return {target.node_id: count}
