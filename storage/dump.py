"""A dump: tables at one moment as a stream of bytes that proves itself whole. No I/O: a transaction in, bytes out, and
back again; for backups and for snapshots alike.

    magic (8 bytes), format (u16), then frames until the end frame, then nothing
    frame: kind (u8), length (u32), payload (MessagePack), check (16 bytes)

The first frame is the header, the last the end; between them rows, table after table, in the order of their keys. A
check is the BLAKE2b of the check before it, the kind, the length and the payload; the first one goes on from magic and
format. So each frame can be believed as soon as it is there, and a flipped bit, a frame that is missing, doubled or
moved, a cut and a tail are all found. It detects faults, not forgers.

The same rows and the same header always give the same bytes, so a transfer may go on at any byte, from anyone who has
the same. Numbers are big-endian. What a reader must refuse or may ignore: a higher format is refused (NewerFormat);
unknown fields of the header and of the end are ignored.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from storage import codec
from storage.errors import CodecError, DamagedDump, NewerFormat
from storage.limits import DUMP_CHUNK_BYTES, DUMP_FRAME_BYTES_MAX, KEY_BYTES_MAX
from storage.transactions import Transaction

MAGIC: Final = b"MNDUMP\r\n"
"""The line end is there because what changes line ends in transfer breaks it here already."""
FORMAT: Final = 1

_PREFIX = struct.Struct(">8sH")
_FRAME = struct.Struct(">BI")
_CHECK_BYTES: Final = 16
_HEADER, _ROWS, _END = 1, 2, 3


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Everything up to log index `index` of term `term` is in the tables."""

    index: int
    term: int
    tables: tuple[str, ...]
    rows: int
    """In all tables together."""
    digest: bytes
    """Of the tables, as their owner reckons it: it is for the owner to compare."""
    about: dict[str, Any] = {}
    """Further plain facts of whoever made it."""


class Rows(NamedTuple):
    table: str
    rows: list[tuple[bytes, bytes]]


class End(msgspec.Struct, frozen=True, kw_only=True):
    rows: int


Part: TypeAlias = Header | Rows | End


def make_header(
    txn: Transaction, tables: Sequence[str], *, index: int, term: int, digest: bytes, about: Mapping[str, Any]
) -> Header:
    """The header of a dump of these tables of `txn`."""
    rows = sum(txn.count(table) for table in tables)
    return Header(index=index, term=term, tables=tuple(tables), rows=rows, digest=digest, about=dict(about))


def encode_dump(txn: Transaction, header: Header) -> Iterator[bytes]:
    """The dump of a snapshot, in pieces of about DUMP_CHUNK_BYTES, each a whole frame (the first with magic and format
    before it). Costs memory for one piece. The snapshot must stay open and unchanged until the end."""
    start = _PREFIX.pack(MAGIC, FORMAT)
    frame, check = _frame(_HEADER, header, _hash(start))
    yield start + frame
    count = 0
    for place, table in enumerate(header.tables):
        rows: list[bytes] = []
        size = 0
        for key, value in txn.scan(table):
            rows += (key, value)
            size += len(key) + len(value)
            count += 1
            if size >= DUMP_CHUNK_BYTES:
                frame, check = _frame(_ROWS, (place, rows), check)
                yield frame
                rows, size = [], 0
        if rows:
            frame, check = _frame(_ROWS, (place, rows), check)
            yield frame
    assert count == header.rows, "the tables changed while they were read"
    frame, _ = _frame(_END, End(rows=count), check)
    yield frame


