"""A transaction of `storage.environment`: the hot path of the replica, so it does as little as it can per call."""

from collections.abc import Iterator, Sequence
from threading import get_ident
from typing import Any, Protocol

import lmdb

from storage.errors import StorageError
from storage.limits import KEY_BYTES_MAX, SCAN_CHUNK_BYTES_MAX, SCAN_ROWS_FIRST, SCAN_ROWS_MAX


class Owner(Protocol):
    def _write_ended(self) -> None: ...

    def _translate(self, error: lmdb.Error) -> StorageError: ...


class LmdbTransaction:
    """See `storage.transactions`. An error of LMDB inside a write transaction aborts it, since LMDB would refuse to
    commit it anyhow."""

    __slots__ = ("_changes", "_get", "_handles", "_is_over", "_is_write", "_owner", "_put", "_raw", "_thread")

    def __init__(self, owner: Owner, raw: lmdb.Transaction, handles: dict[str, Any], *, is_write: bool) -> None:
        self._owner = owner
        self._raw = raw
        self._handles = handles
        self._is_write = is_write
        self._is_over = False
        self._changes = 0  # tells a scan that what it fetched ahead may be stale
        self._thread = get_ident()
        self._get: Any = raw.get
        self._put: Any = raw.put

    def get(self, table: str, key: bytes) -> bytes | None:
        if self._is_over:
            raise RuntimeError("the transaction is over")
        try:
            value: bytes | None = self._get(key, None, self._handles[table])
        except lmdb.BadValsizeError:
            return None
        except lmdb.Error as error:
            raise self._failed(error) from error
        return value

    def put(self, table: str, key: bytes, value: bytes) -> None:
        if self._is_over or not self._is_write:
            raise self._refusal()
        self._changes += 1
        try:
            self._put(key, value, True, True, False, self._handles[table])  # dupdata, overwrite, append, db
        except lmdb.BadValsizeError:
            raise ValueError(f"a key of {len(key)} bytes; 1 to {KEY_BYTES_MAX} are allowed") from None
        except lmdb.Error as error:
            raise self._failed(error) from error

    def put_many(self, table: str, rows: Sequence[tuple[bytes, bytes]]) -> None:
        if self._is_over or not self._is_write:
            raise self._refusal()
        self._changes += 1
        try:
            with self._raw.cursor(self._handles[table]) as cursor:
                cursor.putmulti(rows, True, True, False)  # dupdata, overwrite, append
        except lmdb.BadValsizeError:
            raise ValueError(f"a key that is too long or empty; 1 to {KEY_BYTES_MAX} bytes are allowed") from None
        except lmdb.Error as error:
            raise self._failed(error) from error

    def delete(self, table: str, key: bytes) -> bool:
        if self._is_over or not self._is_write:
            raise self._refusal()
        self._changes += 1
        try:
            return bool(self._raw.delete(key, b"", self._handles[table]))
        except lmdb.BadValsizeError:
            return False
        except lmdb.Error as error:
            raise self._failed(error) from error

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
        wanted = SCAN_ROWS_FIRST
        while left:
            rows = self._fetch(table, start, stop, reverse, wanted if left < 0 else min(wanted, left))
            if not rows:
                return
            changes = self._changes
            for row in rows:
                yield row
                left -= 1
                if changes != self._changes or self._is_over or not left:
                    # Go on from the last key given. Small steps again: a caller that changes rows at every step
                    # would make us fetch most of a chunk in vain each time.
                    wanted = 1
                    break
            else:
                wanted = min(wanted * 2, SCAN_ROWS_MAX)
            if reverse:
                stop = row[0]
            else:
                start = row[0] + b"\0"

    def delete_range(self, table: str, start: bytes, stop: bytes | None) -> int:
        if self._is_over or not self._is_write:
            raise self._refusal()
        self._changes += 1
        handle = self._handles[table]
        raw = self._raw
        try:
            if not start and stop is None:
                count = int(raw.stat(handle)["entries"])
                raw.drop(handle, delete=False)
                return count
            count = 0
            with raw.cursor(handle) as opened:
                cursor: Any = opened  # the stubs cannot tell that keys are bytes here
                found = cursor.set_range(start) if start else cursor.first()
                while found and (stop is None or cursor.key() < stop):
                    cursor.delete()  # moves to the next row
                    count += 1
                    found = bool(cursor.key())  # empty when there is no next row; keys are never empty
            return count
        except lmdb.Error as error:
            raise self._failed(error) from error

    def first(self, table: str) -> tuple[bytes, bytes] | None:
        return next(iter(self._fetch(table, b"", None, False, 1)), None)

    def last(self, table: str) -> tuple[bytes, bytes] | None:
        return next(iter(self._fetch(table, b"", None, True, 1)), None)

    def count(self, table: str) -> int:
        if self._is_over:
            raise RuntimeError("the transaction is over")
        return int(self._raw.stat(self._handles[table])["entries"])

    def commit(self) -> None:
        if self._is_over or not self._is_write:
            raise self._refusal()
        self._check_thread()
        self._is_over = True
        try:
            self._raw.commit()
        except lmdb.Error as error:
            self._raw.abort()
            raise self._owner._translate(error) from error
        finally:
            self._owner._write_ended()

    def abort(self) -> None:
        if self._is_over or not self._is_write:
            return
        self._check_thread()
        self._is_over = True
        try:
            self._raw.abort()
        finally:
            self._owner._write_ended()

    def _fetch(self, table: str, start: bytes, stop: bytes | None, reverse: bool, rows_max: int) -> list[Any]:
        if self._is_over:
            raise RuntimeError("the transaction is over")
        rows: list[Any] = []
        bytes_left = SCAN_CHUNK_BYTES_MAX
        try:
            with self._raw.cursor(self._handles[table]) as opened:
                cursor: Any = opened  # the stubs cannot tell that keys are bytes here
                if reverse:
                    # To the last key before `stop`: one before the first key at or after it.
                    found = cursor.prev() if stop is not None and _seek(cursor, stop) else cursor.last()
                else:
                    found = cursor.set_range(start) if start else cursor.first()
                step = cursor.prev if reverse else cursor.next
                while found:
                    key, value = row = cursor.item()
                    if key < start if reverse else stop is not None and key >= stop:
                        break
                    rows.append(row)
                    bytes_left -= len(value)
                    if len(rows) >= rows_max or bytes_left <= 0:
                        break
                    found = step()
        except lmdb.Error as error:
            raise self._failed(error) from error
        return rows

    def _failed(self, error: lmdb.Error) -> StorageError:
        translated = self._owner._translate(error)
        self.abort()
        return translated

    def _refusal(self) -> RuntimeError:
        if self._is_over:
            return RuntimeError("the transaction is over")
        return RuntimeError("a snapshot cannot be changed or committed; use write()")

    def _check_thread(self) -> None:
        if get_ident() != self._thread:
            raise RuntimeError("a write transaction ends on the thread that began it")


def _seek(cursor: Any, key: bytes) -> bool:
    return bool(cursor.set_range(key) if key else cursor.first())
