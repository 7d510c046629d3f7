"""Who waits for whom while the map grows, how large it becomes, and how often the disk is asked for its free space."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from storage import environment, growth
from storage.environment import Environment
from storage.errors import DiskFull, MapExhausted
from storage.limits import DISK_RESERVE_BYTES
from tests.unit.storage.support import MIB, TABLES

FOREVER_S = 3600.0
"""As long as this a test would hang, which is how it fails."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Environment]:
    """Of 16 MiB. With 12 to 15 MiB used growth is due but not urgent."""
    made = Environment.open(tmp_path, TABLES, map_bytes=16 * MIB)
    yield made
    made.close()


def write(store: Environment, mebibytes: int) -> None:
    with store.write() as txn:
        first = txn.count("red")
        for number in range(first, first + mebibytes):
            txn.put("red", b"%06d" % number, bytes(MIB - 100))


def map_mebibytes(store: Environment) -> int:
    return store.statistics().map_bytes // MIB


@contextmanager
def snapshot_elsewhere(store: Environment) -> Iterator[None]:
    """Another thread holds a snapshot until the block ends."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with store.read():
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    try:
        yield
    finally:
        release.set()
        thread.join(60)


def reads_elsewhere(store: Environment) -> bool:
    """Whether a read gets through now on another thread; if not, it goes on waiting there."""
    got_through = threading.Event()

    def read() -> None:
        with store.read():
            got_through.set()

    threading.Thread(target=read).start()
    return got_through.wait(5)


def test_writes_and_reads_go_on_while_a_snapshot_delays_growth(
    store: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "GROWTH_WAIT_S", 0.01)  # who waits for the snapshot fails, and soon
    write(store, 13)
    ended = threading.Event()
    failures: list[BaseException] = []

    def begin_writes() -> None:
        try:
            for _ in range(3):
                store.begin_write().commit()
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    with snapshot_elsewhere(store):
        writer = threading.Thread(target=begin_writes)
        writer.start()
        while not ended.is_set():
            with store.read() as snapshot:
                assert snapshot.count("red") == 13
        writer.join(60)
        with store.read() as snapshot:
            assert snapshot.count("red") == 13
        assert failures == []
        assert map_mebibytes(store) == 16
    store.begin_write().commit()
    assert map_mebibytes(store) == 32


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_readers_are_held_back_now_and_then_not_at_every_write(
    store: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(environment, "time", clock)
    monkeypatch.setattr(environment, "GROWTH_RETRY_S", 10.0)
    waits: list[bool] = []
    grow = store._grow

    def note(size: int, wait_s: float) -> bool:
        waits.append(wait_s > 0)
        return grow(size, wait_s)

    monkeypatch.setattr(store, "_grow", note)
    write(store, 13)
    with snapshot_elsewhere(store):
        for _ in range(8):
            store.begin_write().commit()
            clock.now += 4.0
    assert waits == [True, False, False, True, False, False, True, False]
    assert map_mebibytes(store) == 16
    store.begin_write().commit()
    assert map_mebibytes(store) == 32


def test_a_snapshot_that_ends_within_the_slice_delays_growth_no_longer(
    store: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "GROWTH_SLICE_S", FOREVER_S)
    write(store, 13)
    with snapshot_elsewhere(store):
        writer = threading.Thread(target=lambda: store.begin_write().commit())
        writer.start()
    writer.join(60)
    assert not writer.is_alive()
    assert map_mebibytes(store) == 32


def test_reads_get_through_while_an_exhausted_map_waits_for_a_snapshot(store: Environment) -> None:
    with pytest.raises(MapExhausted):
        write(store, 18)
    with snapshot_elsewhere(store):
        writer = threading.Thread(target=write, args=(store, 8))
        writer.start()
        while not store._is_growing:
            assert writer.is_alive()
        for _ in range(3):
            assert reads_elsewhere(store)
        assert writer.is_alive()
        assert map_mebibytes(store) == 16
    writer.join(60)
    with store.read() as snapshot:
        assert snapshot.count("red") == 8
    assert map_mebibytes(store) == 32


def test_a_map_that_may_not_hold_the_next_transaction_is_exhausted(
    store: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "GROWTH_WAIT_S", 0.01)
    write(store, 15)
    with snapshot_elsewhere(store), pytest.raises(MapExhausted, match="snapshot was not ended"):
        store.begin_write()
    write(store, 8)
    assert map_mebibytes(store) == 32


def test_readers_that_overlap_all_the_time_do_not_starve_an_exhausted_map(
    store: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "GROWTH_SLICE_S", 0.0001)
    with pytest.raises(MapExhausted):
        write(store, 18)
    done = threading.Event()
    turns = [threading.Event(), threading.Event()]

    def overlap(mine: threading.Event, other: threading.Event) -> None:
        """Holds a snapshot until the other reader has its own, or for a hundred slices if that one is held back."""
        while not done.is_set():
            with store.read():
                other.set()
                mine.wait(0.01)
                mine.clear()

    readers = [threading.Thread(target=overlap, args=pair) for pair in (turns, turns[::-1])]
    for reader in readers:
        reader.start()
    try:
        write(store, 8)
    finally:
        done.set()
        for reader in readers:
            reader.join(60)
    assert map_mebibytes(store) == 32


def test_reads_get_through_while_the_disk_takes_the_larger_file(
    store: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    got_through: list[bool] = []

    def slow_fsync(descriptor: int) -> None:
        got_through.append(reads_elsewhere(store))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    store.ensure_room(20 * MIB)
    assert got_through == [True]
    assert map_mebibytes(store) == 32
    assert (tmp_path / "data.mdb").stat().st_size == 32 * MIB


def test_the_file_is_never_shorter_than_the_map(
    store: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(DiskFull):
            store.ensure_room(20 * MIB)
    assert map_mebibytes(store) == 16
    store.ensure_room(20 * MIB)
    assert map_mebibytes(store) == 32


@pytest.mark.parametrize(
    ("used", "room", "limit", "is_full", "expected"),
    [
        (12, 0, 1024, False, 16),
        (13, 0, 1024, False, 32),
        (25, 0, 1024, False, 64),
        (8, 8, 1024, False, 16),
        (8, 9, 1024, False, 32),
        (0, 100, 1024, False, 128),
        (8, 0, 1024, True, 32),
        (8, 25, 1024, True, 64),
        (13, 0, 24, False, 24),
        (8, 0, 24, True, 24),
        (13, 0, 16, True, 16),
        (13, 0, 8, False, 16),  # the limit was lowered: a map never shrinks
    ],
)
def test_how_large_the_map_becomes(used: int, room: int, limit: int, is_full: bool, expected: int) -> None:
    found = growth.next_map_bytes(16 * MIB, used * MIB, room * MIB, limit * MIB, is_full=is_full)
    assert found == expected * MIB


# -- the free space of the disk ----------------------------------------------------------------------------------------


class Disk:
    """How much of it is free, and how often somebody asked."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.questions = 0

    def answer(self) -> int:
        self.questions += 1
        return self.free_bytes


