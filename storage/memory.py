"""A store in RAM with the contract of `storage.environment`, for simulations: fast, deterministic, and with crashes.

What a disk would keep is what was committed; the object itself is the disk, so it outlives the "process": `crash()`,
then go on with the same object. `close()` only checks that nothing is left open. Unlike the LMDB environment it may be
used on a thread with a running asyncio loop, because it never waits for a disk.

Rows live in a dict beside a sorted list of keys. A write transaction changes them in place and remembers old values;
a table that a snapshot looks at is copied first.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, get_ident

from storage.errors import StorageError
from storage.limits import KEY_BYTES_MAX
from storage.transactions import StoreStatistics


class MemoryStore:
    def __init__(self, tables: Sequence[str]) -> None:
        self._tables = {name: _Rows({}, []) for name in tables}
        self._write_lock = Lock()
        self._lock = Lock()  # guards `_tables`, pins and the fields below
        self._writer: MemoryTransaction | None = None
        self._writer_thread: int | None = None
        self._holders: dict[int, int] = {}
        self._failure: StorageError | None = None

    def begin_write(self) -> "MemoryTransaction":
        thread = get_ident()
        if self._writer_thread == thread:
            raise RuntimeError("this thread has a write transaction already")
        if thread in self._holders:
            raise RuntimeError("this thread holds a snapshot; end it before writing")
        self._write_lock.acquire()
        self._writer_thread = thread
        self._writer = MemoryTransaction(self, self._tables, is_write=True)
        return self._writer

    @contextmanager
    def write(self) -> Iterator["MemoryTransaction"]:
        txn = self.begin_write()
        try:
            yield txn
        except BaseException:
            txn.abort()
            raise
        txn.commit()

    @contextmanager
    def read(self) -> Iterator["MemoryTransaction"]:
        thread = get_ident()
        with self._lock:
            undo = self._writer._undo if self._writer is not None else {}
            tables = {}
            for name, rows in self._tables.items():
                tables[name] = rows.as_before(undo[name]) if name in undo else rows
                tables[name].pins += 1
            self._holders[thread] = self._holders.get(thread, 0) + 1
        txn = MemoryTransaction(self, tables, is_write=False)
        try:
            yield txn
        finally:
            with self._lock:
                txn._is_over = True
                for rows in tables.values():
                    rows.pins -= 1
                self._holders[thread] -= 1
                if not self._holders[thread]:
                    del self._holders[thread]

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(self._tables)

    def adopt(self, other: "MemoryStore") -> None:
        if self._writer_thread == get_ident():
            raise RuntimeError("replaced inside a write transaction")
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        with self._write_lock, self._lock:
            self._tables = other._tables

    def statistics(self) -> StoreStatistics:
        """Sizes are those of no disk: bytes of keys and values are not counted, `used_bytes` is the number of rows."""
        with self._lock:
            used = sum(len(rows.keys) for rows in self._tables.values())
            return StoreStatistics(used, 1 << 40, 1 << 40, sum(self._holders.values()))

    def close(self) -> None:
        if self._writer is not None or self._holders:
            raise RuntimeError("closed with an open transaction")

    def crash(self) -> None:
        """What was not committed is lost, as if the process had been killed. Snapshots must have ended."""
        if self._writer is not None:
            self._writer._end(keep=False)

    def fail_next_commit(self, error: StorageError) -> None:
        """The next commit aborts and raises this error once: a full or failing disk."""
        self._failure = error

    def clone(self) -> "MemoryStore":
        """An independent store with what is committed now: a copied disk."""
        copy = MemoryStore(())
        with self._lock:
            undo = self._writer._undo if self._writer is not None else {}
            copy._tables = {name: rows.as_before(undo.get(name, {})) for name, rows in self._tables.items()}
        return copy


class _Rows:
    __slots__ = ("keys", "pins", "values")

    def __init__(self, values: dict[bytes, bytes], keys: list[bytes]) -> None:
        self.values = values
        self.keys = keys  # sorted
        self.pins = 0  # snapshots that look at it: it must not be changed while there are any

    def copy(self) -> "_Rows":
        return _Rows(self.values.copy(), self.keys.copy())

    def as_before(self, undo: dict[bytes, bytes | None]) -> "_Rows":
        """A copy without the changes of the open transaction, which may go on making some on its own thread: values
        are copied first, so that whatever changes in between is in `undo` already."""
        rows = _Rows(self.values.copy(), [])
        rows.revert(undo.copy())
        return rows

    def revert(self, undo: dict[bytes, bytes | None]) -> None:
        for key, old in undo.items():
            if old is None:
                self.values.pop(key, None)
            else:
                self.values[key] = old
        self.keys = sorted(self.values)


class MemoryTransaction:
    __slots__ = ("_changes", "_is_over", "_is_write", "_store", "_tables", "_undo")

    def __init__(self, store: MemoryStore, tables: dict[str, _Rows], *, is_write: bool) -> None:
        self._store = store
        self._tables = tables
        self._is_write = is_write
        self._is_over = False
        self._undo: dict[str, dict[bytes, bytes | None]] = {}  # of changed tables: the values before
        self._changes = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        if self._is_over:
            raise RuntimeError("the transaction is over")
        return self._tables[table].values.get(key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        undo = self._undo.get(table)
        if undo is None or self._is_over:
            undo = self._touch(table)
        rows = self._tables[table]
        values = rows.values
        old = values.get(key)
        if old is None:
            if not 0 < len(key) <= KEY_BYTES_MAX:
                raise ValueError(f"a key of {len(key)} bytes; 1 to {KEY_BYTES_MAX} are allowed")
            keys = rows.keys
            if not keys or key > keys[-1]:
                keys.append(key)
            else:
                insort(keys, key)
        if key not in undo:
            undo[key] = old
        values[key] = value
        self._changes += 1

    def put_many(self, table: str, rows: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in rows:
            self.put(table, key, value)

    def delete(self, table: str, key: bytes) -> bool:
        undo = self._touch(table)
        rows = self._tables[table]
        old = rows.values.get(key)
        if old is None:
            return False
        if key not in undo:
            undo[key] = old  # before the change: a snapshot that begins on another thread relies on it
        del rows.values[key]
        del rows.keys[bisect_left(rows.keys, key)]
        self._changes += 1
        return True

    def scan(
        self,
        table: str,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        left = -1 if limit is None else limit
        last: bytes | None = None
        while left:
            if self._is_over:
                raise RuntimeError("the transaction is over")
            rows = self._tables[table]
            keys, values = rows.keys, rows.values
            low, high = bisect_left(keys, start), len(keys) if stop is None else bisect_left(keys, stop)
            if last is not None:
                if reverse:
                    high = min(high, bisect_left(keys, last))
                else:
                    low = max(low, bisect_right(keys, last))
            changes = self._changes
            for position in range(high - 1, low - 1, -1) if reverse else range(low, high):
                last = keys[position]
                yield last, values[last]
                left -= 1
                if not left or changes != self._changes or self._is_over:
                    break
            else:
                return

    def delete_range(self, table: str, start: bytes, stop: bytes | None) -> int:
        undo = self._touch(table)
        rows = self._tables[table]
        low = bisect_left(rows.keys, start)
        high = len(rows.keys) if stop is None else bisect_left(rows.keys, stop)
        gone = rows.keys[low:high]
        for key in gone:
            undo.setdefault(key, rows.values[key])
            del rows.values[key]
        del rows.keys[low:high]
        self._changes += 1
        return len(gone)

    def first(self, table: str) -> tuple[bytes, bytes] | None:
        return next(self.scan(table, limit=1), None)

    def last(self, table: str) -> tuple[bytes, bytes] | None:
        return next(self.scan(table, reverse=True, limit=1), None)

    def count(self, table: str) -> int:
        if self._is_over:
            raise RuntimeError("the transaction is over")
        return len(self._tables[table].keys)

    def commit(self) -> None:
        if self._is_over:
            raise RuntimeError("the transaction is over")
        if not self._is_write:
            raise RuntimeError("a snapshot cannot be committed")
        failure, self._store._failure = self._store._failure, None
        self._end(keep=failure is None)
        if failure is not None:
            raise failure

    def abort(self) -> None:
        if self._is_write and not self._is_over:
            self._end(keep=False)

    def _touch(self, table: str) -> dict[bytes, bytes | None]:
        """Before a change: refuse what may not change, keep snapshots as they are."""
        if self._is_over:
            raise RuntimeError("the transaction is over")
        if not self._is_write:
            raise RuntimeError("a snapshot cannot be changed; use write()")
        undo = self._undo.get(table)
        if undo is None:
            with self._store._lock:
                rows = self._tables[table]
                if rows.pins:
                    self._tables[table] = rows.copy()
                undo = self._undo[table] = {}
        return undo

    def _end(self, *, keep: bool) -> None:
        store = self._store
        with store._lock:
            if not keep:
                for table, undo in self._undo.items():
                    self._tables[table].revert(undo)
            self._undo = {}
            self._is_over = True
            store._writer = None
            store._writer_thread = None
        store._write_lock.release()
