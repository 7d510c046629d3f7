"""What one replica's store says when most others are lost, and how it becomes the only voter of a new mesh.

Only while no replica runs on the store. It is a person's decision against Raft's rules: whatever was acknowledged by a
majority without this replica is lost, and nobody here can know whether there is any. Everything this replica holds is
kept, also what was never known to be committed: a client may have been told that it was.
"""

from typing import Final

import msgspec

from consensus.journal import (
    LOG_TABLE,
    QUARANTINE_KEY,
    RAFT_TABLE,
    read_configuration,
    read_hard_state,
    read_term,
    write_configuration,
    write_hard_state,
)
from consensus.membership import Configuration, decode_configuration
from consensus.messages import COMMAND, CONFIGURATION
from consensus.state import queries
from consensus.state.encoding import CommandError, decode_command
from storage.ids import NodeId
from storage.keys import from_u64, u64
from storage.transactions import Transaction

UNCERTAIN_SHOWN_MAX: Final = 20
"""Uncertain entries that are named one by one; the others are counted."""


class Uncertain(msgspec.Struct, frozen=True):
    """An entry that this replica holds and does not know to be committed."""

    index: int
    term: int
    kind: str


class Survivor(msgspec.Struct, frozen=True, kw_only=True):
    voters: tuple[NodeId, ...]
    term: int
    last_index: int
    last_term: int
    """The survivor with the highest (last_term, last_index) has lost the least."""
    commit_index: int
    """Known to be committed: at least that."""
    applied_index: int
    uncertain_count: int
    uncertain: tuple[Uncertain, ...]
    """The first of them."""
    last_sign_ms: int | None
    """Wall clock of the leader when it made the last canary that is applied here: what happened much later is not."""
    is_quarantined: bool


def examine(txn: Transaction) -> Survivor | None:
    """None if no replica ever ran on this store."""
    stored = read_configuration(txn)
    last = txn.last(LOG_TABLE)
    if stored is None or last is None:
        return None
    hard = read_hard_state(txn)
    index, configuration = stored
    for _, value in txn.scan(LOG_TABLE, u64(max(hard.applied_index, index) + 1)):
        if value[8:9] == CONFIGURATION:
            configuration = decode_configuration(value[9:]) or configuration
    last_index = from_u64(last[0])
    commit_index = min(max(hard.commit_index, hard.applied_index), last_index)
    start, stop = u64(commit_index + 1), u64(commit_index + 1 + UNCERTAIN_SHOWN_MAX)
    canary = queries.last_canary(txn)
    return Survivor(
        voters=configuration.voters,
        term=hard.term,
        last_index=last_index,
        last_term=read_term(txn, last_index) or 0,
        commit_index=commit_index,
        applied_index=hard.applied_index,
        uncertain_count=last_index - commit_index,
        uncertain=tuple(
            Uncertain(from_u64(key), int.from_bytes(value[:8], "big"), _kind(value[8:]))
            for key, value in txn.scan(LOG_TABLE, start, stop)
        ),
        last_sign_ms=None if canary is None else canary.at_ms,
        is_quarantined=txn.get(RAFT_TABLE, QUARANTINE_KEY) is not None,
    )


def found_alone(txn: Transaction, node_id: NodeId) -> None:
    """The replica of this store votes alone from its next start on, in a higher term, and commits all that it holds;
    only not the configurations among it."""
    hard = read_hard_state(txn)
    write_hard_state(txn, msgspec.structs.replace(hard, term=hard.term + 1, vote=None))
    last = txn.last(LOG_TABLE)
    write_configuration(txn, 0 if last is None else from_u64(last[0]), Configuration((node_id,)))
    txn.delete(RAFT_TABLE, QUARANTINE_KEY)


def _kind(entry: bytes) -> str:
    if entry[:1] == CONFIGURATION:
        return "change of voters or learners"
    if entry[:1] != COMMAND:
        return "nothing (a new leader's first entry)"
    try:
        return type(decode_command(entry[1:])).__name__
    except CommandError:
        return "unknown"
