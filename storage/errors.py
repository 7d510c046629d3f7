"""What can go wrong with a store. `code` is stable; the message names the path and what to do about it."""

from pathlib import Path
from typing import ClassVar


class StorageError(Exception):
    """Root of this package's errors: the world's fault. A caller's bug is a ValueError, RuntimeError..."""

    code: ClassVar[str] = "storage"

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class MapExhausted(StorageError):
    """The memory map is full. The transaction is aborted. The next `begin_write()` grows the map first, so the caller
    repeats the whole transaction, best in smaller parts; unless the message says that the map cannot grow."""

    code = "map_exhausted"


class DiskFull(StorageError):
    """No space on the file system. Nothing of the transaction was kept; repeat it when there is room."""

    code = "disk_full"


class DiskFailed(StorageError):
    """Writing or syncing failed. What is on the disk is unknown until the store is opened again after the cause is
    mended; this environment refuses every further write. Never retry: a second fsync may lie."""

    code = "disk_failed"


class CorruptStore(StorageError):
    """The data is damaged. Never repaired silently: a node that forgets its vote may elect two leaders."""

    code = "corrupt_store"


class ForeignStore(StorageError):
    """A valid LMDB environment that this product did not write."""

    code = "foreign_store"


class NewerFormat(StorageError):
    """Written by a newer version of meshnode, or of LMDB. Opening it could destroy what this version cannot see."""

    code = "newer_format"


class OlderFormat(StorageError):
    """Written by a version so old that this one cannot migrate it."""

    code = "older_format"


class DamagedDump(StorageError):
    """A backup or snapshot that is not whole. Nothing of it may be used: take another one."""

    code = "damaged_dump"


class StoreLocked(StorageError):
    """Another process uses the data directory. `pid` is None when it could not be read."""

    code = "store_locked"

    def __init__(self, message: str, path: Path | None = None, pid: int | None = None) -> None:
        super().__init__(message, path)
        self.pid = pid


class StoreBusy(StorageError):
    """Snapshots were not ended in time. Nothing has happened; try again later."""

    code = "store_busy"


class StoreClosed(StorageError):
    """Used after `close()`: the daemon is stopping."""

    code = "store_closed"


class ReadersExhausted(StorageError):
    """Too many snapshots are open at once. Try again later."""

    code = "readers_exhausted"


class CodecError(StorageError):
    """A value that is not accepted. `code` is one of `too_large`, `too_deep`, `unsupported`, `malformed`."""

    code: str  # type: ignore[misc]  # one class, because callers answer all four alike: they refuse the value

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
