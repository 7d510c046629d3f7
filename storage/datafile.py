"""Looks at `data.mdb` before LMDB does, because LMDB kills the process instead of reporting some kinds of damage.

A file that is shorter than its own last page is read through a memory map: the access beyond its end is SIGBUS. So the
length is checked against the meta pages first. That works only if a sound file is never short; LMDB alone does not
promise it (a page allocated and freed in one transaction is never written), so `storage.environment` stretches the
file to the size of the map, sparse, whenever it opens or grows it.

The layout is `struct MDB_meta` of LMDB 0.9 (mdb.c) on 64-bit machines, in native byte order. Damage inside pages is not
found here: this format has no checksums.
"""

import struct
import sys
from pathlib import Path
from typing import NamedTuple

from storage.errors import CorruptStore, NewerFormat

_MAGIC = 0xBEEFC0DE
_VERSION = 1  # MDB_DATA_VERSION of 0.9.x; 1.0 writes 3
_HEADER_BYTES = 16
_META = struct.Struct("=II QQ 48s48s QQ")
"""magic, version, address, map size, free and main database, last page, transaction id."""
_PAGE_BYTES = struct.Struct("=I")  # md_pad of the free database

REMEDY = (
    "Restore this node from a backup; or, if the other nodes of the mesh are well, remove the node and its data "
    "directory and let it join again as a new node. Never just delete the file: the node would forget its votes"
)


class DataFile(NamedTuple):
    page_bytes: int
    map_bytes: int
    """Size of the map when it was last committed."""
    used_bytes: int
    """The end of the last page in use."""


def inspect(path: Path) -> DataFile:
    """Raises CorruptStore or NewerFormat. Call it with the directory locked: a writer would change what is read."""
    assert sys.maxsize > 2**32, "the layout is that of 64-bit machines"
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        first = _read_meta(path, file.read(_HEADER_BYTES + _META.size))
        page_bytes = _PAGE_BYTES.unpack_from(first[4])[0]
        if page_bytes not in {1 << bits for bits in range(9, 17)}:
            raise CorruptStore(f"{path}: the first page is damaged (page size {page_bytes}). {REMEDY}", path)
        file.seek(page_bytes)
        second = _read_meta(path, file.read(_HEADER_BYTES + _META.size))
    newest = max(first, second, key=lambda meta: int(meta[7]))
    found = DataFile(page_bytes, newest[3], (newest[6] + 1) * page_bytes)
    if file_bytes < found.used_bytes:
        raise CorruptStore(
            f"{path}: the file is cut off: {file_bytes} bytes of at least {found.used_bytes}. {REMEDY}", path
        )
    return found


def _read_meta(path: Path, page: bytes) -> tuple[int, int, int, int, bytes, bytes, int, int]:
    if len(page) < _HEADER_BYTES + _META.size:
        raise CorruptStore(f"{path}: the file is cut off before its second page. {REMEDY}", path)
    meta: tuple[int, int, int, int, bytes, bytes, int, int] = _META.unpack_from(page, _HEADER_BYTES)
    if meta[0] != _MAGIC:
        raise CorruptStore(f"{path}: not an LMDB file, or its first pages are damaged. {REMEDY}", path)
    if meta[1] != _VERSION:
        raise NewerFormat(
            f"{path}: LMDB data format {meta[1]}; this version of meshnode reads {_VERSION} (LMDB 0.9). "
            "Start the version that wrote it",
            path,
        )
    return meta
