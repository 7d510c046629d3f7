"""The state machine: one committed command in, changed rows and numbered events out.

Rules a reader must not break:
- Total: any bytes give an answer. Nothing is raised but what the transaction itself raises (disk full, corrupt store),
  UpgradeRequired for a command of a newer version, which must not be passed over, and failed assertions, which are our
  own bugs.
- Pure: the same commands at the same indexes give the same rows and the same events on every replica, in every Python,
  under every hash seed. No clock, no dice, no order of sets.
- A refused command changes no row. A repeated one changes no row either. A `Canary` changes none at all: it is noted
  beside the digest.
- The caller makes the changes of a command durable together with its index (one transaction), and calls this once
  for every index, in order.
"""

from typing import assert_never

from consensus.errors import UpgradeRequired
from consensus.state import branches, members, sessions
from consensus.state.commands import (
    Answer,
    Applied,
    AssignBranches,
    Canary,
    CancelSession,
    ChangingCommand,
    CompleteBranches,
    DrainMember,
    Refused,
    RegisterMember,
    RequeueBranches,
    SetMemberStatus,
    SubmitSession,
)
from consensus.state.encoding import CommandError, decode_command
from consensus.state.events import Numbered
from consensus.state.limits import EVENTS_PRUNED_PER_COMMAND, EVENTS_RETAINED
from consensus.state.queries import version_used
from consensus.state.tables import DIGEST_BYTES, DIGEST_KEY, EVENTS, STATE_DIGEST, VERSION_KEY, Workspace, encode
from consensus.state.versions import COMMAND_VERSION
from storage.keys import from_u64, u64
from storage.transactions import Transaction

_NO_ROWS = bytes(DIGEST_BYTES)


def apply(txn: Transaction, index: int, command: bytes) -> tuple[Answer, list[Numbered]]:
    """`index` is the log index, at least 1 and higher than any before it."""
    try:
        decoded = decode_command(command)
    except CommandError as error:
        return Refused(index=index, code=error.code, message=error.message), []
    if command[0] > 1:
        _note_version(txn, command[:1])
    if isinstance(decoded, Canary):
        return members.canary(txn, index, decoded), []
    work = Workspace(txn, index, decoded.at_ms)
    answer = _dispatch(work, decoded)
    if isinstance(answer, Refused):
        return answer, []
    if work.events:
        work.insert(EVENTS, u64(index), encode(work.events))
    if work.has_changes:
        _prune_events(work)
    work.finish()
    return answer, [Numbered(index=index, position=position, event=event) for position, event in enumerate(work.events)]


def digest(txn: Transaction) -> bytes:
    """Of all replicated rows: equal on all replicas that have applied the same index."""
    return txn.get(STATE_DIGEST, DIGEST_KEY) or _NO_ROWS


def check_version(txn: Transaction) -> None:
    """Raises UpgradeRequired if the rows are the work of commands that this software does not know, as after a step
    back to an older version, or in a snapshot of a newer one: what it made of them would differ from the others."""
    used = version_used(txn)
    if used > COMMAND_VERSION:
        raise UpgradeRequired(used, COMMAND_VERSION)


class StateMachine:
    """This module as the object that a replica drives."""

    def check(self, txn: Transaction) -> None:
        check_version(txn)

    def apply(self, txn: Transaction, index: int, command: bytes) -> tuple[Answer, list[Numbered]]:
        return apply(txn, index, command)

    def digest(self, txn: Transaction) -> bytes:
        return digest(txn)


def _note_version(txn: Transaction, version: bytes) -> None:
    if version_used(txn) < version[0]:
        txn.put(STATE_DIGEST, VERSION_KEY, version)


def _dispatch(work: Workspace, command: ChangingCommand) -> Answer:
    match command:
        case CompleteBranches():
            return _counted(work, branches.complete(work, command))
        case AssignBranches():
            return _counted(work, branches.assign(work, command))
        case RequeueBranches():
            return _counted(work, branches.requeue(work, command))
        case SubmitSession():
            answer = sessions.submit(work, command)
            if isinstance(answer, Applied) and answer.changed:
                branches.begin(work, command)
            return answer
        case CancelSession():
            return sessions.cancel(work, command)
        case RegisterMember():
            return members.register(work, command)
        case SetMemberStatus():
            return members.set_status(work, command)
        case DrainMember():
            return members.drain(work, command)
        case _:
            assert_never(command)


def _counted(work: Workspace, counts: tuple[int, int]) -> Answer:
    changed, skipped = counts
    return Applied(index=work.index, changed=changed, skipped=skipped)


def _prune_events(work: Workspace) -> None:
    horizon = work.index - EVENTS_RETAINED
    if horizon <= 0:
        return
    oldest = work.txn.first(EVENTS)
    if oldest is None or from_u64(oldest[0]) > horizon:
        return
    for key, value in list(work.txn.scan(EVENTS, b"", u64(horizon + 1), limit=EVENTS_PRUNED_PER_COMMAND)):
        work.remove(EVENTS, key, value)
