"""Both stores against a dict: any order of changes, aborts, commits, crashes and restarts. And codec round trips."""

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from storage import codec
from storage.environment import Environment
from storage.memory import MemoryStore
from storage.transactions import Store, WriteTransaction

TABLES = ("red", "blue")
tables = st.sampled_from(TABLES)
# A small alphabet, so that keys meet, are prefixes of each other, and ranges have something in them.
keys = st.lists(st.sampled_from([0, 1, 0x7F, 0xFF]), min_size=1, max_size=4).map(bytes)
bounds = st.one_of(st.just(b""), keys)
stops = st.one_of(st.none(), bounds)
values = st.one_of(st.binary(max_size=8), st.just(bytes(5000)))

FAST_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Thousands of commits: real fsyncs would only measure the disk."""

Model = dict[str, dict[bytes, bytes]]


class StoreMachine(RuleBasedStateMachine):
    """Drives one store; `open` and `lose` differ between the kinds."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.txn: WriteTransaction | None = None
        self.committed: Model = {name: {} for name in TABLES}
        self.current: Model = {name: {} for name in TABLES}

    def open(self) -> Store:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.store = self.open()

    def writing(self) -> WriteTransaction:
        if self.txn is None:
            self.txn = self.store.begin_write()
        return self.txn

    @rule(table=tables, key=keys, value=values)
    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.writing().put(table, key, value)
        self.current[table][key] = value

    @rule(table=tables, key=keys)
    def delete(self, table: str, key: bytes) -> None:
        assert self.writing().delete(table, key) == (key in self.current[table])
        self.current[table].pop(key, None)

    @rule(table=tables, start=bounds, stop=stops)
    def delete_range(self, table: str, start: bytes, stop: bytes | None) -> None:
        gone = in_range(self.current[table], start, stop)
        assert self.writing().delete_range(table, start, stop) == len(gone)
        for key, _ in gone:
            del self.current[table][key]

    @rule(table=tables, start=bounds, stop=stops, reverse=st.booleans(), limit=st.none() | st.integers(0, 5))
    def scan(self, table: str, start: bytes, stop: bytes | None, reverse: bool, limit: int | None) -> None:
        expected = in_range(self.current[table], start, stop)
        found = list(self.writing().scan(table, start, stop, reverse=reverse, limit=limit))
        assert found == (expected[::-1] if reverse else expected)[:limit]

    @rule(table=tables, reverse=st.booleans(), others=st.lists(st.none() | keys, max_size=10))
    def change_while_scanning(self, table: str, reverse: bool, others: list[bytes | None]) -> None:
        """The live scan: each step gives the next key as things stand."""
        txn, rows = self.writing(), self.current[table]
        last: bytes | None = None
        for key, value in txn.scan(table, reverse=reverse):
            left = [k for k in rows if last is None or (k < last if reverse else k > last)]
            assert key == (max(left) if reverse else min(left))
            assert value == rows[key]
            last = key
            other = others.pop() if others else None
            if other is not None and other in rows:
                txn.delete(table, other)
                del rows[other]
            elif other is not None:
                txn.put(table, other, b"new")
                rows[other] = b"new"
        assert not [k for k in rows if last is None or (k < last if reverse else k > last)]

    @precondition(lambda self: self.txn is not None)
    @rule()
    def commit(self) -> None:
        self.writing().commit()
        self.txn = None
        self.committed = copy_of(self.current)

    @precondition(lambda self: self.txn is not None)
    @rule()
    def abort(self) -> None:
        self.writing().abort()
        self.txn = None
        self.current = copy_of(self.committed)

    @precondition(lambda self: self.txn is None)
    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.open()

    @invariant()
    def snapshots_show_what_is_committed(self) -> None:
        with self.store.read() as snapshot:
            for name in TABLES:
                rows = self.committed[name]
                assert list(snapshot.scan(name)) == sorted(rows.items())
                assert snapshot.count(name) == len(rows)
                assert snapshot.first(name) == (min(rows.items()) if rows else None)
                assert snapshot.last(name) == (max(rows.items()) if rows else None)

    @invariant()
    def the_transaction_shows_its_own_changes(self) -> None:
        if self.txn is not None:
            for name in TABLES:
                assert {key: self.txn.get(name, key) for key in self.current[name]} == self.current[name]
                assert self.txn.count(name) == len(self.current[name])

    def teardown(self) -> None:
        if self.txn is not None:
            self.txn.abort()
        if hasattr(self, "store"):
            self.store.close()


class EnvironmentMachine(StoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="meshnode-test-", dir=FAST_DISK))

    def open(self) -> Store:
        # So small that it grows on the way.
        return Environment.open(self.path, TABLES, map_bytes=128 * 1024)

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.path)


class MemoryMachine(StoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryStore(TABLES)

    def open(self) -> Store:
        return self.memory

    @rule()
    def crash(self) -> None:
        self.memory.crash()
        self.txn = None
        self.current = copy_of(self.committed)

    @rule()
    def clone(self) -> None:
        with self.memory.clone().read() as snapshot:
            assert {name: dict(snapshot.scan(name)) for name in TABLES} == self.committed


def in_range(rows: dict[bytes, bytes], start: bytes, stop: bytes | None) -> list[tuple[bytes, bytes]]:
    return sorted((key, value) for key, value in rows.items() if key >= start and (stop is None or key < stop))


def copy_of(model: Model) -> Model:
    return {name: dict(rows) for name, rows in model.items()}


TestEnvironment = EnvironmentMachine.TestCase
TestEnvironment.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
json_values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(json_values)
@settings(deadline=None)
def test_json_is_accepted_and_comes_back(value: object) -> None:
    codec.check_json(value, 1 << 20, 100)
    data = codec.encode(value)
    assert codec.decode(data, object) == value
    assert codec.encode(codec.decode(data, object)) == data


@given(st.dictionaries(st.text(), st.integers(0, 9), min_size=2), st.randoms())
@settings(deadline=None)
def test_encoding_does_not_depend_on_insertion_order(value: dict[str, int], dice: object) -> None:
    items = list(value.items())
    dice.shuffle(items)  # type: ignore[attr-defined]
    assert codec.encode(dict(items)) == codec.encode(value)
