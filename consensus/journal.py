"""The engine's log and hard state, kept in the store.

What the engine appends or cuts waits in memory until `flush` writes it into the tick's one transaction; nothing is
said to anybody before that has been committed. Only the newest entries stay in memory, so a start reads a few of them
and a long log costs no memory; older ones are read from the store. Reads always see what the tick has appended or cut:
entries not yet flushed are never evicted.

The log is compacted as it is written: applied entries beyond those that are kept for followers go, a bounded number
with each write, so that no transaction is large and an idle mesh writes nothing. The pages that become free are used
again.

The camel-case methods are PySyncObj's `Journal`; positions there count from the first entry kept. Index and term of
the entries are in the log table as u64 key -> u64 term + raw command.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec

from consensus.limits import INDEX_MAX, RaftSettings
from consensus.membership import Configuration, decode_configuration
from consensus.messages import CONFIGURATION, NO_OP, Entry
from storage.ids import NodeId
from storage.transactions import Store, Transaction

LOG_TABLE = "log"
RAFT_TABLE = "raft"
TABLES = (LOG_TABLE, RAFT_TABLE)

HARD_KEY = b"hard"
_CONFIGURATION_KEY = b"configuration"
"""Index and configuration: the latest that is applied. Later ones are in the log."""
_VOTERS_KEY = b"voters"
"""Where versions before 0.2 kept the voters of the founding; taken over at the first start."""
QUARANTINE_KEY = b"quarantine"
"""Why this replica is in quarantine; no such row if it is not."""
_CONFIGURATION_KIND = CONFIGURATION[0]
_FORMAT = 1


class HardState(msgspec.Struct, frozen=True, array_like=True):
    """What the engine must not forget, beside its log. Appended fields need a default."""

    format: int
    term: int
    vote: str | None
    commit_index: int
    """Only a hint: it may lag behind what is known to be committed, never lead it."""
    applied_index: int
    log_bytes: int = 0
    """Of the log's values; too low where a version that did not count has written."""


