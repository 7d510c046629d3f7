"""Which replicated tables there are, how their keys are built, and the workspace in which a command changes them.

Rules: every change of a replicated row goes through a `Workspace`, because it keeps the digest: the sum modulo 2**128
of a hash of every row (table, key, value). The sum does not depend on the order of changes, so it is kept in passing;
two replicas with the same rows have the same digest, whatever way they came there. It detects faults, not forgers.
A workspace lives for one command; it reads and writes every session row once, however many branches the command names.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from consensus.state.commands import BranchSpec
from consensus.state.events import AnyEvent
from consensus.state.limits import TIME_MS_MAX
from consensus.state.rows import (
    Attempt,
    Branch,
    Failure,
    Insight,
    Knowledge,
    LastCanary,
    Lease,
    Member,
    PatternCount,
    QueueEntry,
    Row,
    Session,
    SessionStatus,
)
from storage.codec import DIGEST_BYTES as DIGEST_BYTES
from storage.ids import BranchId, SessionId
from storage.transactions import Transaction

MEMBERS: Final = "members"
"""node id -> Member"""
SESSIONS: Final = "sessions"
"""session key -> Session"""
SESSIONS_BY_INDEX: Final = "sessions_by_index"
"""u64 submit index -> session key"""
BRANCHES: Final = "branches"
"""branch key -> Branch"""
BRANCH_IDS: Final = "branch_ids"
"""16 bytes of the branch id -> branch key"""
RESULTS: Final = "results"
"""branch key -> Knowledge"""
ATTEMPTS: Final = "attempts"
"""branch key, u32 attempt -> Attempt; only of attempts that ended without a result, the others are in the branch row"""
INSIGHTS: Final = "insights"
"""session key -> Insight"""
INSIGHTS_BY_NUMBER: Final = "insights_by_number"
"""u64 number -> session key"""
QUEUE: Final = "queue"
"""byte of the priority, seven bytes of the submit index, u32 branch index -> QueueEntry; see `queue_prefix`"""
LEASES: Final = "leases"
"""branch key -> Lease; of a speculative attempt: branch key, u32 attempt"""
EVENTS: Final = "events"
"""u64 log index -> list of events"""
PATTERNS: Final = "patterns"
"""16 bytes hash of the pattern -> PatternCount"""
STATE_META: Final = "state_meta"
"""`counters` -> Counters"""
STATE_DIGEST: Final = "state_digest"
"""`digest` -> 16 bytes, `canary` -> LastCanary, `version` -> one byte, the newest command version in the log so far;
apart, because a digest cannot digest itself"""

DIGESTED: Final = (
    MEMBERS,
    SESSIONS,
    SESSIONS_BY_INDEX,
    BRANCHES,
    BRANCH_IDS,
    RESULTS,
    ATTEMPTS,
    INSIGHTS,
    INSIGHTS_BY_NUMBER,
    QUEUE,
    LEASES,
    EVENTS,
    PATTERNS,
    STATE_META,
)
TABLES: Final = (*DIGESTED, STATE_DIGEST)
"""All tables of this package: what a store is opened with (next to those of the journal)."""

DIGEST_KEY: Final = b"digest"
COUNTERS_KEY: Final = b"counters"
CANARY_KEY: Final = b"canary"
VERSION_KEY: Final = b"version"


class Counters(Row, frozen=True, kw_only=True):
    open_sessions: int = 0
    insights: int = 0
    """Ever recorded: the number of the latest."""
    patterns: int = 0


encode = msgspec.msgpack.Encoder(order="deterministic").encode
MEMBERS_DECODED_MAX: Final = 2_048
"""Rows of members kept decoded: 5 MiB. They are long, change seldom, and all of them are read at every decision of the
scheduler and before every command of a later version: that takes a tenth of the time."""

decode_member = lru_cache(MEMBERS_DECODED_MAX)(msgspec.msgpack.Decoder(Member).decode)
decode_session = msgspec.msgpack.Decoder(Session).decode
decode_branch = msgspec.msgpack.Decoder(Branch).decode
decode_knowledge = msgspec.msgpack.Decoder(Knowledge).decode
decode_attempt = msgspec.msgpack.Decoder(Attempt).decode
decode_insight = msgspec.msgpack.Decoder(Insight).decode
decode_queue_entry = msgspec.msgpack.Decoder(QueueEntry).decode
decode_lease = msgspec.msgpack.Decoder(Lease).decode
decode_events = msgspec.msgpack.Decoder(list[AnyEvent]).decode
decode_pattern = msgspec.msgpack.Decoder(PatternCount).decode
decode_counters = msgspec.msgpack.Decoder(Counters).decode
decode_canary = msgspec.msgpack.Decoder(LastCanary).decode


def _later_defaults(kind: type[Row], last: str) -> tuple[object, ...]:
    """Of the fields after `last`, which is the last one of command version 1; backwards."""
    fields = msgspec.structs.fields(kind)[kind.__struct_fields__.index(last) + 1 :]
    return tuple(
        field.default_factory() if field.default is msgspec.NODEFAULT else field.default for field in reversed(fields)
    )


_LATER_DEFAULTS: Final[dict[type[Row], tuple[object, ...]]] = {
    Member: _later_defaults(Member, "former_instance_ids"),
    Session: _later_defaults(Session, "completed_at_ms"),
    Branch: _later_defaults(Branch, "failure"),
    QueueEntry: _later_defaults(QueueEntry, "avoid"),
    BranchSpec: _later_defaults(BranchSpec, "attempts_max"),
}
"""Of what command versions after the first have added to a row."""


def _header(length: int) -> bytes:
    """Of a MessagePack array."""
    return bytes([0x90 | length]) if length < 16 else b"\xdc" + length.to_bytes(2, "big")


class _Later(NamedTuple):
    """How a row without anything in its later fields is cut: each of their defaults is one byte."""

    values: Callable[[Any], Any]
    defaults: object
    header_bytes: int
    cut_bytes: int
    header: bytes


def _cut_of(kind: type[Row], defaults: tuple[object, ...]) -> _Later:
    length, count = len(kind.__struct_fields__), len(defaults)
    assert all(len(encode(default)) == 1 for default in defaults), "they are cut off by the byte"
    expected = defaults[0] if count == 1 else defaults[::-1]
    values = attrgetter(*kind.__struct_fields__[length - count :])
    return _Later(values, expected, len(_header(length)), count, _header(length - count))


_CUTS: Final = {kind: _cut_of(kind, defaults) for kind, defaults in _LATER_DEFAULTS.items()}


def encode_row(row: Row) -> bytes:
    """Without the later fields at its end that say nothing: the row that an older version makes of the same command.
    Done several times a branch, so the usual case, in which none says anything, is the fast one."""
    cut = _CUTS[type(row)]
    if cut.values(row) == cut.defaults:
        return cut.header + encode(row)[cut.header_bytes : -cut.cut_bytes]
    return encode(trimmed(row))


def trimmed(row: Row) -> tuple[object, ...]:
    values = msgspec.structs.astuple(row)
    length = len(values)
    for default in _LATER_DEFAULTS[type(row)]:
        if values[length - 1] != default:
            break
        length -= 1
    return values[:length]


_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def uuid_key(text: str) -> bytes | None:
    """The 16 bytes of a UUID in canonical text form; None for any other text, so that an id has one spelling."""
    return bytes.fromhex(text.replace("-", "")) if _UUID.fullmatch(text) else None


def queue_prefix(priority: int, submit_index: int) -> bytes:
    """Of all that a session has in the queue. The byte of a priority is its two's complement, so that of priority 0 the
    keys are those of command version 1; the order in which priorities are served is not that of the keys."""
    return bytes([priority & 0xFF]) + submit_index.to_bytes(7, "big")


def queue_priority(key: bytes) -> int:
    return key[0] - 256 if key[0] > 127 else key[0]


def branch_id(session_key: bytes, branch_index: int) -> BranchId:
    """A version 8 UUID derived from its place."""
    raw = bytearray(blake2b(session_key + u32(branch_index), digest_size=16, person=b"meshnode branch").digest())
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return BranchId(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")


_PLACES: Final = {table: table.encode().ljust(24, b"\0") for table in DIGESTED}


def row_hash(table: str, key: bytes, value: bytes) -> int:
    """A row's share of the digest (the sum is cut to the size of a digest later). Keys of a table have one length,
    except where the value repeats the key: two rows cannot trade bytes. Computed about eight times a branch: BLAKE2b
    at its full size is the cheapest call there is, as the parameters of a shorter one cost more than they save."""
    return int.from_bytes(blake2b(_PLACES[table] + key + value).digest(), "big")


_DIGEST_MASK: Final = (1 << 8 * DIGEST_BYTES) - 1


class SessionEdit:
    """A session row while one command changes it; written back once, by `Workspace.finish`."""

    __slots__ = (
        "cancelled",
        "completed",
        "completed_at_ms",
        "duration_sum_ms",
        "failed",
        "failure",
        "has_changed",
        "has_ended_branch",
        "key",
        "novelty_sum",
        "parallel_efficiency",
        "pending",
        "processing",
        "queue_prefix",
        "row",
        "started_at_ms",
        "status",
        "stored",
        "total_connections",
        "total_patterns",
    )

    def __init__(self, key: bytes, stored: bytes, row: Session) -> None:
        self.key = key
        self.stored = stored
        self.row = row
        self.queue_prefix = queue_prefix(row.priority, row.submit_index)
        self.has_changed = False
        self.has_ended_branch = False
        """A branch (not the consolidation) became terminal in this command: the session may be ready to consolidate."""
        self.status: SessionStatus = row.status
        self.pending = row.pending
        self.processing = row.processing
        self.completed = row.completed
        self.failed = row.failed
        self.cancelled = row.cancelled
        self.total_patterns = row.total_patterns
        self.total_connections = row.total_connections
        self.novelty_sum = row.novelty_sum
        self.duration_sum_ms = row.duration_sum_ms
        self.parallel_efficiency = row.parallel_efficiency
        self.failure: Failure | None = row.failure
        self.started_at_ms = row.started_at_ms
        self.completed_at_ms = row.completed_at_ms

    @property
    def is_open(self) -> bool:
        return self.status == "pending" or self.status == "processing"

    def branch_key(self, branch_index: int) -> bytes | None:
        """None when the session has no such branch."""
        return self.key + branch_index.to_bytes(4, "big") if 0 <= branch_index <= self.row.total_branches else None

    def queue_key(self, branch_index: int) -> bytes:
        """A branch keeps its place in the queue, however often it is requeued."""
        return self.queue_prefix + branch_index.to_bytes(4, "big")

    def result(self, index: int) -> Session:
        return replace(
            self.row,
            rev=index,
            status=self.status,
            pending=self.pending,
            processing=self.processing,
            completed=self.completed,
            failed=self.failed,
            cancelled=self.cancelled,
            total_patterns=self.total_patterns,
            total_connections=self.total_connections,
            novelty_sum=self.novelty_sum,
            duration_sum_ms=self.duration_sum_ms,
            parallel_efficiency=self.parallel_efficiency,
            failure=self.failure,
            started_at_ms=self.started_at_ms,
            completed_at_ms=self.completed_at_ms,
        )


class Workspace:
    """The rows, events and digest of one command under way. Nothing else writes replicated tables."""

    __slots__ = ("_counters", "_delta", "_new_counters", "_sessions", "at_ms", "events", "index", "patterns", "txn")

    def __init__(self, txn: Transaction, index: int, at_ms: int) -> None:
        assert 0 <= at_ms <= TIME_MS_MAX, "commands are validated before they are applied"
        self.txn = txn
        self.index = index
        self.at_ms = at_ms
        self.events: list[AnyEvent] = []
        self.patterns: dict[str, tuple[int, SessionId]] = {}
        """Patterns found by this command, as spelt: times and first session; see `patterns`."""
        self._delta = 0
        self._sessions: dict[str, SessionEdit | None] = {}
        self._counters: Counters | None = None
        self._new_counters: Counters | None = None

    def insert(self, table: str, key: bytes, value: bytes) -> None:
        """The caller knows that there is no such row; otherwise the digest is wrong from here on."""
        self._delta += row_hash(table, key, value)
        self.txn.put(table, key, value)

    def replace(self, table: str, key: bytes, old: bytes, value: bytes) -> None:
        """`old` is the row as the caller has read it in this command."""
        self._delta += row_hash(table, key, value) - row_hash(table, key, old)
        self.txn.put(table, key, value)

    def remove(self, table: str, key: bytes, old: bytes) -> None:
        self._delta -= row_hash(table, key, old)
        self.txn.delete(table, key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Insert or replace."""
        old = self.txn.get(table, key)
        if old is None:
            self.insert(table, key, value)
        elif old != value:
            self.replace(table, key, old, value)

    def session(self, session_id: str) -> SessionEdit | None:
        """None when there is no such session (or the id is none)."""
        try:
            return self._sessions[session_id]
        except KeyError:
            pass
        edit = None
        key = uuid_key(session_id)
        if key is not None:
            stored = self.txn.get(SESSIONS, key)
            if stored is not None:
                edit = SessionEdit(key, stored, decode_session(stored))
        self._sessions[session_id] = edit
        return edit

    def begun(self, session_id: str) -> SessionEdit:
        """A session that this command has just inserted."""
        self._sessions.pop(session_id, None)
        edit = self.session(session_id)
        assert edit is not None, "it was inserted"
        return edit

    @property
    def has_changes(self) -> bool:
        return self._delta != 0

    def sessions(self) -> list[SessionEdit]:
        """Those the command has named, in the order in which it did."""
        return [edit for edit in self._sessions.values() if edit is not None]

    @property
    def counters(self) -> Counters:
        if self._new_counters is not None:
            return self._new_counters
        if self._counters is None:
            stored = self.txn.get(STATE_META, COUNTERS_KEY)
            self._counters = Counters() if stored is None else decode_counters(stored)
        return self._counters

    @counters.setter
    def counters(self, value: Counters) -> None:
        self._new_counters = value

    def finish(self) -> None:
        """Writes sessions, counters and the digest."""
        for edit in self._sessions.values():
            if edit is not None and edit.has_changed:
                self.replace(SESSIONS, edit.key, edit.stored, encode_row(edit.result(self.index)))
        if self._new_counters is not None:
            self.put(STATE_META, COUNTERS_KEY, encode(self._new_counters))
        if self._delta:
            total = (digest_sum(self.txn) + self._delta) & _DIGEST_MASK
            self.txn.put(STATE_DIGEST, DIGEST_KEY, total.to_bytes(DIGEST_BYTES, "big"))


def digest_sum(txn: Transaction) -> int:
    return int.from_bytes(txn.get(STATE_DIGEST, DIGEST_KEY) or b"", "big")


def rows_sum(table: str, rows: Iterable[tuple[bytes, bytes]]) -> int:
    """Share of these rows in the digest: the sums of all rows of all tables, in any order, make `digest_of_sum`."""
    return sum(row_hash(table, key, value) for key, value in rows) if table in _PLACES else 0


def digest_of_sum(total: int) -> bytes:
    return (total & _DIGEST_MASK).to_bytes(DIGEST_BYTES, "big")


def recomputed_digest(txn: Transaction) -> bytes:
    """The digest from all rows, at the cost of reading them: what the maintained one must be equal to."""
    return digest_of_sum(sum(rows_sum(table, txn.scan(table)) for table in DIGESTED))
