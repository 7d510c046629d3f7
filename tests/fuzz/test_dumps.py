"""Backups and snapshots from outside: any bytes give parts that were proven, or our error, never anything else."""

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from consensus.backup import BackupReader, backup_header
from storage.dump import FORMAT, MAGIC, DumpDecoder, encode_dump
from storage.errors import StorageError
from storage.memory import MemoryStore
from tests.unit.consensus.solo import ALL_TABLES, with_sessions


def _whole() -> bytes:
    store = MemoryStore(ALL_TABLES)
    with_sessions(store)
    with store.read() as txn:
        return b"".join(encode_dump(txn, backup_header(txn, {})))


WHOLE = _whole()
START = MAGIC + FORMAT.to_bytes(2, "big")
CHANGES = st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), min_size=1, max_size=5)


def is_taken(data: bytes, step: int) -> bool:
    reader = BackupReader()
    try:
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
        reader.finish()
    except StorageError:
        return False
    return True


@given(st.binary(max_size=300), st.integers(1, 100))
@example(b"\x01\x00\x00\x00\x00", 1)
def test_any_bytes(data: bytes, step: int) -> None:
    assert not is_taken(data, step)
    assert not is_taken(START + data, step)


@given(CHANGES, st.integers(1, 5000))
def test_a_changed_backup_is_never_taken(changes: list[tuple[int, int]], step: int) -> None:
    data = bytearray(WHOLE)
    for place, difference in changes:
        data[place] ^= difference
    assert is_taken(bytes(data), step) == (bytes(data) == WHOLE)


@given(st.lists(st.integers(0, len(WHOLE)), max_size=20))
def test_how_it_is_cut_into_pieces_does_not_matter(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(WHOLE)]
    decoder = DumpDecoder()
    parts = [part for start, stop in itertools.pairwise(edges) for part in decoder.feed(WHOLE[start:stop])]
    decoder.finish()
    assert parts == DumpDecoder().feed(WHOLE)
