"""How large an LMDB map becomes, and its file with it. `storage.environment` decides when, and who waits meanwhile."""

import os
from pathlib import Path

from storage.limits import MAP_HEADROOM_DIVISOR


def next_map_bytes(map_bytes: int, used_bytes: int, room_bytes: int, limit_bytes: int, *, is_full: bool) -> int:
    """Doubled until `room_bytes` and the headroom are free, once at least if a transaction found the map full; at most
    the limit, never less than `map_bytes`."""
    size = map_bytes * 2 if is_full else map_bytes
    while size - used_bytes < max(room_bytes, size // MAP_HEADROOM_DIVISOR):
        size *= 2
    return max(map_bytes, min(size, limit_bytes))


def whole_pages(size_bytes: int, page_bytes: int) -> int:
    return max(size_bytes // page_bytes, 16) * page_bytes


def stretch(path: Path, size_bytes: int) -> None:
    """Make the file as long as the map, sparse: see `storage.datafile`. Synced, so that a cut is never ours. Raises
    OSError. A file longer than its map is harmless, so it goes first, and transactions need not wait for the disk."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size < size_bytes:
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
