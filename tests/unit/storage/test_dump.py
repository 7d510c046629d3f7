"""A dump gives back what went in, and nothing that was changed on the way is believed."""

import random

import pytest

from storage.dump import DumpDecoder, End, Header, Part, Rows, encode_dump, make_header
from storage.errors import DamagedDump, NewerFormat, StorageError
from storage.memory import MemoryStore

TABLES = ("first", "empty", "second")


def filled(rows: int = 5, value_bytes: int = 10) -> MemoryStore:
    store = MemoryStore((*TABLES, "other"))
    dice = random.Random(1)
    with store.write() as txn:
        for number in range(rows):
            txn.put("first", number.to_bytes(4, "big"), dice.randbytes(value_bytes))
        txn.put("second", b"k", b"")
        txn.put("other", b"k", b"not asked for")
    return store


def dump(store: MemoryStore) -> bytes:
    with store.read() as txn:
        header = make_header(txn, TABLES, index=7, term=3, digest=b"d" * 16, about={"mesh": "m"})
        return b"".join(encode_dump(txn, header))


def parts_of(data: bytes, step: int | None = None) -> list[Part]:
    decoder = DumpDecoder()
    parts: list[Part] = []
    for at in range(0, len(data), step or max(len(data), 1)):
        parts += decoder.feed(data[at : at + (step or len(data))])
    decoder.finish()
    return parts


@pytest.mark.parametrize("step", [1, 3, 100, None])
def test_what_went_in_comes_out_however_it_is_cut(step: int | None) -> None:
    store = filled()
    header, *rows, end = parts_of(dump(store), step)
    assert header == Header(index=7, term=3, tables=TABLES, rows=6, digest=b"d" * 16, about={"mesh": "m"})
    assert end == End(rows=6)
    with store.read() as txn:
        assert rows == [Rows("first", list(txn.scan("first"))), Rows("second", [(b"k", b"")])]


def test_large_tables_come_in_pieces() -> None:
    store = filled(rows=100, value_bytes=20_000)
    pieces = [part for part in parts_of(dump(store), 4096) if isinstance(part, Rows) and part.table == "first"]
    assert len(pieces) > 5
    with store.read() as txn:
        assert [row for piece in pieces for row in piece.rows] == list(txn.scan("first"))


def test_the_same_tables_give_the_same_bytes() -> None:
    assert dump(filled()) == dump(filled())


def test_every_flipped_bit_is_found() -> None:
    data = dump(filled())
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises((DamagedDump, NewerFormat)):
                parts_of(bytes(damaged))


def test_every_cut_and_every_tail_is_found() -> None:
    data = dump(filled())
    for length in range(len(data)):
        with pytest.raises(DamagedDump):
            parts_of(data[:length], 50)
    for tail in (b"\0", b"\0" * 40, data):
        with pytest.raises(DamagedDump, match="after its end"):
            parts_of(data + tail)


def test_parts_that_are_lost_doubled_or_moved_are_found() -> None:
    store = filled(rows=60, value_bytes=20_000)
    with store.read() as txn:
        header = make_header(txn, TABLES, index=7, term=3, digest=b"", about={})
        pieces = list(encode_dump(txn, header))
    for broken in (
        pieces[:2] + pieces[3:],
        [*pieces[:3], *pieces[2:]],
        [pieces[0], pieces[2], pieces[1], *pieces[3:]],
        pieces[1:],
    ):
        with pytest.raises(DamagedDump):
            parts_of(b"".join(broken))


def test_a_newer_format_says_so() -> None:
    data = bytearray(dump(filled()))
    data[9] += 1
    with pytest.raises(NewerFormat, match="Use a newer one"):
        parts_of(bytes(data))


def test_a_part_that_claims_to_be_huge_is_not_waited_for() -> None:
    data = dump(filled())
    with pytest.raises(DamagedDump, match="allowed"):
        DumpDecoder().feed(data[:10] + b"\x01\xff\xff\xff\xff")


def test_random_bytes_raise_nothing_else() -> None:
    dice = random.Random(2)
    start = dump(filled())
    for _ in range(300):
        data = start[: dice.randrange(len(start))] + dice.randbytes(dice.randrange(60))
        with pytest.raises(StorageError):
            parts_of(data)
