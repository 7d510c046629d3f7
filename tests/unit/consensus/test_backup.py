"""A backup holds the tables of one moment, is refused unless whole, and a new mesh of one voter begins with it."""

import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from consensus.backup import BackupReader, backup_header, load_backup
from consensus.engine import Role
from consensus.journal import LOG_TABLE
from consensus.state import queries
from consensus.state.apply import digest
from consensus.state.rows import Lease
from consensus.state.tables import SESSIONS, recomputed_digest
from consensus.state.versions import COMMAND_VERSION
from storage.dump import Header, encode_dump
from storage.environment import Environment
from storage.errors import DamagedDump, NewerFormat, StorageError
from storage.memory import MemoryStore
from storage.meta import FORMAT
from storage.transactions import Store
from tests.unit.consensus.solo import ALL_TABLES, Solo, with_sessions
from tests.unit.state.model import S1, S2, S3, A, B, complete, outcome, register, submit


def backup_of(store: Store) -> bytes:
    with store.read() as txn:
        return b"".join(encode_dump(txn, backup_header(txn, {"mesh": "home"})))


def verified(data: bytes) -> Header:
    reader = BackupReader()
    reader.feed(data)
    return reader.finish()


def test_the_header_says_which_moment_it_is() -> None:
    store = MemoryStore(ALL_TABLES)
    output = with_sessions(store)
    header = verified(backup_of(store))
    assert (header.index, header.term) == (output.status.applied_index, output.status.term)
    assert header.about == {"mesh": "home", "kind": "backup", "format": FORMAT, "commands": COMMAND_VERSION}
    with store.read() as txn:
        assert header.digest == digest(txn)


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
def test_a_new_mesh_of_one_voter_goes_on_with_it(kind: str, tmp_path: Path) -> None:
    old = MemoryStore(ALL_TABLES)
    before = with_sessions(old).status
    new: Store = MemoryStore(ALL_TABLES) if kind == "memory" else Environment.open(tmp_path, ALL_TABLES)
    header = load_backup(new, [backup_of(old)], B)
    with old.read() as first, new.read() as second:
        assert digest(first) == digest(second) == recomputed_digest(second)
        assert queries.list_sessions(first) == queries.list_sessions(second)
    solo = Solo(new, B)
    assert solo.output.status.role is Role.LEADER
    assert solo.output.status.term > before.term
    assert solo.output.status.first_index == header.index == before.applied_index
    # What ran on a node of the old mesh can still be reported or requeued; new work is taken.
    solo.propose(register(B), complete(outcome(S1, 0)), submit(S3))
    with new.read() as txn:
        assert [session.id for session in queries.list_sessions(txn)] == [S3, S2, S1]
        assert digest(txn) == recomputed_digest(txn)
    solo = Solo(new, B)  # and it starts again as any other
    assert solo.output.status.applied_index > header.index
    new.close()


def test_what_ran_is_still_leased_after_a_restore() -> None:
    old, new = MemoryStore(ALL_TABLES), MemoryStore(ALL_TABLES)
    with_sessions(old)
    load_backup(new, [backup_of(old)], B)
    with new.read() as txn:
        (lease,) = queries.leases(txn)
        assert isinstance(lease, Lease)
        assert (lease.session_id, lease.node_id) == (S1, A)


def test_a_mesh_that_has_done_nothing_can_be_restored() -> None:
    new = MemoryStore(ALL_TABLES)
    load_backup(new, [backup_of(MemoryStore(ALL_TABLES))], A)
    Solo(new).propose(register(A), submit(S1))


def test_damage_is_refused_wherever_it_is() -> None:
    store = MemoryStore(ALL_TABLES)
    with_sessions(store)
    data = backup_of(store)
    dice = random.Random(3)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << dice.randrange(8)
        with pytest.raises((DamagedDump, NewerFormat)):
            load_backup(MemoryStore(ALL_TABLES), [bytes(damaged)], A)
    for length in dice.sample(range(len(data)), 200):
        with pytest.raises(DamagedDump):
            load_backup(MemoryStore(ALL_TABLES), [data[:length]], A)


def test_what_had_rotted_in_the_store_is_found() -> None:
    store = MemoryStore(ALL_TABLES)
    with_sessions(store)
    with store.write() as txn:
        first = txn.first(SESSIONS)
        assert first is not None
        txn.put(SESSIONS, first[0], first[1][:-1] + bytes([first[1][-1] ^ 1]))
    with pytest.raises(DamagedDump, match="Take a backup from another node"):
        verified(backup_of(store))


def changed(store: Store, **about: object) -> bytes:
    """A backup that says something else of itself."""
    with store.read() as txn:
        header = backup_header(txn, {"software": "9.9.9"})
        return b"".join(encode_dump(txn, replace(header, about={**header.about, **about})))


@pytest.mark.parametrize("about", [{"format": FORMAT + 1}, {"commands": COMMAND_VERSION + 1}])
def test_a_backup_of_a_newer_version_is_refused(about: dict[str, object]) -> None:
    with pytest.raises(NewerFormat, match=r"9\.9\.9. Use that version"):
        verified(changed(MemoryStore(ALL_TABLES), **about))


def test_rows_of_an_older_format_are_migrated_before_a_replica_sees_them() -> None:
    old, new = MemoryStore(ALL_TABLES), MemoryStore(ALL_TABLES)
    with_sessions(old)
    migrated: list[tuple[int, int, bool]] = []

    def migrate(number: int) -> None:
        with new.read() as txn:
            migrated.append((number, txn.count(SESSIONS), txn.last(LOG_TABLE) is None))

    load_backup(new, [changed(old, format=FORMAT - 1)], A, migrate)
    assert migrated == [(FORMAT - 1, 2, True)]
    load_backup(MemoryStore(ALL_TABLES), [backup_of(old)], A, migrate)
    assert len(migrated) == 1


def test_a_dump_that_is_no_backup_is_refused() -> None:
    store = MemoryStore(ALL_TABLES)
    with store.read() as txn:
        header = backup_header(txn, {})
        for odd in (replace(header, about={}), replace(header, tables=("log",))):
            with pytest.raises(StorageError):
                verified(b"".join(encode_dump(txn, odd)))
