"""Typed tables over ordered keys, and the digest that tells whether two replicas hold the same rows.

How `consensus.state` uses it. Tables are module constants; every one of them goes through a transaction handed in:

    SESSIONS = Table("sessions", Session)
    ...
    def apply(txn, index, command):
        rows = DigestingTransaction(txn, REPLICATED, "state_meta", b"digest")
        ... SESSIONS.put(rows, uuid_key(session.id), session) ...
        rows.flush()          # once, at the end of the command: adds what changed to the stored digest

Reading needs no wrapper: `SESSIONS.get(snapshot, key)`. Code that changes a replicated table without the wrapper makes
the digest wrong; `recompute_digest` in tests finds it. The digest's own table must not be among the digested.
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Generic, TypeVar
from uuid import UUID

from storage.codec import DIGEST_BYTES, decode, encode
from storage.errors import CodecError, CorruptStore
from storage.ids import SessionId
from storage.transactions import Transaction

Row = TypeVar("Row")

_MODULUS = 1 << (8 * DIGEST_BYTES)


def u64(number: int) -> bytes:
    """8 bytes, big-endian: sorts like the number. Raises OverflowError outside 0..2^64-1."""
    return number.to_bytes(8, "big")


def from_u64(key: bytes) -> int:
    return int.from_bytes(key, "big")


def uuid_key(text: SessionId | str) -> bytes:
    """16 bytes. Raises ValueError for anything that is not a UUID."""
    return UUID(text).bytes


def branch_key(session_id: SessionId | str, index: int) -> bytes:
    """20 bytes: the branches of a session lie together, in order. A session's range is [uuid, prefix_end(uuid))."""
    return UUID(session_id).bytes + index.to_bytes(4, "big")


def prefix_end(prefix: bytes) -> bytes | None:
    """The first key after all keys that begin with `prefix`; None if there is none (all 0xff)."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return None
    return stripped[:-1] + bytes([stripped[-1] + 1])


class Table(Generic[Row]):
    """A table whose values are encoded rows of one type. Stateless: the transaction is an argument.

    A row that cannot be decoded raises CorruptStore: it was written by us, so the disk, or a version, is wrong.
    """

    __slots__ = ("kind", "name")

    def __init__(self, name: str, kind: type[Row]) -> None:
        self.name = name
        self.kind = kind

    def get(self, txn: Transaction, key: bytes) -> Row | None:
        data = txn.get(self.name, key)
        return None if data is None else self._decode(key, data)

    def put(self, txn: Transaction, key: bytes, row: Row) -> None:
        txn.put(self.name, key, encode(row))

    def delete(self, txn: Transaction, key: bytes) -> bool:
        return txn.delete(self.name, key)

    def delete_range(self, txn: Transaction, start: bytes, stop: bytes | None) -> int:
        return txn.delete_range(self.name, start, stop)

    def scan(
        self,
        txn: Transaction,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, Row]]:
        """See `Transaction.scan`."""
        for key, data in txn.scan(self.name, start, stop, reverse=reverse, limit=limit):
            yield key, self._decode(key, data)

    def first(self, txn: Transaction) -> tuple[bytes, Row] | None:
        found = txn.first(self.name)
        return None if found is None else (found[0], self._decode(*found))

    def last(self, txn: Transaction) -> tuple[bytes, Row] | None:
        found = txn.last(self.name)
        return None if found is None else (found[0], self._decode(*found))

    def count(self, txn: Transaction) -> int:
        return txn.count(self.name)

    def _decode(self, key: bytes, data: bytes) -> Row:
        try:
            return decode(data, self.kind)
        except CodecError as error:
            raise CorruptStore(
                f"table {self.name!r}, key {key.hex()}: the stored row cannot be read ({error}); "
                "restore this node from a backup, or remove its data directory and let it join again as a new node"
            ) from error


class DigestingTransaction:
    """A write transaction that also keeps the digest of the rows in `tables` up to date.

    The digest is the sum modulo 2^128 of a hash of every row (table, key, value), so it does not depend on the order
    of changes and is updated in constant time: the hash of the old row is subtracted, that of the new one added. A sum
    of hashes is not safe against someone who can choose rows to collide; it is meant to find faults, not attacks.

    Changes are collected and stored by `flush()`; without it the digest in the table is stale. Writing a value that is
    already there is skipped altogether.
    """

    __slots__ = ("_delta", "_digest_key", "_digest_table", "_tables", "_txn")

    def __init__(self, txn: Transaction, tables: frozenset[str], digest_table: str, digest_key: bytes) -> None:
        assert digest_table not in tables, "the digest cannot digest itself"
        self._txn = txn
        self._tables = tables
        self._digest_table = digest_table
        self._digest_key = digest_key
        self._delta = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._txn.get(table, key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        if table in self._tables:
            old = self._txn.get(table, key)
            if old == value:
                return
            self._txn.put(table, key, value)
            if old is not None:
                self._delta -= row_hash(table, key, old)
            self._delta += row_hash(table, key, value)
        else:
            self._txn.put(table, key, value)

    def delete(self, table: str, key: bytes) -> bool:
        if table in self._tables:
            old = self._txn.get(table, key)
            if old is None:
                return False
            self._delta -= row_hash(table, key, old)
        return self._txn.delete(table, key)

    def scan(
        self,
        table: str,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        return self._txn.scan(table, start, stop, reverse=reverse, limit=limit)

    def delete_range(self, table: str, start: bytes, stop: bytes | None) -> int:
        if table in self._tables:
            for key, value in self._txn.scan(table, start, stop):
                self._delta -= row_hash(table, key, value)
        return self._txn.delete_range(table, start, stop)

    def first(self, table: str) -> tuple[bytes, bytes] | None:
        return self._txn.first(table)

    def last(self, table: str) -> tuple[bytes, bytes] | None:
        return self._txn.last(table)

    def count(self, table: str) -> int:
        return self._txn.count(table)

    def digest(self) -> bytes:
        """As it will be after `flush()`."""
        number = int.from_bytes(stored_digest(self._txn, self._digest_table, self._digest_key), "big")
        return ((number + self._delta) % _MODULUS).to_bytes(DIGEST_BYTES, "big")

    def flush(self) -> None:
        if self._delta:
            digest = self.digest()
            self._delta = 0
            self._txn.put(self._digest_table, self._digest_key, digest)


def stored_digest(txn: Transaction, digest_table: str, digest_key: bytes) -> bytes:
    """Of what is in the tables, provided that every change went through `DigestingTransaction`; zeros when empty."""
    return txn.get(digest_table, digest_key) or bytes(DIGEST_BYTES)


def recompute_digest(txn: Transaction, tables: Iterable[str]) -> bytes:
    """From all rows, in time proportional to them: for tests, and after a snapshot was installed."""
    total = sum(row_hash(table, key, value) for table in tables for key, value in txn.scan(table))
    return (total % _MODULUS).to_bytes(DIGEST_BYTES, "big")


def row_hash(table: str, key: bytes, value: bytes) -> int:
    """Lengths are hashed too: no two rows share an input."""
    name = table.encode()
    header = len(name).to_bytes(2, "big") + len(key).to_bytes(2, "big") + name + key
    return int.from_bytes(blake2b(header + value, digest_size=DIGEST_BYTES).digest(), "big")
