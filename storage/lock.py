"""One process a data directory: an flock on a file that names its holder.

LMDB would let two daemons share an environment, and two daemons with one identity and one vote are two voters. The
kernel releases the lock when the holder dies, however it dies; so the file's text is only for the message, and stays.
Worker processes must be started by exec (the descriptor is not inherited); a bare fork would keep the lock alive.
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path

from storage.causes import of_os_error
from storage.errors import StorageError, StoreLocked

LOCK_FILE = "meshnode.lock"


class DirectoryLock:
    def __init__(self, directory: Path) -> None:
        """Raises StoreLocked at once if another holder lives, in this process or another."""
        path = directory / LOCK_FILE
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise of_os_error(error, path) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 64, 0).split()
            os.close(self._descriptor)
            if not isinstance(error, BlockingIOError):
                raise StorageError(f"{path}: cannot be locked: {error.strerror}", path) from error
            pid = int(holder[0]) if holder and holder[0].isdigit() else None
            raise StoreLocked(
                f"{directory}: in use by another meshnode (pid {pid or 'unknown'}). Stop it, "
                "or give this node a data directory of its own",
                path,
                pid,
            ) from None
        # Only the message of a refusal depends on the text: a full disk must not keep a node from starting.
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, f"{os.getpid()} {int(time.time() * 1000)}\n".ljust(48).encode(), 0)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
