"""A state machine for tests: a table of what was applied where, and a digest of it."""

import hashlib
from collections.abc import Sequence
from typing import Any

from storage.transactions import Transaction

APPLIED_TABLE = "applied"


class RecordingMachine:
    """Answers `(index, command)`; each command is one event. `check` starting commands are checkpoints."""

    tables: Sequence[str] = (APPLIED_TABLE,)

    def check(self, txn: Transaction) -> None:
        """It can go on with any rows."""

    def apply(self, txn: Transaction, index: int, command: bytes) -> tuple[Any, Sequence[Any]]:
        key = index.to_bytes(8, "big")
        assert txn.get(APPLIED_TABLE, key) is None, f"{index} applied twice"
        txn.put(APPLIED_TABLE, key, command)
        return (index, command), [(index, command)]

    def checkpoint(self, txn: Transaction, index: int, command: bytes) -> bytes | None:
        return table_digest(txn) if command.startswith(b"check") else None

    def digest(self, txn: Transaction) -> bytes:
        return table_digest(txn)

    def recomputed_digest(self, txn: Transaction) -> bytes:
        return table_digest(txn)


def table_digest(txn: Transaction) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for key, value in txn.scan(APPLIED_TABLE):
        digest.update(key + len(value).to_bytes(4, "big") + value)
    return digest.digest()
