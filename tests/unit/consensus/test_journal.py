"""The log over a store: what is in memory, what is on disk, and that the two never disagree."""

import random

import pytest

from consensus.journal import LOG_TABLE, TABLES, Journal, read_hard_state
from consensus.limits import INDEX_MAX, RaftSettings
from consensus.messages import COMMAND
from storage.memory import MemoryStore

SMALL = RaftSettings(tail_entries_max=8, tail_bytes_max=200, slice_bytes_max=40, slice_entries_max=4)


def flush(journal: Journal, store: MemoryStore) -> None:
    with store.write() as txn:
        journal.flush(txn)


def filled(count: int, settings: RaftSettings = SMALL) -> tuple[Journal, MemoryStore]:
    store = MemoryStore(TABLES)
    journal = Journal(store, settings)
    for index in range(1, count + 1):
        journal.add(b"%d" % index, index, index // 10)
        flush(journal, store)
    return journal, store


def test_old_entries_are_read_from_the_store() -> None:
    journal, _ = filled(100)
    assert len(journal._tail) <= 8
    assert [journal.term_at(index) for index in (1, 50, 100)] == [0, 5, 10]
    assert journal.entries(5, 8, bytes_max=1000, count_max=100) == [(b"5", 5, 0), (b"6", 6, 0), (b"7", 7, 0)]
    assert len(journal.entries(1, 101, bytes_max=10_000, count_max=1000)) == 100
    assert journal[0] == (b"1", 1, 0)
    assert journal[-1] == (b"100", 100, 10)


def test_slices_are_capped_but_hold_two() -> None:
    journal, _ = filled(100)
    assert len(journal[0:]) == 4
    assert len(journal[95:]) == 4
    assert journal[10:11] == [(b"11", 11, 1)]
    assert journal[99:] == [(b"100", 100, 10)]
    big = RaftSettings(slice_bytes_max=1, slice_entries_max=1)
    assert len(filled(10, big)[0][3:]) == 2


def test_a_restart_reads_a_handful_of_entries() -> None:
    journal, store = filled(100)
    journal.setCurrentTerm(12, "b")
    journal.set_applied(40)
    journal.setRaftCommitIndex(60)
    flush(journal, store)
    again = Journal(store, SMALL)
    assert len(again._tail) == 1
    assert (again.first_index, again.last_index, again.last_term) == (1, 100, 10)
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (12, "b")
    assert (again.applied_index, again.getRaftCommitIndex()) == (40, 60)


def test_what_is_not_flushed_is_lost() -> None:
    journal, store = filled(10)
    journal.deleteEntriesFrom(4)
    journal.add(b"other", 5, 9)
    journal.setCurrentTerm(9, "c")
    again = Journal(store, SMALL)
    assert (again.last_index, again.getCurrentTerm()) == (10, 0)


def test_a_commit_index_alone_is_no_reason_to_write() -> None:
    journal, _ = filled(10)
    journal.setRaftCommitIndex(9)
    assert not journal.is_dirty
    journal.setCurrentTerm(1, None)
    assert journal.is_dirty


@pytest.mark.parametrize("seed", range(50))
def test_it_is_a_list(seed: int) -> None:
    """Against a plain list, with random appends, cuts, flushes, lost ticks and restarts."""
    dice = random.Random(seed)
    store = MemoryStore(TABLES)
    journal = Journal(store, SMALL)
    model = [(b"\x01", 1, 0)]
    journal.add(*model[0])
    flush(journal, store)
    durable = list(model)
    for _ in range(300):
        match dice.randrange(6):
            case 0 | 1:
                for _i in range(dice.randrange(6)):
                    entry = (COMMAND + dice.randbytes(dice.randrange(1, 30)), len(model) + 1, len(model))
                    model.append(entry)
                    journal.add(*entry)
            case 2:
                position = dice.randrange(1, len(model) + 2)
                journal.deleteEntriesFrom(position)
                del model[position:]
            case 3:
                flush(journal, store)
                durable = list(model)
            case 4:
                if dice.random() < 0.3:
                    journal = Journal(store, SMALL)
                    model = list(durable)
            case _:
                start = dice.randrange(1, len(model) + 1)
                stop = dice.randrange(start, len(model) + 2)
                found = journal.entries(start, stop, bytes_max=10_000, count_max=1000)
                assert found == model[start - 1 : stop - 1]
        assert len(journal) == len(model)
        assert journal[-1] == model[-1]
        assert journal.last_term == model[-1][2]
        index = dice.randrange(1, len(model) + 1)
        assert journal.term_at(index) == model[index - 1][2]
    flush(journal, store)
    with store.read() as txn:
        assert txn.count(LOG_TABLE) == len(model)


KEEPING = RaftSettings(
    tail_entries_max=8, log_keep_entries=16, log_hold_entries=64, compaction_entries=10, slice_bytes_max=10_000
)


def test_applied_entries_beyond_those_kept_go_a_few_with_each_write() -> None:
    journal, store = filled(100, KEEPING)
    assert journal.first_index == 1  # nothing is applied
    journal.set_applied(90)
    flush(journal, store)
    assert (journal.first_index, len(journal), journal[0]) == (11, 90, (b"11", 11, 1))
    assert journal[1:3] == [(b"12", 12, 1), (b"13", 13, 1)]
    assert Journal(store, KEEPING).first_index == 11
    for _ in range(20):
        journal.setCurrentTerm(10, None)
        flush(journal, store)
    assert (journal.first_index, journal.last_index) == (85, 100)
    with store.read() as txn:
        assert txn.count(LOG_TABLE) == 16
        assert read_hard_state(txn).log_bytes == sum(len(value) for _, value in txn.scan(LOG_TABLE))


def test_the_last_applied_entry_stays() -> None:
    journal, store = filled(100, KEEPING)
    journal.set_applied(30)
    for _ in range(20):
        journal.setCurrentTerm(10, None)
        flush(journal, store)
    assert (journal.first_index, len(journal)) == (30, 71)


def test_large_entries_go_sooner() -> None:
    settings = RaftSettings(log_keep_bytes=1000, log_hold_bytes=10_000)
    store = MemoryStore(TABLES)
    journal = Journal(store, settings)
    for index in range(1, 101):
        journal.add(bytes(200), index, 1)
        journal.set_applied(index)
        flush(journal, store)
    assert 4 <= len(journal) <= 6


def test_what_a_follower_needs_is_kept_longer_within_limits() -> None:
    journal, store = filled(60, KEEPING)
    journal.set_applied(60)
    journal.held_from = 5
    for _ in range(20):
        journal.setCurrentTerm(6, None)
        flush(journal, store)
    assert journal.first_index == 5
    for index in range(61, 101):
        journal.add(b"%d" % index, index, 10)
        journal.set_applied(index)
        flush(journal, store)
    assert (journal.first_index, len(journal)) == (37, 64)


@pytest.mark.parametrize("seed", range(20))
def test_a_compacted_log_is_the_rest_of_it(seed: int) -> None:
    """Against the whole log, with random appends, cuts, applications, lost ticks and restarts."""
    dice = random.Random(seed)
    store = MemoryStore(TABLES)
    journal = Journal(store, KEEPING)
    model = [(b"\x01", 1, 0)]
    journal.add(*model[0])
    journal.set_applied(1)
    flush(journal, store)
    durable, applied = list(model), 1
    for _ in range(400):
        match dice.randrange(6):
            case 0 | 1 | 2:
                for _i in range(dice.randrange(6)):
                    entry = (COMMAND + dice.randbytes(dice.randrange(1, 30)), len(model) + 1, len(model))
                    model.append(entry)
                    journal.add(*entry)
            case 3:
                cut = dice.randrange(journal.applied_index, len(model) + 1)
                journal.deleteEntriesFrom(cut + 1 - journal.first_index)
                del model[cut:]
            case 4:
                journal.set_applied(dice.randrange(journal.applied_index, len(model) + 1))
                journal.held_from = dice.choice([INDEX_MAX, dice.randrange(1, len(model) + 1)])
                flush(journal, store)
                durable, applied = list(model), journal.applied_index
            case _:
                journal = Journal(store, KEEPING)
                model = list(durable)
                assert journal.applied_index == applied
        first = journal.first_index
        assert first <= journal.applied_index
        assert journal[0] == model[first - 1]
        assert len(journal) == len(model) - first + 1
        assert journal.last_term == model[-1][2]
        assert journal.entries(1, len(model) + 1, bytes_max=100_000, count_max=10_000) == model[first - 1 :]
    flush(journal, store)
    with store.read() as txn:
        assert read_hard_state(txn).log_bytes == sum(len(value) for _, value in txn.scan(LOG_TABLE))
