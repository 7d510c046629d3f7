"""One LMDB environment in one directory: opened only when sound, durable at every commit, growing before it is full.

The rules. One process (a lock file), one write transaction at a time, every commit synced. Writes never happen on a
thread that runs an event loop, because they wait for the disk. Snapshots are short. LMDB can change the size of its map
only while this process has no transaction open, so `begin_write` grows in good time, in a moment without snapshots.
"""

import asyncio
import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Lock, get_ident
from types import MappingProxyType

import lmdb

from storage import datafile, growth
from storage.causes import FAILED, FULL, errno_of, of_os_error
from storage.errors import (
    CorruptStore,
    DiskFailed,
    DiskFull,
    MapExhausted,
    ReadersExhausted,
    StorageError,
    StoreBusy,
    StoreClosed,
)
from storage.limits import (
    ADOPT_WAIT_S,
    CLOSE_WAIT_S,
    DISK_CHECK_BYTES,
    DISK_CHECK_S,
    DISK_FULL_BYTES,
    DISK_RESERVE_BYTES,
    GROWTH_RETRY_S,
    GROWTH_SLICE_DIVISOR,
    GROWTH_SLICE_S,
    GROWTH_WAIT_S,
    MAP_BYTES_INITIAL,
    MAP_BYTES_MAX,
    MAP_HEADROOM_DIVISOR,
    MAP_ROOM_BYTES,
    READERS_MAX,
)
from storage.lmdb_transaction import LmdbTransaction
from storage.lock import DirectoryLock
from storage.meta import FORMAT, META_TABLE
from storage.migration import Migration, migrate
from storage.opening import DATA_FILE, ENGINE_CHOICE, LMDB_LOCK_FILE, create, open_lmdb, read_meta, sync
from storage.remains import open_remains
from storage.transactions import StoreStatistics


