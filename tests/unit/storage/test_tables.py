"""Keys that sort, rows that come back, a digest that follows every change."""

import random

import msgspec
import pytest

from storage.errors import CorruptStore
from storage.memory import MemoryStore
from storage.tables import (
    DigestingTransaction,
    Table,
    branch_key,
    from_u64,
    prefix_end,
    recompute_digest,
    row_hash,
    stored_digest,
    u64,
    uuid_key,
)

SESSION = "01234567-89ab-cdef-0123-456789abcdef"
DIGESTED = frozenset({"red", "blue"})


class Point(msgspec.Struct, frozen=True, array_like=True):
    x: int


POINTS = Table("red", Point)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(("red", "blue", "plain", "meta"))


def test_keys_sort_as_their_values() -> None:
    numbers = [0, 1, 255, 256, 2**32, 2**64 - 1]
    assert sorted(map(u64, reversed(numbers))) == [u64(number) for number in numbers]
    assert [from_u64(u64(number)) for number in numbers] == numbers
    assert len(uuid_key(SESSION)) == 16
    keys = [branch_key(SESSION, index) for index in (0, 1, 300, 70_000)]
    assert keys == sorted(keys)
    end = prefix_end(uuid_key(SESSION))
    assert end is not None
    assert uuid_key(SESSION) <= keys[0] < keys[-1] < end
    for bad in (-1, 2**64):
        with pytest.raises(OverflowError):
            u64(bad)
    with pytest.raises(ValueError, match="UUID"):
        uuid_key("not a uuid")


def test_prefix_end() -> None:
    assert prefix_end(b"a") == b"b"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff") is None
    assert prefix_end(b"") is None


def test_rows_come_back(store: MemoryStore) -> None:
    with store.write() as txn:
        for number in range(5):
            POINTS.put(txn, u64(number), Point(number))
        assert POINTS.get(txn, u64(3)) == Point(3)
        assert POINTS.get(txn, u64(9)) is None
        assert list(POINTS.scan(txn, u64(1), u64(4), reverse=True, limit=2)) == [(u64(3), Point(3)), (u64(2), Point(2))]
        assert POINTS.first(txn) == (u64(0), Point(0))
        assert POINTS.last(txn) == (u64(4), Point(4))
        assert POINTS.delete(txn, u64(0))
        assert POINTS.delete_range(txn, u64(1), u64(3)) == 2
        assert POINTS.count(txn) == 2
        assert Table("blue", Point).first(txn) is Table("blue", Point).last(txn) is None


def test_a_row_that_cannot_be_read_is_corruption(store: MemoryStore) -> None:
    with store.write() as txn:
        txn.put("red", b"k", b"\xc1")
        with pytest.raises(CorruptStore, match="red"):
            POINTS.get(txn, b"k")
        with pytest.raises(CorruptStore):
            list(POINTS.scan(txn))


def test_the_digest_follows_every_change(store: MemoryStore) -> None:
    dice = random.Random(7)
    for _ in range(60):
        with store.write() as txn:
            rows = DigestingTransaction(txn, DIGESTED, "meta", b"digest")
            for _ in range(dice.randrange(8)):
                table = dice.choice(["red", "blue", "plain"])
                key = bytes([dice.randrange(1, 20)])
                match dice.randrange(5):
                    case 0:
                        rows.delete(table, key)
                    case 1:
                        rows.delete_range(table, key, bytes([key[0] + 3]))
                    case _:
                        rows.put(table, key, bytes([dice.randrange(3)]))
            expected = rows.digest()
            rows.flush()
            rows.flush()
            assert rows.digest() == expected
            assert stored_digest(txn, "meta", b"digest") == expected == recompute_digest(txn, sorted(DIGESTED))
    with store.write() as txn:
        rows = DigestingTransaction(txn, DIGESTED, "meta", b"digest")
        assert rows.digest() != bytes(16)
        for table in DIGESTED:
            rows.delete_range(table, b"", None)
        assert rows.digest() == bytes(16)


def test_the_order_of_changes_does_not_matter() -> None:
    digests = set()
    for order in ([1, 2, 3], [3, 1, 2]):
        store = MemoryStore(("red", "meta"))
        with store.write() as txn:
            rows = DigestingTransaction(txn, frozenset({"red"}), "meta", b"digest")
            for number in order:
                rows.put("red", u64(number), b"v")
            rows.flush()
            digests.add(stored_digest(txn, "meta", b"digest"))
    assert len(digests) == 1


def test_a_change_behind_its_back_is_found(store: MemoryStore) -> None:
    with store.write() as txn:
        rows = DigestingTransaction(txn, DIGESTED, "meta", b"digest")
        rows.put("red", b"k", b"v")
        rows.flush()
        txn.put("red", b"k", b"w")
        assert stored_digest(txn, "meta", b"digest") != recompute_digest(txn, DIGESTED)


def test_undigested_tables_and_unchanged_rows_cost_nothing(store: MemoryStore) -> None:
    with store.write() as txn:
        rows = DigestingTransaction(txn, DIGESTED, "meta", b"digest")
        rows.put("plain", b"k", b"v")
        rows.put("red", b"k", b"v")
        rows.delete("red", b"k")
        rows.flush()
        assert txn.count("meta") == 0
        assert list(rows.scan("plain")) == [(b"k", b"v")]
        assert rows.first("plain") == rows.last("plain") == (b"k", b"v")
        assert rows.count("plain") == 1
        assert rows.get("plain", b"k") == b"v"


def test_no_two_rows_share_a_hash_input() -> None:
    assert len({row_hash("a", b"bc", b"d"), row_hash("ab", b"c", b"d"), row_hash("a", b"b", b"cd")}) == 3
