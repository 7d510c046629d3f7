"""The files of an LMDB environment: made so that a half-made one is never taken for a damaged one, opened only when
they are ours."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import lmdb

from storage import codec, datafile
from storage.causes import FULL, errno_of
from storage.errors import CodecError, CorruptStore, DiskFull, ForeignStore, NewerFormat, StorageError
from storage.limits import READERS_MAX
from storage.meta import FORMAT, META_KEY, META_TABLE, MetaRecord

ENGINE = "lmdb-0.9"
APPLICATION = "meshnode"

DATA_FILE, LMDB_LOCK_FILE, _NEW_DIRECTORY = "data.mdb", "lock.mdb", ".new"
_LMDB_LOCK_BYTES = 128 * (READERS_MAX + 8)  # 64 bytes a reader and a header of 128 to 512, generously
_TABLES_SPARE = 16  # sub-databases beyond those named: cheap, and an environment may hold tables we do not open
# py-lmdb 3 bundles two engines; the environment variable LMDB_DEFAULT_LIB_VERSION must not choose for us.
ENGINE_CHOICE: dict[str, Any] = {"lib_version": 0} if hasattr(lmdb.Environment, "lib_version") else {}


def create(path: Path, software: str, map_bytes: int) -> None:
    """Make the environment aside and move it into place when it is complete and synced: a data file that exists is
    never a half-made one, so an empty or cut file always means damage."""
    if (path / LMDB_LOCK_FILE).exists():
        raise CorruptStore(f"{path}: {DATA_FILE} is missing, though it was here. {datafile.REMEDY}", path)
    aside = path / _NEW_DIRECTORY
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700)
    meta = MetaRecord(
        application=APPLICATION,
        format=FORMAT,
        engine=ENGINE,
        software=software,
        created_at_ms=int(time.time() * 1000),
    )
    env = open_lmdb(aside, map_bytes, 0)
    try:
        handle = env.open_db(META_TABLE.encode())
        with env.begin(write=True) as txn:
            txn.put(META_KEY, codec.encode(meta), db=handle)
    except lmdb.Error as error:
        raise (
            DiskFull(f"{path}: no space to make the store", path)
            if errno_of(error) in FULL
            else StorageError(f"{path}: {error}", path)
        ) from error
    finally:
        env.close()
    data = aside / DATA_FILE
    os.truncate(data, max(data.stat().st_size, map_bytes))
    sync(data)
    os.rename(data, path / DATA_FILE)
    sync(path)
    shutil.rmtree(aside)


def open_lmdb(path: Path, map_bytes: int, table_count: int) -> lmdb.Environment:
    allocate_lock_file(path)
    try:
        return lmdb.open(
            str(path),
            map_size=map_bytes,
            max_dbs=table_count + 1 + _TABLES_SPARE,
            max_readers=READERS_MAX,
            mode=0o600,
            sync=True,
            metasync=True,
            writemap=False,  # a stray pointer in the process must not reach the data
            **ENGINE_CHOICE,
        )
    except lmdb.Error as error:
        if isinstance(error, (lmdb.InvalidError, lmdb.CorruptedError)):
            raise CorruptStore(f"{path}: damaged ({error}). {datafile.REMEDY}", path) from error
        if isinstance(error, lmdb.VersionMismatchError):
            raise NewerFormat(f"{path}: written by another version of LMDB ({error})", path) from error
        if errno_of(error) in FULL:
            raise DiskFull(f"{path}: no space left on the disk. Make room", path) from error
        raise StorageError(f"{path}: cannot be opened: {error}", path) from error


def open_beside(path: Path) -> lmdb.Environment:
    """For reading, from another process than the one that writes there."""
    return lmdb.open(
        str(path),
        map_size=(path / DATA_FILE).stat().st_size,
        readonly=True,
        create=False,
        max_dbs=0,
        max_readers=READERS_MAX,
        **ENGINE_CHOICE,
    )


def allocate_lock_file(path: Path) -> None:
    """LMDB writes its reader table through a memory map of a sparse file: on a full disk that is SIGBUS, not an error.
    With its space allocated beforehand it cannot happen. LMDB takes the table's length from the file's."""
    descriptor = os.open(path / LMDB_LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _LMDB_LOCK_BYTES)
    finally:
        os.close(descriptor)


def read_meta(env: lmdb.Environment, path: Path) -> MetaRecord:
    foreign = ForeignStore(f"{path}: not a store of {APPLICATION}. Choose another data directory", path)
    try:
        handle = env.open_db(META_TABLE.encode(), create=False)
    except (lmdb.NotFoundError, lmdb.ReadonlyError, lmdb.IncompatibleError):
        raise foreign from None
    with env.begin() as txn:
        data = txn.get(META_KEY, db=handle)
    if data is None:
        raise foreign
    try:
        meta = codec.decode(data, dict[str, Any])
        if meta.get("application") != APPLICATION:
            raise foreign
        if isinstance(meta.get("format"), int) and meta["format"] > FORMAT:
            raise NewerFormat(
                f"{path}: store format {meta['format']}, written by meshnode {meta.get('software') or 'unknown'}; this "
                f"version reads up to {FORMAT}. Start the newer version",
                path,
            )
        return codec.decode(data, MetaRecord)
    except CodecError as error:
        raise CorruptStore(f"{path}: the record about the store itself is damaged. {datafile.REMEDY}", path) from error


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
