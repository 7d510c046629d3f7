"""A snapshot: the replicated tables as of one applied index, and how a replica begins anew with one.

    make_header    of the snapshot that a store can give now
    fill           an empty store, with a snapshot's rows, in small transactions; checked to the last row
    install        that store in place of the replica's own, at once

A snapshot commits nothing by itself (row 14): it says only what its sender had applied, which is committed. It never
takes a replica back (row 16), and it never takes away what the replica has acknowledged (row 15): of its log everything
after the snapshot's index stays, unless the log has another entry at that index. Then all from there on contradicts
what is committed, so no acknowledgement of it ever counted (Ongaro and Ousterhout, section 7).

Term, vote, and whatever else a store holds beside the replicated tables are the replica's own and stay. Rows of the
raft table that describe the mesh (who votes) are taken from the snapshot.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Final, Protocol, TypeAlias

import msgspec

from consensus.journal import HARD_KEY, LOG_TABLE, QUARANTINE_KEY, RAFT_TABLE, read_hard_state, read_term, write_base
from consensus.journal import write_hard_state as write_hard
from consensus.limits import INDEX_MAX, LOG_HELD_S, SNAPSHOT_BYTES_PER_WRITE
from storage.dump import DumpDecoder, Header, Rows
from storage.dump import make_header as make_dump_header
from storage.errors import DamagedDump
from storage.keys import u64
from storage.transactions import Store, Transaction

KIND: Final = "snapshot"
_OWN_ROWS: Final = (HARD_KEY, QUARANTINE_KEY)
"""Of the raft table: about this replica, not about the mesh."""


class Tables(Protocol):
    """What is replicated: part of a replica's state machine."""

    @property
    def tables(self) -> Sequence[str]: ...

    def check(self, txn: Transaction) -> None:
        """Raises UpgradeRequired if it cannot go on with these rows."""

    def digest(self, txn: Transaction) -> bytes:
        """As it is maintained: cheap."""

    def recomputed_digest(self, txn: Transaction) -> bytes:
        """From all rows. Another one than the maintained means that rows have changed by themselves."""


class InstallSnapshot(msgspec.Struct, frozen=True):
    """Begin anew with this snapshot, if it is ahead of what is applied. The step raises SnapshotInstalled then.
    `open_filled` opens the store that `snapshot.fill` has made of it."""

    header: Header
    open_filled: Callable[[], Store]


class HoldLog(msgspec.Struct, frozen=True):
    """Somebody fetches a snapshot of this index and will need what comes after it; says so again and again."""

    index: int


class Quarantine(msgspec.Struct, frozen=True):
    """The tables of this replica are damaged: nothing is applied, read or proposed until a snapshot replaces them."""

    reason: str


AboutSnapshots: TypeAlias = InstallSnapshot | HoldLog | Quarantine


class LogHold:
    """The log behind a snapshot is kept while somebody fetches it."""

    def __init__(self) -> None:
        self._index = 0
        self._until = float("-inf")

    def renew(self, index: int, now: float) -> None:
        self._index, self._until = index, now + LOG_HELD_S

    def needed_from(self, held: Iterable[int], now: float) -> int:
        """Of the log, also for followers that hold so much; 0: it is not known how much."""
        needed = [index for index in held if index]
        if now < self._until:
            needed.append(self._index)
        return min(needed, default=INDEX_MAX)


def make_header(txn: Transaction, machine: Tables) -> Header | None:
    """None before anything is applied."""
    index = read_hard_state(txn).applied_index
    term = read_term(txn, index)
    if term is None:
        return None
    mesh = {key.decode(): value for key, value in txn.scan(RAFT_TABLE) if key not in _OWN_ROWS}
    about = {"kind": KIND, "raft": mesh}
    return make_dump_header(txn, machine.tables, index=index, term=term, digest=machine.digest(txn), about=about)


def check_header(header: Header, machine: Tables) -> None:
    """Raises DamagedDump if it is that of something else."""
    mesh = header.about.get("raft")
    if header.about.get("kind") != KIND or not isinstance(mesh, dict):
        raise DamagedDump("it is no snapshot")
    if not set(header.tables) <= set(machine.tables) or header.index < 1 or header.term < 0:
        raise DamagedDump("it has tables that this version does not know: upgrade this node")
    if not all(isinstance(value, bytes) and key.encode() not in _OWN_ROWS for key, value in mesh.items()):
        raise DamagedDump("it claims to know what only this replica knows")


