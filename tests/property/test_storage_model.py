"""Both stores against a dict: any order of changes, aborts, commits, crashes and restarts. And codec round trips.

The map of the LMDB store is so small that a transaction may outgrow it. That is no failure: its error says that the
transaction was aborted and is to be repeated, and that is what the machine does, with the same results expected.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage import codec
from storage.environment import Environment
from storage.errors import MapExhausted, StorageError
from storage.lmdb_transaction import LmdbTransaction
from storage.memory import MemoryStore
from storage.transactions import Store, WriteTransaction

TABLES = ("red", "blue")
tables = st.sampled_from(TABLES)
# A small alphabet, so that keys meet, are prefixes of each other, and ranges have something in them.
keys = st.lists(st.sampled_from([0, 0xFF]), min_size=1, max_size=3).map(bytes)
bounds = st.one_of(st.just(b""), keys)
stops = st.one_of(st.none(), bounds)
values = st.binary(max_size=8)
repetitions = st.sampled_from((1, 2500))  # of a value: up to 20 000 bytes, on pages of its own, yet short in a report

FAST_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Thousands of commits: real fsyncs would only measure the disk."""

MAP_BYTES = 64 * 1024
"""So small that it grows on the way, often in the middle of a transaction."""
REPETITIONS_MAX = 4
"""Each begins with twice the map: 1 MiB in the end, more than thirty changes can fill."""

Model = dict[str, dict[bytes, bytes]]
T = TypeVar("T")


