"""The replicated domain (`consensus.state`) as what a replica applies its log to."""

from collections.abc import Sequence

from consensus.state import tables
from consensus.state.apply import StateMachine as Domain
from storage.transactions import Transaction

_CANARY = b"\xa6canary"
"""The tag of a canary: a command is a version byte, then an array that begins with its tag."""


class DomainMachine(Domain):
    """Total and deterministic. Every canary is a checkpoint, where replicas compare digests."""

    tables: Sequence[str] = tables.TABLES

    def recomputed_digest(self, txn: Transaction) -> bytes:
        """From all rows, for as long as reading them takes."""
        return tables.recomputed_digest(txn)

    def checkpoint(self, txn: Transaction, index: int, command: bytes) -> bytes | None:
        """Digest of the tables after `command`, if that was a canary."""
        return self.digest(txn) if command[2:9] == _CANARY else None