class Environment:
    """See `storage.transactions.Store`; made by `open`."""

    @classmethod
    def open(
        cls,
        path: Path,
        tables: Sequence[str],
        *,
        software: str = "",
        map_bytes: int = MAP_BYTES_INITIAL,
        map_bytes_max: int = MAP_BYTES_MAX,
        disk_reserve_bytes: int = DISK_RESERVE_BYTES,
        migrations: Mapping[int, Migration] = MappingProxyType({}),
    ) -> "Environment":
        """Open the environment in directory `path`, or make one there. One of an older format is migrated.

        `software` is recorded when it is made. Raises StoreLocked, CorruptStore, ForeignStore, NewerFormat,
        OlderFormat, DiskFull, or plain StorageError (permissions...); the directory's data is not changed then.
        """
        assert META_TABLE not in tables
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise of_os_error(error, path) from error
        lock = DirectoryLock(path)
        try:
            store = cls(path, tables, software, map_bytes, map_bytes_max, disk_reserve_bytes, lock)
        except OSError as error:
            lock.release()
            raise of_os_error(error, path) from error
        except BaseException:
            lock.release()
            raise
        try:
            migrate(store, FORMAT, migrations)
        except BaseException:
            store.close()
            raise
        return store

    def __init__(
        self,
        path: Path,
        tables: Sequence[str],
        software: str,
        map_bytes: int,
        map_bytes_max: int,
        disk_reserve_bytes: int,
        lock: DirectoryLock,
    ) -> None:
        """Private: use `open`."""
        self.path = path
        self._data_path = path / DATA_FILE
        self._lock = lock
        self._disk_reserve_bytes = disk_reserve_bytes
        self._write_lock = Lock()
        self._writer_thread: int | None = None
        self._state = Condition()  # guards the fields below and every use of `_env` that is not a transaction
        self._holders: dict[int, int] = {}  # thread -> its open snapshots
        self._reader_count = 0
        self._is_growing = False
        self._is_closed = False
        # Only the holder of the write lock touches these, but for `_translate`, which may set the first two anywhere.
        self._must_grow = False
        self._disk_check_at = 0.0  # monotonic
        self._disk_check_at_bytes = 0  # of used map
        self._growth_slice_at = 0.0  # monotonic
        self._failure: str | None = None

        if not self._data_path.exists():
            create(path, software, map_bytes)
        self.tables = tuple(tables)
        self._map_bytes_wanted, self._map_bytes_max = map_bytes, map_bytes_max
        self._open()

    def _open(self) -> None:
        found = datafile.inspect(self._data_path)
        self._page_bytes = found.page_bytes
        self._map_bytes = max(growth.whole_pages(self._map_bytes_wanted, found.page_bytes), found.map_bytes)
        self._map_bytes_max = growth.whole_pages(self._map_bytes_max, found.page_bytes)
        self._env = open_lmdb(self.path, self._map_bytes, len(self.tables))
        try:
            self.meta = read_meta(self._env, self._data_path)
            growth.stretch(self._data_path, self._map_bytes)
            self._env.reader_check()
            self._handles = {name: self._env.open_db(name.encode()) for name in (*self.tables, META_TABLE)}
        except lmdb.Error as error:
            self._env.close()
            raise self._translate(error) from error
        except BaseException:
            self._env.close()
            raise

    def begin_write(self) -> LmdbTransaction:
        """Grows the map first when it is getting full. Raises DiskFull, DiskFailed, MapExhausted, StoreClosed."""
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("a write waits for the disk: never on a thread with a running event loop")
        thread = get_ident()
        if self._writer_thread == thread:
            raise RuntimeError("this thread has a write transaction already")
        if thread in self._holders:
            raise RuntimeError("this thread holds a snapshot; end it before writing")
        self._write_lock.acquire()
        try:
            if self._failure is not None:
                raise DiskFailed(self._failure, self._data_path)
            if self._is_closed:
                raise self._closed()
            self._make_room(0)
            txn = LmdbTransaction(self, self._env.begin(write=True), self._handles, is_write=True)
            self._writer_thread = thread
            return txn
        except lmdb.Error as error:
            self._write_lock.release()
            raise self._translate(error) from error
        except BaseException:
            self._write_lock.release()
            raise

    @contextmanager
    def write(self) -> Iterator[LmdbTransaction]:
        txn = self.begin_write()
        try:
            yield txn
        except BaseException:
            txn.abort()
            raise
        txn.commit()

    @contextmanager
    def read(self) -> Iterator[LmdbTransaction]:
        """Waits for microseconds while the map grows; for GROWTH_SLICE_S if someone holds a snapshot then; longer only
        if the map is exhausted and has waited for long. Raises ReadersExhausted, StoreClosed."""
        thread = get_ident()
        with self._state:
            # A thread that holds a snapshot already must not wait for a growth that waits for that very snapshot.
            while self._is_growing and thread not in self._holders:
                self._state.wait()
            if self._is_closed:
                raise self._closed()
            if self._reader_count >= READERS_MAX:
                raise ReadersExhausted(f"{self.path}: {READERS_MAX} snapshots are open; try again later", self.path)
            try:
                raw = self._begin_reading()
            except lmdb.Error as error:
                raise self._translate(error) from error
            self._reader_count += 1
            self._holders[thread] = self._holders.get(thread, 0) + 1
        txn = LmdbTransaction(self, raw, self._handles, is_write=False)
        try:
            yield txn
        finally:
            txn._is_over = True
            raw.abort()
            with self._state:
                self._reader_count -= 1
                if self._holders[thread] == 1:
                    del self._holders[thread]
                else:
                    self._holders[thread] -= 1
                if not self._reader_count:
                    self._state.notify_all()

    def _begin_reading(self) -> lmdb.Transaction:
        try:
            return self._env.begin()
        except lmdb.PanicError as error:
            self._translate(error)  # no more writing
            if self._reader_count:  # they read the old environment; once they have ended the next one gets through
                raise
            self._env.close()
            self._env, self._handles = open_remains(self.path, self._map_bytes, self._handles, ENGINE_CHOICE)
            return self._env.begin()

    def ensure_room(self, room_bytes: int) -> None:
        """Grow the map until `room_bytes` are free, beyond the usual headroom. Call it before an unusually large
        transaction (a snapshot's chunk), outside of any, on the writing thread. Raises as `begin_write` does."""
        if self._writer_thread == get_ident():
            raise RuntimeError("the map cannot grow inside a transaction")
        with self._write_lock:
            if self._is_closed:
                raise self._closed()
            self._make_room(room_bytes)

    def statistics(self) -> StoreStatistics:
        with self._state:
            if self._is_closed:
                raise self._closed()
            used = (self._env.info()["last_pgno"] + 1) * self._page_bytes
            return StoreStatistics(used, self._map_bytes, self._disk_free_bytes(), self._reader_count)

    def copy_to(self, directory: Path) -> None:
        """A compacted, consistent copy of what is committed, in a new or empty directory. Writers go on meanwhile,
        but pages freed since then cannot be reused until it is done. Blocks for as long as the disk takes."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise FileExistsError(f"{directory} is not empty")
        with self.read() as txn:
            try:
                self._env.copy(str(directory), compact=True, txn=txn._raw)
            except lmdb.Error as error:
                raise self._translate(error) from error

    def adopt(self, other: "Environment") -> None:
        """Also waits for a moment without snapshots. If `other` cannot be opened in its new place this store is dead:
        open it again. `other` must be on the same file system."""
        if self._writer_thread == get_ident():
            raise RuntimeError("replaced inside a write transaction")
        other.close()

        def exchange() -> None:
            self._env.close()
            try:
                # A lock file counts transactions of the data beside it: the new data begins with a new one. Without
                # it the old data is as sound as before, so whatever happens in between is no harm.
                (self.path / LMDB_LOCK_FILE).unlink(missing_ok=True)
                os.rename(other.path / DATA_FILE, self._data_path)
                sync(self.path)
                self._open()
            except BaseException as error:
                self._is_closed = True
                self._lock.release()
                if isinstance(error, OSError):
                    raise of_os_error(error, self.path) from error
                raise

        with self._write_lock:
            if self._is_closed:
                raise self._closed()
            until = time.monotonic() + ADOPT_WAIT_S
            while not self._without_snapshots(GROWTH_SLICE_S, exchange):
                if time.monotonic() >= until:
                    raise StoreBusy(f"{self.path}: {self._reader_count} snapshots were not ended", self.path)
                with self._state:  # readers get through
                    self._state.wait_for(lambda: not self._reader_count, GROWTH_SLICE_S)
            self._must_grow = False
            self._disk_check_at = 0.0

    def close(self) -> None:
        """Waits for open transactions; refuses new ones. Idempotent. RuntimeError if somebody holds one too long."""
        if self._writer_thread == get_ident():
            raise RuntimeError("closed inside a write transaction")
        with self._write_lock, self._state:
            if self._is_closed:
                return
            self._is_closed = True
            if not self._state.wait_for(lambda: not self._reader_count, CLOSE_WAIT_S):
                raise RuntimeError(f"{self._reader_count} snapshots are still open after {CLOSE_WAIT_S} s")
            self._env.close()
            self._lock.release()

    # -- used by LmdbTransaction ---------------------------------------------------------------------------------------

    def _write_ended(self) -> None:
        self._writer_thread = None
        self._write_lock.release()

    def _translate(self, error: lmdb.Error) -> StorageError:
        """What an error of LMDB means for the caller, noting what this environment must remember of it."""
        path = self._data_path
        if isinstance(error, lmdb.MapFullError):
            self._must_grow = True
            return MapExhausted(f"{path}: the map of {self._map_bytes} bytes is full; repeat the transaction", path)
        if isinstance(error, lmdb.ReadersFullError):
            return ReadersExhausted(f"{path}: LMDB's reader table is full; try again later", path)
        code = errno_of(error)
        if code in FULL:
            return self._disk_full(self._disk_free_bytes())
        if code in FAILED or isinstance(error, lmdb.PanicError):
            # A short write, which is how a large transaction meets a full disk, is EIO to LMDB too. Taking a full disk
            # for the cause is safe even if it was not: until the meta page is written a failed commit has touched only
            # pages that nothing refers to, and if that last write fails LMDB refuses all further ones (PanicError).
            free = self._disk_free_bytes()
            if code == errno.EIO and free < max(self._disk_reserve_bytes, DISK_FULL_BYTES):
                return self._disk_full(free)
            self._failure = f"{path}: writing failed ({error}). Check the disk, then start the node again"
            return DiskFailed(self._failure, path)
        if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)):
            return CorruptStore(f"{path}: damaged ({error}). {datafile.REMEDY}", path)
        return StorageError(f"{path}: {error}", path)

    # -- private -------------------------------------------------------------------------------------------------------

    def _make_room(self, room_bytes: int) -> None:
        """On the disk and in the map, with the write lock held and no write transaction."""
        used = (self._env.info()["last_pgno"] + 1) * self._page_bytes
        now = time.monotonic()
        if now >= self._disk_check_at or used >= self._disk_check_at_bytes:
            spare = self._disk_free_bytes() - self._disk_reserve_bytes
            if spare < 0:
                raise self._disk_full(spare + self._disk_reserve_bytes)
            self._disk_check_at = now + DISK_CHECK_S
            self._disk_check_at_bytes = used + min(spare, DISK_CHECK_BYTES)
        free = self._map_bytes - used
        if free >= max(room_bytes, self._map_bytes // MAP_HEADROOM_DIVISOR) and not self._must_grow:
            return
        size = growth.next_map_bytes(self._map_bytes, used, room_bytes, self._map_bytes_max, is_full=self._must_grow)
        if size == self._map_bytes:
            if self._must_grow or free < room_bytes:
                raise MapExhausted(
                    f"{self._data_path}: {used} bytes used of the {size} allowed, and it cannot grow further. "
                    "Delete old sessions",
                    self._data_path,
                )
        elif self._must_grow or free < max(room_bytes, MAP_ROOM_BYTES):
            slice_s = GROWTH_SLICE_S
            while not self._grow(size, slice_s):
                waited_s = time.monotonic() - now
                if waited_s >= GROWTH_WAIT_S:
                    raise MapExhausted(
                        f"{self._data_path}: the map must grow, but for {GROWTH_WAIT_S} s there was no moment without "
                        f"snapshots ({self._reader_count} are open). A snapshot was not ended",
                        self._data_path,
                    )
                slice_s = max(GROWTH_SLICE_S, waited_s / GROWTH_SLICE_DIVISOR)
                with self._state:  # readers get through
                    self._state.wait_for(lambda: not self._reader_count, slice_s)
            self._must_grow = False
        elif now >= self._growth_slice_at:
            self._growth_slice_at = now + GROWTH_RETRY_S
            self._grow(size, GROWTH_SLICE_S)
        else:
            self._grow(size, 0.0)

    def _grow(self, size: int, wait_s: float) -> bool:
        """Whether it did: not if a snapshot is open for longer than `wait_s`, during which no new one is given."""
        try:
            growth.stretch(self._data_path, size)
        except OSError as error:
            found = of_os_error(error, self._data_path)
            if isinstance(found, DiskFailed):
                self._failure = str(found)
            raise found from error

        def grow() -> None:
            self._env.set_mapsize(size)
            self._map_bytes = size

        return self._without_snapshots(wait_s, grow)

    def _without_snapshots(self, wait_s: float, act: Callable[[], None]) -> bool:
        """Whether it acted: not if a snapshot is open for longer than `wait_s`, during which no new one is given."""
        with self._state:
            self._is_growing = True
            try:
                if not self._state.wait_for(lambda: not self._reader_count, wait_s):
                    return False
                act()
                return True
            finally:
                self._is_growing = False
                self._state.notify_all()

    def _disk_free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def _disk_full(self, free: int) -> DiskFull:
        self._disk_check_at = 0.0
        return DiskFull(
            f"{self._data_path}: the disk is full ({free} bytes free, {self._disk_reserve_bytes} are kept in reserve). "
            "Make room; the node goes on by itself",
            self._data_path,
        )

    def _closed(self) -> StoreClosed:
        return StoreClosed(f"{self.path}: the store is closed", self.path)