class DumpDecoder:
    """Takes the bytes of a dump in pieces of any size and gives its parts as soon as they are proven. Call `finish`
    when there is no more. Keeps one frame at most."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self.rows = 0
        """Given so far."""
        self.is_complete = False
        self._buffer = bytearray()
        self._taken = 0  # bytes of the dump that were proven
        self._check: bytes | None = None
        self._place = 0
        self._last_key = b""

    def feed(self, data: bytes) -> list[Part]:
        """Raises DamagedDump or NewerFormat; after that the decoder must not be used any more."""
        self._buffer += data
        parts: list[Part] = []
        buffer = self._buffer
        at = 0
        if self._check is None:
            if len(buffer) < _PREFIX.size:
                return parts
            at = self._taken = _PREFIX.size
            self._check = self._start(bytes(buffer[:at]))
        while len(buffer) - at >= _FRAME.size and not self.is_complete:
            kind, length = _FRAME.unpack_from(buffer, at)
            if length > DUMP_FRAME_BYTES_MAX:
                raise self._damaged(f"a part of {length} bytes, more than the {DUMP_FRAME_BYTES_MAX} that are allowed")
            end = at + _FRAME.size + length
            if len(buffer) < end + _CHECK_BYTES:
                break
            body = bytes(memoryview(buffer)[at:end])
            self._check = _hash(self._check, body)
            if self._check != buffer[end : end + _CHECK_BYTES]:
                raise self._damaged("a part does not match its check: bytes were changed, lost or moved")
            parts.append(self._part(kind, body[_FRAME.size :]))
            self._taken += end + _CHECK_BYTES - at
            at = end + _CHECK_BYTES
        del buffer[:at]
        if self.is_complete and buffer:
            raise self._damaged("there is something after its end")
        return parts

    def finish(self) -> None:
        """Raises DamagedDump unless the whole dump was there."""
        if not self.is_complete:
            raise self._damaged("it is cut off")

    def _start(self, prefix: bytes) -> bytes:
        magic, version = _PREFIX.unpack(prefix)
        if magic != MAGIC:
            raise DamagedDump("this is not a backup or snapshot of meshnode, or its first bytes are damaged")
        if version > FORMAT:
            raise NewerFormat(f"dump format {version}; this version of meshnode reads up to {FORMAT}. Use a newer one")
        if version < FORMAT:
            raise DamagedDump(f"dump format {version}, which never was: its first bytes are damaged")
        return _hash(prefix)

    def _part(self, kind: int, payload: bytes) -> Part:
        try:
            if self.header is None:
                if kind == _HEADER:
                    self.header = codec.decode(payload, Header)
                    return self.header
            elif kind == _ROWS:
                return self._rows(payload)
            elif kind == _END:
                end = codec.decode(payload, End)
                if not end.rows == self.rows == self.header.rows:
                    raise self._damaged(f"{self.rows} rows instead of {self.header.rows}")
                self.is_complete = True
                return end
        except CodecError as error:
            raise self._damaged(str(error)) from error
        raise self._damaged(f"a part of kind {kind} where none belongs")

    def _rows(self, payload: bytes) -> Rows:
        assert self.header is not None
        place, flat = codec.decode(payload, _FLAT)
        if len(flat) % 2 or not flat or not self._place <= place < len(self.header.tables):
            raise self._damaged("rows that are none")
        if place > self._place:
            self._place, self._last_key = place, b""
        keys = flat[::2]
        last = self._last_key
        for key in keys:
            if not last < key or len(key) > KEY_BYTES_MAX:
                raise self._damaged("rows out of order")
            last = key
        self._last_key = last
        self.rows += len(keys)
        return Rows(self.header.tables[place], list(zip(keys, flat[1::2], strict=True)))

    def _damaged(self, what: str) -> DamagedDump:
        return DamagedDump(f"damaged after byte {self._taken}: {what}")


_FLAT: Any = tuple[int, list[bytes]]


def _frame(kind: int, payload: object, check: bytes) -> tuple[bytes, bytes]:
    data = codec.encode(payload, DUMP_FRAME_BYTES_MAX)
    body = _FRAME.pack(kind, len(data)) + data
    check = _hash(check, body)
    return body + check, check


def _hash(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=_CHECK_BYTES, person=b"meshnode dump").digest()
