"""Stores of an older format, opened by a simulated later version."""

from pathlib import Path

import pytest

from storage import environment, opening
from storage.environment import Environment
from storage.errors import NewerFormat, OlderFormat
from storage.migration import Migration
from storage.transactions import WriteTransaction


def later(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    monkeypatch.setattr(environment, "FORMAT", version)
    monkeypatch.setattr(opening, "FORMAT", version)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of format 1 with a row."""
    store = Environment.open(tmp_path / "store", ("rows",), software="the first")
    with store.write() as txn:
        txn.put("rows", b"key", b"1")
    store.close()
    return tmp_path / "store"


def step(number: int) -> Migration:
    def rewrite(txn: WriteTransaction) -> None:
        assert txn.get("rows", b"key") == str(number).encode()
        txn.put("rows", b"key", str(number + 1).encode())

    return rewrite


def row_of(store: Environment) -> bytes | None:
    with store.read() as txn:
        return txn.get("rows", b"key")


def test_every_step_is_taken_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 3)
    for _ in range(2):
        store = Environment.open(path, ("rows",), migrations={1: step(1), 2: step(2)})
        assert (row_of(store), store.meta.format, store.meta.software) == (b"3", 3, "the first")
        store.close()
    later(monkeypatch, 1)
    with pytest.raises(NewerFormat, match="Start the newer version"):
        Environment.open(path, ("rows",))


def test_a_migration_that_fails_leaves_the_older_format(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 3)
    with pytest.raises(AssertionError):
        Environment.open(path, ("rows",), migrations={1: step(1), 2: step(7)})
    later(monkeypatch, 1)
    store = Environment.open(path, ("rows",))
    assert (row_of(store), store.meta.format) == (b"1", 1)
    store.close()


def test_a_store_too_old_to_migrate_is_refused_unchanged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 3)
    with pytest.raises(OlderFormat, match="Start a version in between first"):
        Environment.open(path, ("rows",), migrations={2: step(2)})
    later(monkeypatch, 1)
    store = Environment.open(path, ("rows",))
    assert row_of(store) == b"1"
    store.close()


def test_a_new_store_is_of_the_present_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 3)
    store = Environment.open(tmp_path, ("rows",))
    assert store.meta.format == 3
    store.close()
