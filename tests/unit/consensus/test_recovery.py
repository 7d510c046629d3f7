"""What a survivor of a lost majority holds, and that it goes on alone with all of it."""

import random

from consensus.engine import Role
from consensus.journal import QUARANTINE_KEY, RAFT_TABLE, read_configuration
from consensus.limits import RaftSettings
from consensus.machine import DomainMachine
from consensus.membership import Configuration
from consensus.messages import COMMAND, NO_OP, AppendEntries, encode_frame
from consensus.recovery import UNCERTAIN_SHOWN_MAX, Uncertain, examine, found_alone
from consensus.replica import Replica
from consensus.state import queries
from consensus.state.commands import AnyCommand
from consensus.state.encoding import encode_command
from consensus.steps import LinkUp, PeerMessage
from storage.memory import MemoryStore
from tests.unit.consensus.solo import ALL_TABLES, Solo
from tests.unit.state.model import S1, A, B, C, register, session_id, submit


def survivor(uncertain: int = 2) -> MemoryStore:
    """A follower of three: two entries are committed, then the leader and the other one vanish."""
    store = MemoryStore(ALL_TABLES)
    replica = Replica(A, [A, B, C], store, DomainMachine(), RaftSettings(), random.Random(1), 1.0)
    commands: list[AnyCommand] = [register(A), *(submit(session_id(number)) for number in range(1, 1 + uncertain))]
    entries = [(NO_OP, 2, 5), *((COMMAND + encode_command(one), 3 + at, 5) for at, one in enumerate(commands))]
    replica.step([LinkUp(B)], 1.0)
    replica.step([PeerMessage(B, encode_frame([AppendEntries(5, 3, 1, 0, entries)]))], 1.1)
    replica.step([PeerMessage(B, encode_frame([AppendEntries(5, 3, entries[-1][1], 5, [])]))], 1.2)
    return store


def test_what_a_survivor_says() -> None:
    with survivor().read() as txn:
        found = examine(txn)
    assert found is not None
    assert found.voters == (A, B, C)
    assert (found.term, found.last_index, found.last_term) == (5, 5, 5)
    assert (found.commit_index, found.applied_index) == (3, 3)
    assert found.uncertain == (Uncertain(4, 5, "SubmitSession"), Uncertain(5, 5, "SubmitSession"))
    assert not found.is_quarantined


def test_many_uncertain_entries_are_counted() -> None:
    with survivor(uncertain=50).read() as txn:
        found = examine(txn)
    assert found is not None
    assert (found.uncertain_count, len(found.uncertain)) == (50, UNCERTAIN_SHOWN_MAX)


def test_a_store_without_a_replica_says_nothing() -> None:
    with MemoryStore(ALL_TABLES).read() as txn:
        assert examine(txn) is None


def test_alone_it_leads_in_a_higher_term_and_keeps_what_was_uncertain() -> None:
    store = survivor()
    with store.write() as txn:
        txn.put(RAFT_TABLE, QUARANTINE_KEY, b"\x01")
        found_alone(txn, A)
    solo = Solo(store, A)
    assert solo.output.status.role is Role.LEADER
    assert solo.output.status.term > 5
    assert not solo.output.status.is_quarantined
    solo.propose(submit(session_id(9)))
    with store.read() as txn:
        found = [session.id for session in queries.list_sessions(txn)]
        assert (read_configuration(txn) or (0, Configuration()))[1] == Configuration((A,))
    assert found == [session_id(9), session_id(2), S1]
