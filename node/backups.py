"""Backups of this node's replica while it works.

The store is copied at one moment, at the speed of the disk, into a folder beside it; the backup is then made from the
copy, piece by piece, as fast as its reader takes it. So a slow reader costs disk space that was checked beforehand, and
holds nothing back: not the reuse of pages, not the growth of the map, not a writer. Everything that waits for the disk
does so on other threads.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from consensus.backup import backup_header
from consensus.journal import TABLES as JOURNAL_TABLES
from consensus.state.tables import TABLES
from node.service.errors import ServiceError
from storage.copy import discard_copy, open_copy
from storage.dump import Header, encode_dump
from storage.environment import Environment
from storage.errors import DiskFull, StorageError

DIRECTORY: Final = "backup"
"""In the data directory. What is left there by a process that was killed is removed at the next start."""


class Backup:
    """One backup under way: its header, and its bytes, to be taken once."""

    def __init__(self, copy: Environment, about: Mapping[str, Any]) -> None:
        self._copy = copy
        self._snapshot = contextlib.ExitStack()
        txn = self._snapshot.enter_context(copy.read())
        self.header: Header = backup_header(txn, about)
        self._pieces: Iterator[bytes] = encode_dump(txn, self.header)
        self._step: asyncio.Future[bytes | None] | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        while True:
            self._step = asyncio.ensure_future(asyncio.to_thread(next, self._pieces, None))
            piece = await asyncio.shield(self._step)
            if piece is None:
                return
            yield piece

    async def close(self) -> None:
        if self._step is not None:  # a thread may still read for somebody who has given up
            await asyncio.gather(self._step, return_exceptions=True)
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._snapshot.close()
        discard_copy(self._copy)


class Backups:
    """One at a time: each takes the disk space of the whole store."""

    def __init__(self, store: Environment, data_dir: Path, about: Callable[[], Mapping[str, Any]]) -> None:
        self._store = store
        self._directory = data_dir / DIRECTORY
        self._about = about
        self._is_busy = False

    @asynccontextmanager
    async def take(self) -> AsyncIterator[Backup]:
        """Raises ServiceError: `overloaded`, `disk_low`, `unavailable`."""
        if self._is_busy:
            raise ServiceError(
                "overloaded", "Another backup is being taken from this node.", "Wait for it, or ask another node."
            )
        self._is_busy = True
        try:
            backup = await self._begin()
            try:
                yield backup
            finally:
                await asyncio.shield(backup.close())
        finally:
            self._is_busy = False

    async def _begin(self) -> Backup:
        def begin() -> Backup:
            copy = open_copy(self._store, self._directory, (*JOURNAL_TABLES, *TABLES))
            try:
                return Backup(copy, self._about())
            except BaseException:
                discard_copy(copy)
                raise

        making = asyncio.ensure_future(asyncio.to_thread(begin))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.wait([making])
            if making.exception() is None:
                await making.result().close()
            raise
        except DiskFull as error:
            raise ServiceError("disk_low", str(error), "Or take the backup from another node.") from error
        except (StorageError, OSError) as error:
            raise ServiceError("unavailable", f"The store cannot be copied: {error}", "Ask another node.") from error
