"""What an error number of the operating system means for a store, and what its user should do."""

import errno
import os
from pathlib import Path

from storage.errors import DiskFailed, DiskFull, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)
FAILED = (errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV)
"""The disk does not write any more, or not what it is told."""


def errno_of(error: Exception) -> int:
    """Of LMDB. Before 1.7 py-lmdb keeps the number only in the text ("mdb_txn_commit: No space left on device")."""
    code: object = getattr(error, "code", 0)
    if isinstance(code, int) and code:
        return code
    text = str(error)
    for candidate in (*FULL, *FAILED):
        if os.strerror(candidate) in text:
            return candidate
    return 0


def of_os_error(error: OSError, path: Path) -> StorageError:
    if error.errno in FULL:
        return DiskFull(f"{path}: no space left on the disk. Make room", path)
    if error.errno == errno.EROFS:
        return DiskFailed(
            f"{path}: the file system is read-only. If the kernel made it so, its log says why: check the disk; then "
            "mount it for writing and start the node again",
            path,
        )
    if error.errno in FAILED:
        return DiskFailed(f"{path}: {error.strerror}. Check the disk", path)
    return StorageError(f"{path}: {error.strerror}. Check the directory and its owner", path)