class Journal:
    """Durable only after `flush` *and* the commit of its transaction. If either fails, throw the journal away."""

    def __init__(self, store: Store, settings: RaftSettings) -> None:
        self._store = store
        self._settings = settings
        self.open_txn: Transaction | None = None
        """The tick's transaction, while there is one: older entries are then read through it."""
        self.held_from = INDEX_MAX
        """Entries from here on are kept longer, for followers that are catching up."""
        self.on_configuration: Callable[[], None] = lambda: None
        """Called when `configuration` has changed."""
        with store.read() as txn:
            state = read_hard_state(txn)
            first, last = txn.first(LOG_TABLE), txn.last(LOG_TABLE)
            self._configurations = [read_configuration(txn) or (0, Configuration())]
            known_index = max(state.applied_index, self._configurations[0][0])
            for key, value in txn.scan(LOG_TABLE, (known_index + 1).to_bytes(8, "big")):
                self._note(int.from_bytes(key, "big"), value[8:])
        self._term, self._vote = state.term, state.vote
        self._commit_index, self.applied_index = state.commit_index, state.applied_index
        self._log_bytes = state.log_bytes
        self._is_hard_changed = False
        self._head: Entry | None = None if first is None else _decode(*first)
        self._tail: list[Entry] = [] if last is None else [_decode(*last)]
        self._tail_bytes = sum(len(entry[0]) for entry in self._tail)
        self.first_index = 1 if self._head is None else self._head[1]
        self.last_index = 0 if last is None else self._tail[0][1]
        self._tail_first = self.last_index if self._tail else 1
        self.flushed_index = self.last_index
        """Up to here the log is in the store, or in a transaction for it."""
        self.write_due_at: float | None = None
        self._cut_from: int | None = None

    # -- reading --

    @property
    def last_term(self) -> int:
        return self._tail[-1][2] if self._tail else 0

    def term_at(self, index: int) -> int:
        """Of an entry between `first_index` and `last_index`."""
        if index >= self._tail_first:
            return self._tail[index - self._tail_first][2]
        with self._read() as txn:
            value = txn.get(LOG_TABLE, index.to_bytes(8, "big"))
        assert value is not None, f"log entry {index} is missing"
        return int.from_bytes(value[:8], "big")

    def entries(self, start: int, stop: int, *, bytes_max: int, count_max: int, count_min: int = 1) -> list[Entry]:
        """Entries from `start` up to before `stop`, cut to the caps, but at least `count_min` if there are so many."""
        start, stop = max(start, self.first_index), min(stop, self.last_index + 1)
        stop = min(stop, start + max(count_max, count_min))
        if start >= stop:
            return []
        found: list[Entry] = []
        size = 0
        if start < self._tail_first:
            with self._read() as txn:
                until = min(stop, self._tail_first)
                for key, value in txn.scan(LOG_TABLE, start.to_bytes(8, "big"), until.to_bytes(8, "big")):
                    size += len(value) - 8
                    if size > bytes_max and len(found) >= count_min:
                        return found
                    found.append(_decode(key, value))
            start = until
        newest = self._tail[start - self._tail_first : stop - self._tail_first]
        if size + sum([len(entry[0]) for entry in newest]) <= bytes_max:
            return found + newest if found else newest
        for entry in newest:
            size += len(entry[0])
            if size > bytes_max and len(found) >= count_min:
                break
            found.append(entry)
        return found

    def _read(self) -> AbstractContextManager[Transaction]:
        return self._store.read() if self.open_txn is None else nullcontext(self.open_txn)

    def __len__(self) -> int:
        return self.last_index - self.first_index + 1

    def __getitem__(self, item: Any) -> Any:
        """Slices are capped in bytes and entries, at two entries or more: the engine takes what it gets from the front
        and comes again, and asks only for "more than one" where it cuts the log."""
        if isinstance(item, slice):
            start = self.first_index + (item.start or 0)
            stop = self.last_index + 1 if item.stop is None else self.first_index + item.stop
            if stop == start + 1 and self._tail_first <= start <= self.last_index:
                return [self._tail[start - self._tail_first]]
            return self.entries(
                start,
                stop,
                bytes_max=self._settings.slice_bytes_max,
                count_max=self._settings.slice_entries_max,
                count_min=2,
            )
        if item == -1:
            return self._tail[-1]
        if item == 0 and self._head is not None:
            return self._head
        raise IndexError(item)

    # -- the configuration --

    @property
    def configuration(self) -> Configuration:
        """The latest in the log, applied or not (row 17)."""
        return self._configurations[-1][1]

    @property
    def applied_configuration(self) -> tuple[int, Configuration]:
        """With its index."""
        return self._configurations[0]

    @property
    def is_changing(self) -> bool:
        """The latest configuration is not applied yet (row 9)."""
        return len(self._configurations) > 1

    def apply_configuration(self, index: int, txn: Transaction) -> None:
        """That of the entry at `index`, which is committed, is the base from now on."""
        if index <= self._configurations[0][0]:
            return  # overruled: see `consensus.recovery`
        while self._configurations[0][0] < index:
            del self._configurations[0]
        write_configuration(txn, *self._configurations[0])

    def _note(self, index: int, command: bytes) -> None:
        if command[0] == _CONFIGURATION_KIND:
            configuration = decode_configuration(command[1:])
            assert configuration is not None, f"log entry {index} is not the configuration that it was"
            self._configurations.append((index, configuration))

    # -- changing --

    def add(self, command: bytes, idx: int, term: int) -> None:
        if self._head is None:
            self._head, self.first_index, self._tail_first = (command, idx, term), idx, idx
        else:
            assert idx == self.last_index + 1, f"a gap in the log: {idx} after {self.last_index}"
        self._tail.append((command, idx, term))
        self._tail_bytes += len(command)
        self.last_index = idx
        if command[0] == _CONFIGURATION_KIND:
            self._note(idx, command)
            self.on_configuration()

    def deleteEntriesFrom(self, position: int) -> None:
        index = self.first_index + position
        if index > self.last_index:
            return
        assert index > self.first_index, "the first entry is agreed and never cut"
        assert index > self.applied_index, "an applied entry is never cut"
        if index <= self.flushed_index:
            self._cut_from = index if self._cut_from is None else min(index, self._cut_from)
            self.flushed_index = index - 1
        self.last_index = index - 1
        if self._configurations[-1][0] >= index:
            self._configurations = [one for one in self._configurations if one[0] < index]
            self.on_configuration()
        if index > self._tail_first:
            del self._tail[index - self._tail_first :]
        else:
            # The engine reads the last entry all the time: keep it at hand.
            previous = self.entries(index - 1, index, bytes_max=0, count_max=1)
            self._tail, self._tail_first = previous, index - 1
        self._tail_bytes = sum(len(entry[0]) for entry in self._tail)

    def clear(self) -> None:
        raise AssertionError("the engine clears its log only for dumps, and there are none")

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        assert term >= self._term, "a term never goes back"
        self._term, self._vote, self._is_hard_changed = term, votedForNodeId, True

    def getCurrentTerm(self) -> int:
        return self._term

    def getVotedForNodeId(self) -> str | None:
        return self._vote

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        return min(max(self._commit_index, self.applied_index, 1), max(self.last_index, 1))

    def set_applied(self, index: int) -> None:
        self.applied_index, self._is_hard_changed = index, True

    def onOneSecondTimer(self) -> None:
        """Nothing is left to a timer."""

    def _destroy(self) -> None:
        """The store belongs to the caller."""

    # -- writing --

    @property
    def is_long(self) -> bool:
        """Longer than what is kept in any case, and a bit, so that compaction pays."""
        settings = self._settings
        return len(self) > settings.log_keep_entries * 9 // 8 or self._log_bytes > settings.log_keep_bytes * 9 // 8

    def may_wait(self, now: float) -> bool:
        """For a leader: whether what is to be written is new entries alone, and `write_delay_s` has not passed since
        the oldest came. They are then written with what is applied of them, one disk wait instead of two."""
        if self._is_hard_changed or self._cut_from is not None or self.last_index <= self.flushed_index:
            return False
        if self.write_due_at is None:
            self.write_due_at = now + self._settings.write_delay_s
        return now < self.write_due_at

    @property
    def is_dirty(self) -> bool:
        """A commit index that has moved alone is no reason to write: it is only a hint."""
        return self._is_hard_changed or self.last_index > self.flushed_index or self._cut_from is not None

    def flush(self, txn: Transaction) -> None:
        """Write what has changed into `txn`, and evict from memory what exceeds the caps."""
        if self._cut_from is not None:
            start = self._cut_from.to_bytes(8, "big")
            self._log_bytes -= sum(len(value) for _, value in txn.scan(LOG_TABLE, start))
            txn.delete_range(LOG_TABLE, start, None)
            self._cut_from = None
        new = self._tail[self.flushed_index + 1 - self._tail_first :]
        if new:
            rows = [(index.to_bytes(8, "big"), term.to_bytes(8, "big") + command) for command, index, term in new]
            txn.put_many(LOG_TABLE, rows)
            self._log_bytes += sum([len(value) for _, value in rows])
        self.flushed_index, self.write_due_at = self.last_index, None
        if self.is_long:
            self._compact(txn)
        write_hard_state(
            txn,
            HardState(_FORMAT, self._term, self._vote, self._commit_index, self.applied_index, max(self._log_bytes, 0)),
        )
        self._is_hard_changed = False
        if len(self._tail) > self._settings.tail_entries_max or self._tail_bytes > self._settings.tail_bytes_max:
            self._evict()

    def _compact(self, txn: Transaction) -> None:
        """Forget applied entries beyond those that are kept, a bounded number at a time. The first one kept stands for
        all before it: its term is what a follower's log is compared with, its command is never sent."""
        settings = self._settings
        count, size = len(self), self._log_bytes
        last = min(self.applied_index, self.last_index, self.first_index + settings.compaction_entries)
        index = self.first_index
        start, read_bytes = index.to_bytes(8, "big"), 0
        for _, value in txn.scan(LOG_TABLE, start, last.to_bytes(8, "big")):
            is_held = count <= settings.log_hold_entries and size <= settings.log_hold_bytes and index >= self.held_from
            if is_held or (count <= settings.log_keep_entries and size <= settings.log_keep_bytes):
                break
            count, size, index = count - 1, size - len(value), index + 1
            read_bytes += len(value)
            if read_bytes >= settings.slice_bytes_max:
                break
        if index == self.first_index:
            return
        key = index.to_bytes(8, "big")
        txn.delete_range(LOG_TABLE, start, key)
        head = txn.get(LOG_TABLE, key)
        assert head is not None, f"log entry {index} is missing"
        self._head = _decode(key, head)
        self.first_index, self._log_bytes = index, size
        if index > self._tail_first:
            self._tail_bytes -= sum(len(entry[0]) for entry in self._tail[: index - self._tail_first])
            del self._tail[: index - self._tail_first]
            self._tail_first = index

    def _evict(self) -> None:
        """Down to three quarters of the caps, so that it happens rarely; the last entry always stays."""
        count = len(self._tail) - 1
        entries_keep = self._settings.tail_entries_max * 3 // 4
        bytes_keep = self._settings.tail_bytes_max * 3 // 4
        evicted = 0
        while evicted < count and (len(self._tail) - evicted > entries_keep or self._tail_bytes > bytes_keep):
            self._tail_bytes -= len(self._tail[evicted][0])
            evicted += 1
        del self._tail[:evicted]
        self._tail_first += evicted


