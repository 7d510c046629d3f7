"""The heavy work on snapshots, in a process of its own: `python -m node.snapshot_worker check|make|fill PATHS`.

It reads or writes every row, which takes long and much memory that is only cache. The daemon that started it keeps its
processor, its interpreter and its memory for itself, and a damaged page cannot take it along.

    check STORE WORK        copies the store; are its rows what was written?
    make  STORE WORK FILE   the same, and writes a snapshot to FILE
    fill  FILE STORE        makes a store of a snapshot

Prints one line of JSON: `{"sound": ...}`, `{"header": ...}` or `{"error": ...}`.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from consensus import snapshot
from consensus.journal import TABLES as JOURNAL_TABLES
from consensus.machine import DomainMachine
from storage.copy import copy_files, discard_copy
from storage.dump import encode_dump
from storage.environment import Environment
from storage.errors import StorageError
from storage.limits import DUMP_CHUNK_BYTES

NICE = 10
"""Whatever the daemon does comes first."""

_TABLES = (*JOURNAL_TABLES, *DomainMachine.tables)


def main(arguments: list[str]) -> int:
    os.nice(NICE)
    verb, *paths = arguments
    try:
        answer = _VERBS[verb](*map(Path, paths))
    except (StorageError, OSError, lmdb.Error) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
    return 0


def check(source: Path, work: Path) -> dict[str, Any]:
    copy = _copy(source, work)
    try:
        with copy.read() as txn:
            return {"sound": snapshot.is_sound(txn, DomainMachine())}
    finally:
        discard_copy(copy)


def make(source: Path, work: Path, target: Path) -> dict[str, Any]:
    machine = DomainMachine()
    copy = _copy(source, work)
    try:
        with copy.read() as txn:
            if not snapshot.is_sound(txn, machine):
                return {"sound": False}
            header = snapshot.make_header(txn, machine)
            if header is None:
                return {"error": "nothing is applied yet"}
            with target.open("wb") as file:
                for piece in encode_dump(txn, header):
                    file.write(piece)
    finally:
        discard_copy(copy)
    return {"sound": True, "header": msgspec.msgpack.encode(header).hex()}


def fill(source: Path, target: Path) -> dict[str, Any]:
    shutil.rmtree(target, ignore_errors=True)
    store = Environment.open(target, _TABLES)
    try:
        with source.open("rb") as file:
            header = snapshot.fill(store, _pieces(file), DomainMachine())
    finally:
        store.close()
    return {"header": msgspec.msgpack.encode(header).hex()}


def _copy(source: Path, work: Path) -> Environment:
    copy_files(source, work)
    return Environment.open(work, _TABLES)


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(DUMP_CHUNK_BYTES):
        yield piece


_VERBS: dict[str, Callable[..., dict[str, Any]]] = {"check": check, "make": make, "fill": fill}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
