"""A copy of a store at one moment, opened beside it: for whoever reads for long. A snapshot held that long would keep
the store from using freed pages again, and from growing its map."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from storage.environment import Environment
from storage.errors import DiskFull
from storage.limits import COPY_ROOM_BYTES, DISK_LOW_BYTES
from storage.opening import open_beside


def open_copy(store: Environment, directory: Path, tables: Sequence[str]) -> Environment:
    """Copies what is committed now, while writers go on, and opens it. `directory` is emptied first; `discard_copy`
    removes it. Raises DiskFull, before anything is written, if the copy would leave less than DISK_LOW_BYTES. Blocks
    for as long as the disk takes."""
    shutil.rmtree(directory, ignore_errors=True)
    check_room(store, directory, 1)
    # While it is copied the map cannot grow; so what is written meanwhile needs its room now.
    store.ensure_room(COPY_ROOM_BYTES)
    try:
        store.copy_to(directory)
        return Environment.open(directory, tables)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def copy_files(source: Path, target: Path) -> None:
    """The same from another process than the one that has the store open, which keeps the memory and the processor of
    that one free, and its map may grow meanwhile. `target` is emptied first, and is for `Environment.open`."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700, parents=True)
    environment = open_beside(source)
    try:
        environment.copy(str(target), compact=True)
    finally:
        environment.close()


def check_room(store: Environment, directory: Path, copies: int) -> None:
    """Raises DiskFull if so many copies of the store would leave less than DISK_LOW_BYTES."""
    found = store.statistics()
    missing = copies * found.used_bytes + DISK_LOW_BYTES - found.disk_free_bytes
    if missing > 0:
        raise DiskFull(
            f"{directory}: a copy of {found.used_bytes} bytes would leave too little of the {found.disk_free_bytes} "
            f"bytes that are free. Make room for {missing} bytes more",
            directory,
        )


def discard_copy(copy: Environment) -> None:
    copy.close()
    shutil.rmtree(copy.path, ignore_errors=True)