def read_quarantine(store: Store) -> str:
    """Why the replica of this store is in quarantine; empty if it is not."""
    with store.read() as txn:
        return (txn.get(RAFT_TABLE, QUARANTINE_KEY) or b"").decode(errors="replace")


def read_hard_state(txn: Transaction) -> HardState:
    hard = txn.get(RAFT_TABLE, HARD_KEY)
    return HardState(_FORMAT, 0, None, 1, 0) if hard is None else msgspec.msgpack.decode(hard, type=HardState)


def write_hard_state(txn: Transaction, state: HardState) -> None:
    txn.put(RAFT_TABLE, HARD_KEY, msgspec.msgpack.encode(state))


def read_configuration(txn: Transaction) -> tuple[int, Configuration] | None:
    """The latest one applied, with its index; what the log has up to there does not count. None if no replica ever ran
    on this store."""
    stored = txn.get(RAFT_TABLE, _CONFIGURATION_KEY)
    if stored is not None:
        return msgspec.msgpack.decode(stored, type=tuple[int, Configuration])
    founders = txn.get(RAFT_TABLE, _VOTERS_KEY)
    if founders is None:
        return None
    return 0, Configuration(msgspec.msgpack.decode(founders, type=tuple[NodeId, ...]))


def write_configuration(txn: Transaction, index: int, configuration: Configuration) -> None:
    txn.put(RAFT_TABLE, _CONFIGURATION_KEY, msgspec.msgpack.encode((index, configuration)))
    txn.delete(RAFT_TABLE, _VOTERS_KEY)


def read_term(txn: Transaction, index: int) -> int | None:
    """Of a log entry; None if the log does not have it."""
    value = txn.get(LOG_TABLE, index.to_bytes(8, "big"))
    return None if value is None else int.from_bytes(value[:8], "big")


def write_base(txn: Transaction, index: int, term: int) -> None:
    """An empty log that begins after `index`: everything up to there is applied. The engine wants one entry at least,
    so the last of those is there as one that does nothing."""
    txn.delete_range(LOG_TABLE, b"", None)
    txn.put(LOG_TABLE, index.to_bytes(8, "big"), term.to_bytes(8, "big") + NO_OP)
    write_hard_state(txn, HardState(_FORMAT, term, None, index, index, 8 + len(NO_OP)))


def _decode(key: bytes, value: bytes) -> Entry:
    return bytes(value[8:]), int.from_bytes(key, "big"), int.from_bytes(value[:8], "big")
