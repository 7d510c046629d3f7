"""What the twin in RAM has beyond the contract: crashes, failing commits, copies."""

import pytest

from storage.errors import DiskFull
from storage.memory import MemoryStore


def test_a_crash_loses_what_was_not_committed() -> None:
    store = MemoryStore(("red",))
    with store.write() as txn:
        txn.put("red", b"k", b"kept")
    txn = store.begin_write()
    txn.put("red", b"k", b"lost")
    txn.put("red", b"l", b"lost")
    store.crash()
    with pytest.raises(RuntimeError):
        txn.commit()
    with store.write() as txn:
        assert list(txn.scan("red")) == [(b"k", b"kept")]


def test_a_commit_that_fails_keeps_nothing_and_fails_once() -> None:
    store = MemoryStore(("red",))
    store.fail_next_commit(DiskFull("full"))
    with pytest.raises(DiskFull), store.write() as txn:
        txn.put("red", b"k", b"v")
    with store.write() as txn:
        assert txn.get("red", b"k") is None
        txn.put("red", b"k", b"v")
    with store.read() as snapshot:
        assert snapshot.get("red", b"k") == b"v"


def test_a_clone_is_independent_and_has_only_what_is_committed() -> None:
    store = MemoryStore(("red",))
    with store.write() as txn:
        txn.put("red", b"k", b"1")
    txn = store.begin_write()
    txn.put("red", b"k", b"2")
    copy = store.clone()
    txn.commit()
    with copy.write() as other:
        assert other.get("red", b"k") == b"1"
        other.put("red", b"k", b"3")
    with store.read() as snapshot:
        assert snapshot.get("red", b"k") == b"2"


def test_closing_with_something_open_is_a_bug() -> None:
    store = MemoryStore(("red",))
    txn = store.begin_write()
    with pytest.raises(RuntimeError):
        store.close()
    txn.abort()
    store.close()
