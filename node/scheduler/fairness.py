"""Whose turn it is: the order in which sessions are served. Pure.

Max-min fairness over the places in use, by priority: of the sessions of the highest priority that have something
queued, the one that executes the least is served next; equals take turns (round robin, Nagle, RFC 970). So a session of
ten thousand branches does not hold up one of three, and of those that wait for their first place each gets one before
any of them gets a second. Within a session branches go in order.

The cost of a decision is bounded by what may be looked at, not by what is queued. What is cut off goes on where it
stopped at the next decision (`Turns`, which the leader keeps; losing it costs a turn, nothing else).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import chain, islice
from typing import Protocol

from consensus.state.rows import QueueEntry
from storage.ids import SessionId

CHUNK_MAX = 64
"""Entries read at once; begins with 1, as most sessions get one place at a time."""


MISSES_MAX = 32
"""So often a session may be looked at again after an entry that did not fit, before all others have been looked at."""


PLACES_MAX = 10_000
"""Sessions of which it is known where to go on: a megabyte. Then they are begun anew."""


class Queue(Protocol):
    """What is queued: sessions are known by a key that orders them by submission."""

    def priorities(self) -> list[int]:
        """Those with something queued, highest first."""
        ...

    def sessions(self, priority: int, start: bytes) -> Iterator[bytes]:
        """In order of submission, from `start` on."""
        ...

    def entries(self, session: bytes, start: bytes, limit: int) -> list[tuple[bytes, QueueEntry]]:
        """In order, from the key `start` on."""
        ...


@dataclass(slots=True)
class Turns:
    """What is kept from one decision to the next."""

    last: dict[int, bytes] = field(default_factory=dict)
    """Of a priority: the session that was served last."""
    places: dict[bytes, bytes] = field(default_factory=dict)
    """Of sessions of which nothing that was looked at could be placed: where to go on."""
    laps: dict[int, bytes] = field(default_factory=dict)
    """Of a priority with more sessions than are looked at at once: the first one since something was placed."""
    slow: tuple[SessionId, int] = (SessionId(""), -1)
    """The branch behind which the look for what is slow goes on (`speculation`)."""


@dataclass(frozen=True, slots=True)
class Served:
    looked: int
    """Entries that were looked at, and sessions that run as many as they may."""
    has_more: bool
    """Something was not looked at, now or just before, for there was a limit to it."""


@dataclass(slots=True)
class _Lane:
    session: bytes
    queue: Queue
    at: bytes
    buffer: list[tuple[bytes, QueueEntry]] = field(default_factory=list)
    chunk: int = 1
    is_served: bool = False
    has_begun: bool = False

    def peek(self) -> QueueEntry | None:
        if not self.buffer:
            found = self.queue.entries(self.session, self.at, self.chunk)
            if not found:
                return None
            self.buffer = found[::-1]
            self.at = found[-1][0] + b"\0"
            self.chunk = min(2 * self.chunk, CHUNK_MAX)
        return self.buffer[-1][1]

    def place(self) -> bytes:
        """Where it would go on."""
        return self.buffer[-1][0] if self.buffer else self.at


def serve(
    queue: Queue,
    turns: Turns,
    running: Mapping[SessionId, int],
    offer: Callable[[QueueEntry], bool | None],
    look_max: int,
) -> Served:
    """Offers entries one after the other until `offer` answers None, which means that no place is left; True: it was
    placed, False: it does not fit now. Looks at `look_max` entries of each priority at most."""
    looked, has_more = 0, False
    sessions_max = look_max - min(MISSES_MAX, look_max // 4)  # so all of them are looked at
    for priority in queue.priorities():
        last = turns.last.get(priority, b"")
        window = list(islice(_cycle(queue, priority, last), sessions_max + 1))
        is_all = len(window) <= sessions_max
        del window[sessions_max:]
        lanes = [_Lane(session, queue, turns.places.get(session, session)) for session in window]
        used, is_full = _serve_lanes(lanes, turns, priority, running, offer, look_max, look_max - sessions_max)
        looked += used
        for lane in lanes:
            if not lane.has_begun:
                continue
            if lane.is_served or lane.peek() is None:
                turns.places.pop(lane.session, None)
            else:
                turns.places[lane.session] = lane.place()
                has_more = True
        if is_full:
            turns.laps.pop(priority, None)
            return Served(looked, has_more=True)
        if is_all or any(lane.is_served for lane in lanes):
            turns.laps.pop(priority, None)
            has_more = has_more or not is_all
        else:
            turns.last[priority] = window[-1]
            has_more = not _has_lapped(turns, priority, last, window) or has_more
    if not has_more or len(turns.places) > PLACES_MAX:
        turns.places.clear()
    return Served(looked, has_more)


def _serve_lanes(
    lanes: list[_Lane],
    turns: Turns,
    priority: int,
    running: Mapping[SessionId, int],
    offer: Callable[[QueueEntry], bool | None],
    look_max: int,
    misses_max: int,
) -> tuple[int, bool]:
    """How many entries were looked at, and whether no place is left. What does not fit is a turn too; after
    `misses_max` of these it is the last one, so that who runs much comes to its turn."""
    looked, full, misses = 0, 0, 0
    heap: list[tuple[bool, int, int, int]] = []
    held: list[int] = []
    for number, lane in enumerate(lanes):
        entry = lane.peek()
        held.append(0 if entry is None else running.get(entry.session_id, 0))
        heap.append((False, held[number], number, number))
    heapify(heap)
    while heap and looked < look_max:
        _, rank, turn, number = heappop(heap)
        lane = lanes[number]
        entry = lane.peek()
        if entry is None:
            lane.has_begun = True
            continue
        if is_session_full(entry, held[number]):
            full += 1
            continue
        answer = offer(entry)
        if answer is None:
            return looked + full, True
        looked += 1
        lane.has_begun = True
        lane.buffer.pop()
        if answer:
            lane.is_served = True
            held[number] += 1
            turns.last[priority] = lane.session
        else:
            misses += 1
        heappush(heap, (not answer and misses > misses_max, rank + 1, turn, number))
    return looked + full, False


def is_session_full(entry: QueueEntry, running: int) -> bool:
    return entry.concurrency is not None and running >= entry.concurrency


def _has_lapped(turns: Turns, priority: int, last: bytes, window: Sequence[bytes]) -> bool:
    """Whether this window, which begins after `last`, is the one that closes the lap."""
    if priority not in turns.laps:
        turns.laps[priority] = window[0]
        return False
    begun = turns.laps[priority]
    if not (last < begun <= window[-1] if last < window[-1] else begun > last or begun <= window[-1]):
        return False
    del turns.laps[priority]
    return True


def _cycle(queue: Queue, priority: int, last: bytes) -> Iterator[bytes]:
    """All sessions once, the one after `last` first."""
    if not last:
        return queue.sessions(priority, b"")
    after = (session for session in queue.sessions(priority, last) if session != last)
    before = _until(queue.sessions(priority, b""), last)
    return chain(after, before)


def _until(sessions: Iterator[bytes], last: bytes) -> Iterator[bytes]:
    for session in sessions:
        if session > last:
            return
        yield session
