"""The ports of a store: what a transaction and a store can do, whoever implements them.

Implemented by `storage.environment` (LMDB) and `storage.memory` (its twin for simulations); one contract test suite
runs over both. Tables are ordered maps from bytes to bytes, named when the store is opened; an unknown name is a
KeyError. Keys are 1 to 511 bytes (else ValueError); values may be empty.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, Self


class StoreStatistics(NamedTuple):
    used_bytes: int
    """Pages ever used, also those that are free for reuse."""
    map_bytes: int
    disk_free_bytes: int
    """On the file system of the data directory, as an unprivileged process may use it."""
    readers: int
    """Open snapshots of this process."""


class Transaction(Protocol):
    """A consistent view of all tables. A write transaction sees its own writes. Not for use by two threads at once."""

    def get(self, table: str, key: bytes) -> bytes | None: ...

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Insert or replace. On a snapshot: RuntimeError, as for every change."""

    def put_many(self, table: str, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """The same as a `put` of each, and cheaper."""

    def delete(self, table: str, key: bytes) -> bool:
        """Whether the key was there."""

    def scan(
        self,
        table: str,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows of the half-open range [start, stop) in key order; `reverse` walks the same range from its end.

        The caller may change any table meanwhile. The scan is live: each step gives the next key after the last one
        given, as things stand at that step. So it is deterministic, and gives no key twice.
        """

    def delete_range(self, table: str, start: bytes, stop: bytes | None) -> int:
        """Delete [start, stop); the number of rows deleted."""

    def first(self, table: str) -> tuple[bytes, bytes] | None: ...

    def last(self, table: str) -> tuple[bytes, bytes] | None: ...

    def count(self, table: str) -> int: ...


class WriteTransaction(Transaction, Protocol):
    """Ends with `commit()` or `abort()` on the thread that began it; used later it raises RuntimeError."""

    def commit(self) -> None:
        """Returns when everything is durable. If it raises StorageError the transaction is over: aborted for
        DiskFull and MapExhausted, unknown for DiskFailed."""

    def abort(self) -> None:
        """Forget every change. Harmless when already over."""


class Store(Protocol):
    @property
    def tables(self) -> tuple[str, ...]: ...

    def begin_write(self) -> WriteTransaction:
        """Waits for the write transaction of another thread. A second one on the same thread is a RuntimeError, and
        so is one on a thread that holds a snapshot (it could not grow the map)."""

    def write(self) -> AbstractContextManager[WriteTransaction]:
        """A write transaction that commits at exit and aborts on an exception."""

    def read(self) -> AbstractContextManager[Transaction]:
        """A snapshot of what is committed. Keep it short: it holds back the reuse of pages and the growth of the
        map. It must not outlive its `with` block."""

    def adopt(self, other: Self) -> None:
        """Become what `other` is, a store of the same kind with the same tables, which ends with it. All at once: a
        crash leaves the old data or the new; durable on return. Not within a transaction. Raises StorageError; it is
        StoreBusy if snapshots stay open."""

    def statistics(self) -> StoreStatistics:
        """Cheap, on any thread."""

    def close(self) -> None: ...
