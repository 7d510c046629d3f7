"""Brings a store that an older version wrote up to the present format: whole, or not at all.

All steps and the record of the new format are one transaction: after a crash in between the store is as the older
version left it, and that version can open it still.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeAlias

from msgspec.structs import replace

from storage import codec
from storage.errors import OlderFormat
from storage.meta import META_KEY, META_TABLE, MetaRecord
from storage.transactions import WriteTransaction

Migration: TypeAlias = Callable[[WriteTransaction], None]
"""Rewrites what a format keeps in another way than the next one."""


class Migratable(Protocol):
    path: Path
    meta: MetaRecord

    def write(self) -> AbstractContextManager[WriteTransaction]: ...


def migrate(store: Migratable, to: int, steps: Mapping[int, Migration]) -> None:
    """`steps[n]` leads from format n to n + 1. Raises OlderFormat if one is missing."""
    if store.meta.format == to:
        return
    missing = [number for number in range(store.meta.format, to) if number not in steps]
    if missing:
        raise OlderFormat(
            f"{store.path}: store format {store.meta.format} (made by {store.meta.software or 'an unknown version'}) "
            f"cannot be brought to format {to} in one go. Start a version in between first",
            store.path,
        )
    meta = replace(store.meta, format=to)
    with store.write() as txn:
        for number in range(store.meta.format, to):
            steps[number](txn)
        txn.put(META_TABLE, META_KEY, codec.encode(meta))
    store.meta = meta