@pytest.fixture
def disk(store: Environment, monkeypatch: pytest.MonkeyPatch) -> Disk:
    found = Disk(1 << 40)
    monkeypatch.setattr(store, "_disk_free_bytes", found.answer)
    monkeypatch.setattr(environment, "DISK_CHECK_S", FOREVER_S)
    return found


def times(count: int, call: Callable[[], object]) -> None:
    for _ in range(count):
        call()


def test_the_disk_is_asked_once_for_many_small_writes(store: Environment, disk: Disk) -> None:
    times(20, lambda: store.begin_write().commit())
    assert disk.questions == 1


def test_the_disk_is_asked_again_after_a_while(store: Environment, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "DISK_CHECK_S", 0.0)
    times(5, lambda: store.begin_write().commit())
    assert disk.questions == 5


def test_the_disk_is_asked_again_after_much_was_written(store: Environment, disk: Disk) -> None:
    times(63, lambda: write(store, 1))
    assert disk.questions == 1
    times(3, lambda: write(store, 1))
    assert disk.questions == 2


def test_our_own_writes_do_not_get_into_the_reserve_unseen(store: Environment, disk: Disk) -> None:
    disk.free_bytes = DISK_RESERVE_BYTES + 2 * MIB
    write(store, 3)
    disk.free_bytes -= 3 * MIB
    with pytest.raises(DiskFull):
        store.begin_write()
    with pytest.raises(DiskFull):
        store.begin_write()
    disk.free_bytes = 1 << 40
    store.begin_write().commit()


def test_a_disk_that_was_full_is_asked_before_the_next_write(
    store: Environment, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.begin_write().commit()
    disk.free_bytes = 0
    assert isinstance(store._translate(lmdb.Error(os.strerror(errno.ENOSPC))), DiskFull)
    with pytest.raises(DiskFull):
        store.begin_write()
    disk.free_bytes = 1 << 40
    store.begin_write().commit()
