"""Watches the free space of the data directory's disk, and says what may still be taken on.

Before the disk is full: new sessions are refused first, so that what runs has room to finish; then everything that
writes. Reading goes on all the time, and all of it comes back by itself when there is room again.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from node.service.errors import ServiceError
from node.service.ports import StorePort
from storage.errors import StorageError
from storage.limits import DISK_CHECK_S, DISK_LOW_BYTES, DISK_RESERVE_BYTES
from storage.space import Space, space_of

WATCH_PERIOD_S: Final = 1.0
"""Between looks when nobody asks: even at 40 MiB/s of writing it is seen that the disk is low before it is full."""

_MIB: Final = 1 << 20

log = structlog.get_logger()


class DiskWatch:
    def __init__(self, store: StorePort, folder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._folder = folder
        self._clock = clock
        self._looked_at = float("-inf")
        self._space = Space.OK
        self._free_bytes = 0

    @property
    def space(self) -> Space:
        """At most DISK_CHECK_S old."""
        now = self._clock()
        if now - self._looked_at >= DISK_CHECK_S:
            self._looked_at = now
            try:
                self._free_bytes = self._store.statistics().disk_free_bytes
            except (StorageError, OSError):
                return self._space  # closed, or a disk that does not even answer this: what was, is
            self._note(space_of(self._free_bytes, self._space))
        return self._space

    def check_new_work(self) -> None:
        """Raises ServiceError `disk_low`, `disk_full`."""
        self.check_writing()
        if self._space is Space.LOW:
            raise ServiceError(
                "disk_low",
                f"The disk of {self._folder} has {self._free_bytes // _MIB} MiB free; below "
                f"{DISK_LOW_BYTES // _MIB} MiB no new sessions are taken, so that running ones can finish.",
                "Make room on that machine, or submit to another node.",
            )

    def check_writing(self) -> None:
        """Raises ServiceError `disk_full`."""
        if self.space is Space.FULL:
            raise ServiceError(
                "disk_full",
                f"The disk of {self._folder} is full: {self._free_bytes // _MIB} MiB free, of which "
                f"{DISK_RESERVE_BYTES // _MIB} MiB are kept in reserve.",
                "Make room on that machine, it then goes on by itself; or ask another node.",
            )

    async def run(self) -> None:
        """Until cancelled: notices what nobody asks for."""
        while True:
            _ = self.space
            await asyncio.sleep(WATCH_PERIOD_S)

    def _note(self, space: Space) -> None:
        if space is self._space:
            return
        self._space = space
        facts = {"folder": self._folder, "free_bytes": self._free_bytes}
        match space:
            case Space.OK:
                log.info("disk_has_room", **facts)
            case Space.LOW:
                log.warning("disk_low", effect="no new sessions here", **facts)
            case Space.FULL:
                log.error("disk_full", effect="nothing is written here", **facts)