class StoreMachine(RuleBasedStateMachine):
    """Drives one store; `open` and `lose` differ between the kinds."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.txn: WriteTransaction | None = None
        self.changes: list[Callable[[WriteTransaction], object]] = []  # of the open transaction
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

    def change(self, change: Callable[[WriteTransaction], T]) -> T:
        """Make the change, repeating the transaction from its beginning when it outgrows the map."""
        try:
            result = change(self.writing())
        except MapExhausted:
            result = self.repeat(change)
        self.changes.append(change)
        return result

    def repeat(self, last: Callable[[WriteTransaction], T]) -> T:
        for _ in range(REPETITIONS_MAX):
            assert self.txn is not None
            self.txn.abort()  # harmless: it is over
            self.txn = None
            self.snapshots_show_what_is_committed()
            try:
                for change in self.changes:
                    change(self.writing())
                return last(self.writing())
            except MapExhausted:
                continue
        raise AssertionError(f"the map does not grow: exhausted again {REPETITIONS_MAX} times")

    @rule(table=tables, key=keys, value=values, times=repetitions)
    def put(self, table: str, key: bytes, value: bytes, times: int) -> None:
        self.change(lambda txn: txn.put(table, key, value * times))
        self.current[table][key] = value * times

    @rule(table=tables, key=keys)
    def delete(self, table: str, key: bytes) -> None:
        assert self.change(lambda txn: txn.delete(table, key)) == (key in self.current[table])
        self.current[table].pop(key, None)

    @rule(table=tables, start=bounds, stop=stops)
    def delete_range(self, table: str, start: bytes, stop: bytes | None) -> None:
        gone = in_range(self.current[table], start, stop)
        assert self.change(lambda txn: txn.delete_range(table, start, stop)) == len(gone)
        for key, _ in gone:
            del self.current[table][key]

    @rule(table=tables, start=bounds, stop=stops, reverse=st.booleans(), limit=st.none() | st.integers(0, 5))
    def scan(self, table: str, start: bytes, stop: bytes | None, reverse: bool, limit: int | None) -> None:
        expected = in_range(self.current[table], start, stop)
        found = list(self.writing().scan(table, start, stop, reverse=reverse, limit=limit))
        assert found == (expected[::-1] if reverse else expected)[:limit]

    @rule(table=tables, reverse=st.booleans(), others=st.lists(st.none() | keys, max_size=10))
    def change_while_scanning(self, table: str, reverse: bool, others: list[bytes | None]) -> None:
        before = self.current[table]
        self.current[table] = self.change(lambda txn: scan_and_change(txn, table, reverse, others, before))

    @precondition(lambda self: self.txn is not None)
    @rule()
    def commit(self) -> None:
        try:
            self.writing().commit()
        except MapExhausted:
            self.repeat(lambda txn: txn.commit())
        self.txn = None
        self.changes.clear()
        self.committed = copy_of(self.current)

    @precondition(lambda self: self.txn is not None)
    @rule()
    def abort(self) -> None:
        self.writing().abort()
        self.txn = None
        self.changes.clear()
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
        return Environment.open(self.path, TABLES, map_bytes=MAP_BYTES)

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
        self.changes.clear()
        self.current = copy_of(self.committed)

    @rule()
    def clone(self) -> None:
        with self.memory.clone().read() as snapshot:
            assert {name: dict(snapshot.scan(name)) for name in TABLES} == self.committed


def scan_and_change(
    txn: WriteTransaction, table: str, reverse: bool, others: list[bytes | None], before: dict[bytes, bytes]
) -> dict[bytes, bytes]:
    """The live scan: each step gives the next key as things stand. Returns the rows there are in the end."""
    rows, others = dict(before), list(others)
    last: bytes | None = None
    for key, value in txn.scan(table, reverse=reverse):
        left = [k for k in rows if last is None or (k < last if reverse else k > last)]
        assert key == (max(left, default=None) if reverse else min(left, default=None))
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
    return rows


def in_range(rows: dict[bytes, bytes], start: bytes, stop: bytes | None) -> list[tuple[bytes, bytes]]:
    return sorted((key, value) for key, value in rows.items() if key >= start and (stop is None or key < stop))


def copy_of(model: Model) -> Model:
    return {name: dict(rows) for name, rows in model.items()}


LIMITS = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    # No shrinking: it may take five minutes, and a test stopped meanwhile reports the interruption, not the failure.
    # Thirty steps are readable; to have fewer, add Phase.shrink for a while.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    print_blob=True,
)
TestEnvironment = EnvironmentMachine.TestCase
TestEnvironment.settings = LIMITS
TestMemory = MemoryMachine.TestCase
TestMemory.settings = LIMITS


def plant_no_growth(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Environment, "_make_room", lambda self, room_bytes: None)


def plant_abort_that_keeps(patch: pytest.MonkeyPatch) -> None:
    def keep(self: LmdbTransaction) -> None:
        with contextlib.suppress(StorageError):  # LMDB itself refuses once the map was exhausted
            if not self._is_over:
                self.commit()

    patch.setattr(LmdbTransaction, "abort", keep)


def plant_lost_put_after_growth(patch: pytest.MonkeyPatch) -> None:
    put = LmdbTransaction.put

    def lossy(self: Any, table: str, key: bytes, value: bytes) -> None:
        if self._owner._map_bytes == MAP_BYTES:
            put(self, table, key, value)

    patch.setattr(LmdbTransaction, "put", lossy)


def plant_stale_scan(patch: pytest.MonkeyPatch) -> None:
    scan = LmdbTransaction.scan
    patch.setattr(LmdbTransaction, "scan", lambda self, *where, **how: iter(list(scan(self, *where, **how))))


def plant_range_with_its_end(patch: pytest.MonkeyPatch) -> None:
    delete_range = LmdbTransaction.delete_range
    patch.setattr(
        LmdbTransaction,
        "delete_range",
        lambda self, table, start, stop: delete_range(self, table, start, stop and stop + b"\0"),
    )


@pytest.mark.parametrize(
    "plant",
    [
        plant_no_growth,
        plant_abort_that_keeps,
        plant_lost_put_after_growth,
        plant_stale_scan,
        plant_range_with_its_end,
    ],
)
def test_a_broken_store_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the machine above proves nothing."""
    plant(monkeypatch)
    planted = settings(
        LIMITS, max_examples=1000, phases=[Phase.generate], derandomize=True, database=None, report_multiple_bugs=False
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(EnvironmentMachine, settings=planted)
    capsys.readouterr()


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
