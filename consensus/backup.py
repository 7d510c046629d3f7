"""What a backup is: the replicated tables as of the applied index, as a `storage.dump`; and how a store begins with it.

The log, the vote and the voters are not in it: they belong to a mesh, and a backup is restored into a new one.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from consensus.journal import read_hard_state, read_term, write_base, write_configuration
from consensus.membership import Configuration
from consensus.state import tables
from consensus.state.apply import digest
from consensus.state.versions import COMMAND_VERSION
from storage.dump import DumpDecoder, Header, Part, Rows, make_header
from storage.errors import DamagedDump, NewerFormat
from storage.ids import NodeId
from storage.meta import FORMAT
from storage.transactions import Store, Transaction, WriteTransaction

KIND: Final = "backup"
_KIND_KEY, _FORMAT_KEY, _COMMANDS_KEY = "kind", "format", "commands"

LOAD_BYTES_MAX: Final = 16 << 20
"""Written in one transaction: few syncs, and a map that need not be grown for one of unknown size."""


def backup_header(txn: Transaction, about: Mapping[str, Any]) -> Header:
    """Of a backup of this snapshot of a replica's store. `about`: plain facts for its reader."""
    index = read_hard_state(txn).applied_index
    return make_header(
        txn,
        tables.TABLES,
        index=index,
        term=read_term(txn, index) or 0,
        digest=digest(txn),
        about={**about, _KIND_KEY: KIND, _FORMAT_KEY: FORMAT, _COMMANDS_KEY: COMMAND_VERSION},
    )


class BackupReader:
    """A `DumpDecoder` that also takes nothing for a backup that is none, and reckons the digest of the tables anew: so
    it finds, too, what had rotted in the store from which it was taken."""

    def __init__(self) -> None:
        self._decoder = DumpDecoder()
        self._sum = 0

    @property
    def header(self) -> Header | None:
        return self._decoder.header

    @property
    def rows(self) -> int:
        return self._decoder.rows

    def feed(self, data: bytes) -> list[Part]:
        """Raises DamagedDump, NewerFormat."""
        parts = self._decoder.feed(data)
        for part in parts:
            if isinstance(part, Rows):
                self._sum += tables.rows_sum(part.table, part.rows)
            elif isinstance(part, Header):
                self._check_header(part)
        return parts

    def finish(self) -> Header:
        """Raises DamagedDump unless all of it was there and adds up."""
        self._decoder.finish()
        header = self._decoder.header
        assert header is not None
        if tables.digest_of_sum(self._sum) != header.digest:
            raise DamagedDump(
                "its rows do not add up to the digest of the replica it was taken from: the data of that node is "
                "damaged. Take a backup from another node"
            )
        return header

    @staticmethod
    def _check_header(header: Header) -> None:
        about = header.about
        if about.get(_KIND_KEY) != KIND or not isinstance(about.get(_FORMAT_KEY), int):
            raise DamagedDump("it is whole, but no backup")
        if about[_FORMAT_KEY] > FORMAT or about.get(_COMMANDS_KEY, 0) > COMMAND_VERSION:
            raise NewerFormat(f"taken by meshnode {about.get('software', 'of a newer version')}. Use that version")
        unknown = set(header.tables) - set(tables.TABLES)
        if unknown or header.index < 0 or header.term < 0:
            raise DamagedDump(f"it has tables that this version does not know: {', '.join(sorted(unknown)) or 'none'}")


def load_backup(
    store: Store, pieces: Iterable[bytes], node_id: NodeId, migrate: Callable[[int], None] = lambda number: None
) -> Header:
    """Fill an empty store with a backup, as the only voter of a mesh whose log begins at the backup's index.
    `migrate(format)` brings rows of an older format up to the present one. Raises DamagedDump, NewerFormat or a
    StorageError of writing; then the store is to be thrown away. Durable on return."""
    reader = BackupReader()
    waiting: list[Rows] = []
    size = 0
    for piece in pieces:
        for part in reader.feed(piece):
            if isinstance(part, Rows):
                waiting.append(part)
        size += len(piece)
        if size >= LOAD_BYTES_MAX:
            with store.write() as txn:
                _put(txn, waiting)
            waiting, size = [], 0
    header = reader.finish()
    with store.write() as txn:
        _put(txn, waiting)
    if header.about[_FORMAT_KEY] < FORMAT:
        migrate(header.about[_FORMAT_KEY])
    with store.write() as txn:
        # A mesh that has applied nothing is at index 1 as soon as it starts.
        write_base(txn, max(header.index, 1), max(header.term, 1))
        write_configuration(txn, max(header.index, 1), Configuration((node_id,)))
    return header


def _put(txn: WriteTransaction, parts: list[Rows]) -> None:
    for part in parts:
        txn.put_many(part.table, part.rows)
