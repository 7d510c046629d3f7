"""What every store promises, asked of the LMDB environment and of its twin in RAM."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from storage.environment import Environment
from storage.memory import MemoryStore
from storage.transactions import Store

T = TypeVar("T")
TABLES = ("red", "blue")
KEYS = [bytes([n]) for n in range(1, 100)]


@pytest.fixture(params=["lmdb", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = Environment.open(tmp_path, TABLES) if request.param == "lmdb" else MemoryStore(TABLES)
    yield made
    made.close()


@pytest.fixture
def filled(store: Store) -> Store:
    with store.write() as txn:
        for key in KEYS:
            txn.put("red", key, b"v" + key)
    return store


def test_what_is_committed_is_read(store: Store) -> None:
    with store.write() as txn:
        txn.put("red", b"k", b"1")
        txn.put("red", b"k", b"2")
        txn.put("blue", b"k", b"")
        assert txn.get("red", b"k") == b"2"
        assert txn.get("red", b"none") is None
    with store.read() as snapshot:
        assert snapshot.get("red", b"k") == b"2"
        assert snapshot.get("blue", b"k") == b""
        assert snapshot.count("red") == 1


def test_an_exception_aborts(filled: Store) -> None:
    def change() -> None:
        with filled.write() as txn:
            txn.put("red", b"\x01", b"new")
            txn.put("red", b"more", b"new")
            assert txn.delete("red", b"\x02")
            assert txn.delete_range("red", b"\x10", b"\x20") == 16
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change()
    with filled.read() as snapshot:
        assert list(snapshot.scan("red")) == [(key, b"v" + key) for key in KEYS]


def test_delete_says_whether_it_was_there(filled: Store) -> None:
    with filled.write() as txn:
        assert txn.delete("red", b"\x05")
        assert not txn.delete("red", b"\x05")
        assert not txn.delete("red", b"")
        assert txn.get("red", b"\x05") is None


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (b"", None, KEYS),
        (b"\x05", None, KEYS[4:]),
        (b"", b"\x05", KEYS[:4]),
        (b"\x05", b"\x08", KEYS[4:7]),
        (b"\x05\x00", b"\x08\x00", KEYS[5:8]),
        (b"\x08", b"\x05", []),
        (b"\x05", b"\x05", []),
        (b"", b"", []),
        (b"\xf0", None, []),
        (b"\x60", b"\xf0", KEYS[95:]),
    ],
)
def test_ranges(filled: Store, start: bytes, stop: bytes | None, expected: list[bytes]) -> None:
    with filled.read() as txn:
        assert [key for key, _ in txn.scan("red", start, stop)] == expected
        assert [key for key, _ in txn.scan("red", start, stop, reverse=True)] == expected[::-1]
        assert [key for key, _ in txn.scan("red", start, stop, limit=2)] == expected[:2]
        assert [key for key, _ in txn.scan("red", start, stop, reverse=True, limit=2)] == expected[::-1][:2]
        assert list(txn.scan("red", start, stop, limit=0)) == []
        assert list(txn.scan("blue", start, stop)) == []
    with filled.write() as txn:
        assert txn.delete_range("red", start, stop) == len(expected)
        assert [key for key, _ in txn.scan("red")] == [key for key in KEYS if key not in expected]


def test_first_and_last(filled: Store) -> None:
    with filled.write() as txn:
        assert txn.first("red") == (KEYS[0], b"v" + KEYS[0])
        assert txn.last("red") == (KEYS[-1], b"v" + KEYS[-1])
        assert txn.first("blue") is txn.last("blue") is None
        txn.delete("red", KEYS[-1])
        found = txn.last("red")
        assert found is not None
        assert found[0] == KEYS[-2]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_sees_the_changes_of_its_caller(filled: Store, reverse: bool) -> None:
    order = KEYS[::-1] if reverse else KEYS
    given = []
    with filled.write() as txn:
        for key, value in txn.scan("red", reverse=reverse):
            given.append((key, value))
            if key == order[0]:
                txn.put("red", order[1], b"changed")
                txn.delete("red", order[2])
                txn.put("red", order[0], b"not given again")
                txn.put("red", order[3] + b"\0", b"between")
    expected = {key: b"v" + key for key in order}
    expected |= {order[1]: b"changed", order[3] + b"\0": b"between"}
    del expected[order[2]]
    assert given == sorted(expected.items(), reverse=reverse)


def test_every_row_can_be_deleted_while_scanned(filled: Store) -> None:
    with filled.write() as txn:
        given = [key for key, _ in txn.scan("red") if txn.delete("red", key)]
        assert given == KEYS
        assert txn.count("red") == 0


def test_a_scan_of_many_large_rows(store: Store) -> None:
    rows = [(number.to_bytes(4, "big"), bytes(50_000)) for number in range(300)]
    with store.write() as txn:
        for key, value in rows:
            txn.put("red", key, value)
    with store.read() as snapshot:
        assert list(snapshot.scan("red")) == rows
        assert list(snapshot.scan("red", reverse=True)) == rows[::-1]


def test_a_snapshot_does_not_move(filled: Store) -> None:
    def change() -> None:
        with filled.write() as txn:
            txn.put("red", b"\x01", b"changed")
            txn.put("blue", b"k", b"new")
            txn.delete_range("red", b"\x02", None)

    with filled.read() as snapshot:
        scan = snapshot.scan("red")
        assert next(scan) == (b"\x01", b"v\x01")
        in_another_thread(change)
        assert snapshot.get("red", b"\x01") == b"v\x01"
        assert snapshot.get("blue", b"k") is None
        assert len(list(scan)) == len(KEYS) - 1
    with filled.read() as snapshot:
        assert list(snapshot.scan("red")) == [(b"\x01", b"changed")]


def test_a_snapshot_does_not_see_an_open_transaction(filled: Store) -> None:
    txn = filled.begin_write()
    txn.put("red", b"\x01", b"changed")
    txn.delete("red", b"\x02")
    with filled.read() as snapshot:
        txn.put("red", b"\x03", b"changed")
        txn.put("blue", b"k", b"new")
        txn.commit()
        assert [snapshot.get("red", key) for key in KEYS[:3]] == [b"v\x01", b"v\x02", b"v\x03"]
        assert snapshot.count("blue") == 0
        assert snapshot.count("red") == len(KEYS)
    with filled.read() as snapshot:
        assert [snapshot.get("red", key) for key in KEYS[:3]] == [b"changed", None, b"changed"]


def test_misuse_is_refused(store: Store) -> None:
    with store.read() as snapshot:
        for change in (
            lambda: snapshot.put("red", b"k", b""),
            lambda: snapshot.delete("red", b"k"),
            lambda: snapshot.delete_range("red", b"", None),
        ):
            with pytest.raises(RuntimeError):
                change()
        with pytest.raises(RuntimeError, match="snapshot"):
            store.begin_write()
        with store.read() as another:
            assert another.get("red", b"k") is None
    for use in (
        lambda: snapshot.get("red", b"k"),
        lambda: list(snapshot.scan("red")),
        lambda: snapshot.last("red"),
        lambda: snapshot.count("red"),
    ):
        with pytest.raises(RuntimeError):
            use()

    txn = store.begin_write()
    with pytest.raises(RuntimeError, match="already"):
        store.begin_write()
    for key in (b"", bytes(512)):
        with pytest.raises(ValueError, match="key"):
            txn.put("red", key, b"")
        assert txn.get("red", key) is None
    with pytest.raises(KeyError):
        txn.put("green", b"k", b"")
    with pytest.raises(KeyError):
        txn.get("green", b"k")
    txn.put("red", bytes(511), b"")
    txn.commit()
    txn.abort()  # harmless
    for late in (txn.commit, lambda: txn.put("red", b"k", b""), lambda: txn.delete("red", b"k")):
        with pytest.raises(RuntimeError):
            late()


def test_writers_wait_for_each_other(store: Store) -> None:
    def increment() -> None:
        for _ in range(50):
            with store.write() as txn:
                number = int(txn.get("red", b"n") or b"0")
                txn.put("red", b"n", str(number + 1).encode())

    threads = [threading.Thread(target=increment) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with store.read() as snapshot:
        assert snapshot.get("red", b"n") == b"200"


def test_statistics_on_any_thread(filled: Store) -> None:
    with filled.read():
        found = in_another_thread(filled.statistics)
        assert found.readers == 1
    assert 0 < found.used_bytes < found.map_bytes
    assert found.disk_free_bytes > 0
    assert filled.statistics().readers == 0


def in_another_thread(function: Callable[[], T]) -> T:
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(60)
    return results[0]


def make_other(store: Store, tmp_path: Path) -> Store:
    other: Store = (
        MemoryStore(TABLES) if isinstance(store, MemoryStore) else Environment.open(tmp_path / "other", TABLES)
    )
    with other.write() as txn:
        txn.put("blue", b"new", b"1")
    return other


def test_a_store_becomes_another_at_once(filled: Store, tmp_path: Path) -> None:
    assert filled.tables == TABLES
    filled.adopt(make_other(filled, tmp_path))  # of the same kind
    with filled.read() as snapshot:
        assert snapshot.count("red") == 0
        assert list(snapshot.scan("blue")) == [(b"new", b"1")]
    with filled.write() as txn:
        txn.put("red", b"k", b"1")
    with filled.read() as snapshot:
        assert snapshot.get("red", b"k") == b"1"


def test_a_store_becomes_another_when_open_snapshots_have_ended(filled: Store, tmp_path: Path) -> None:
    other = make_other(filled, tmp_path)
    is_open, may_end = threading.Event(), threading.Event()
    seen = []

    def look() -> None:
        with filled.read() as snapshot:
            is_open.set()
            may_end.wait(30)
            seen.append(snapshot.count("red"))

    reader = threading.Thread(target=look)
    reader.start()
    is_open.wait(30)
    adopting = threading.Thread(target=filled.adopt, args=(other,))
    adopting.start()
    may_end.set()
    reader.join(30)
    adopting.join(30)
    assert seen == [len(KEYS)]
    with filled.read() as snapshot:
        assert snapshot.count("red") == 0


def test_a_store_is_not_replaced_within_a_transaction(filled: Store, tmp_path: Path) -> None:
    other = make_other(filled, tmp_path)
    with filled.write(), pytest.raises(RuntimeError):
        filled.adopt(other)  # of the same kind
    other.close()