def identity(header: Header) -> bytes:
    """Snapshots of the same identity are the same bytes, whoever made them."""
    return blake2b(msgspec.msgpack.encode(header), digest_size=16).digest()


def fill(store: Store, pieces: Iterable[bytes], machine: Tables) -> Header:
    """Of an empty store. Raises DamagedDump, NewerFormat or a StorageError of writing; then throw the store away."""
    decoder = DumpDecoder()
    waiting: list[Rows] = []
    size = 0
    for piece in pieces:
        for part in decoder.feed(piece):
            if isinstance(part, Rows):
                waiting.append(part)
                size += sum(len(key) + len(value) for key, value in part.rows)
            elif isinstance(part, Header):
                check_header(part, machine)
        if size >= SNAPSHOT_BYTES_PER_WRITE:
            _write(store, waiting)
            waiting, size = [], 0
    decoder.finish()
    _write(store, waiting)
    header = decoder.header
    assert header is not None
    with store.read() as txn:
        if machine.digest(txn) != header.digest or machine.recomputed_digest(txn) != header.digest:
            raise DamagedDump("its rows do not add up to its digest: the data of the node it comes from is damaged")
    return header


def is_sound(txn: Transaction, machine: Tables) -> bool:
    """Whether the rows still are what was written. Reads all of them."""
    return machine.recomputed_digest(txn) == machine.digest(txn)


def install(store: Store, filled: Store, header: Header, tables: Sequence[str]) -> None:
    """Between two lives of the replica of `store`, on its thread. `filled` is what `fill` has made of the snapshot; the
    store becomes it. `tables` are those of the replica's machine: what else there is stays as it is. A crash before the
    end leaves the store as it was. Raises StorageError."""
    with store.read() as own:
        hard = read_hard_state(own)
        assert header.index >= hard.applied_index, "a replica never goes back"
        _copy_log(own, filled, header)
        with filled.write() as txn:
            for table in store.tables:
                if table not in (*tables, LOG_TABLE, RAFT_TABLE):
                    for key, value in own.scan(table):
                        txn.put(table, key, value)
            for key, value in own.scan(RAFT_TABLE):
                if key not in _OWN_ROWS:
                    txn.put(RAFT_TABLE, key, value)
            for name, value in header.about["raft"].items():
                txn.put(RAFT_TABLE, name.encode(), value)
            written = read_hard_state(txn)
            last = txn.last(LOG_TABLE)
            assert last is not None, "there is the base at least"
            is_newer = header.term > hard.term
            write_hard(
                txn,
                msgspec.structs.replace(
                    written,
                    term=max(hard.term, header.term),
                    vote=None if is_newer else hard.vote,
                    commit_index=max(header.index, min(hard.commit_index, int.from_bytes(last[0], "big"))),
                ),
            )
    store.adopt(filled)


def _copy_log(own: Transaction, filled: Store, header: Header) -> None:
    """What this replica holds after the snapshot's index, if its log agrees with the snapshot so far."""
    with filled.write() as txn:
        write_base(txn, header.index, header.term)
    if read_term(own, header.index) != header.term:
        return
    waiting: list[tuple[bytes, bytes]] = []
    size = 0
    for row in own.scan(LOG_TABLE, u64(header.index + 1)):
        waiting.append(row)
        size += len(row[1])
        if size >= SNAPSHOT_BYTES_PER_WRITE:
            _append_log(filled, waiting)
            waiting, size = [], 0
    _append_log(filled, waiting)


def _append_log(filled: Store, rows: list[tuple[bytes, bytes]]) -> None:
    with filled.write() as txn:
        hard = read_hard_state(txn)
        txn.put_many(LOG_TABLE, rows)
        log_bytes = hard.log_bytes + sum(len(value) for _, value in rows)
        write_hard(txn, msgspec.structs.replace(hard, log_bytes=log_bytes))


def _write(store: Store, parts: list[Rows]) -> None:
    with store.write() as txn:
        for part in parts:
            txn.put_many(part.table, part.rows)
