"""`meshnode --config FILE restore BACKUP`: makes a new mesh of one voter, this node, from a backup.

The store is made aside and renamed into place when it is complete and on the disk: an interrupted restore leaves a data
directory that is still empty, as far as the daemon and the next restore are concerned.
"""

import contextlib
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consensus.backup import load_backup
from mesh.errors import MeshError
from mesh.identity import Identity
from mesh.proposals import succeed
from node import __version__
from node.cli import render
from node.cli.backup import Progress, facts_of, read_pieces
from node.cli.exits import CommandError, Exit
from node.cli.files import sync_directory
from node.cli.offline import configured, now_ms
from node.common import STORE_DIRECTORY
from node.config import Config
from node.wiring import STORE_TABLES, migrate_rows, put_founding
from storage.dump import Header
from storage.environment import Environment
from storage.errors import DamagedDump, NewerFormat, StorageError
from storage.ids import MeshId

ASIDE = f"{STORE_DIRECTORY}.restoring"
IDENTITY = "identity"
_MAY_BE_THERE = frozenset({ASIDE, IDENTITY, "lost+found"})
"""In an empty data directory: what an interrupted restore left, and what is in every new file system."""


def run(arguments: Namespace) -> int:
    config = configured(arguments)
    facts = restore(config, arguments.backup.expanduser())
    if arguments.json:
        render.print_json(facts)
    else:
        print(text_of(facts))
    return Exit.OK


def restore(config: Config, backup: Path) -> dict[str, Any]:
    """Raises CommandError; the data directory is then as empty as before."""
    data_dir = config.data_dir
    _check_empty(data_dir)
    aside = data_dir / ASIDE
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        identity = Identity.load_or_create(data_dir / IDENTITY)
        store = Environment.open(aside, STORE_TABLES, software=f"meshnode {__version__}")
        try:
            with contextlib.closing(store):
                header = load_backup(
                    store, _shown(backup), identity.node_id, lambda number: migrate_rows(store, number)
                )
                record = succeed(identity.node_id, _former(header), 0, now_ms())
                with store.write() as txn:
                    put_founding(txn, record)
            aside.rename(data_dir / STORE_DIRECTORY)
            sync_directory(data_dir)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    except DamagedDump as error:
        raise CommandError(f"{backup}: {error}", Exit.FAILED, "restore another backup", error.code) from None
    except NewerFormat as error:
        raise CommandError(f"{backup}: {error}", Exit.FAILED, code=error.code) from None
    except (StorageError, MeshError) as error:
        raise CommandError(str(error), Exit.FAILED, code=error.code) from None
    except OSError as error:
        raise CommandError(f"{data_dir} cannot be written: {error.strerror}", Exit.FAILED) from None
    return {
        "backup": facts_of(header),
        "mesh": config.mesh.name,
        "mesh_id": record.mesh_id,
        "node_id": identity.node_id,
        "data_dir": str(data_dir),
    }


def text_of(facts: dict[str, Any]) -> str:
    old = facts["backup"]
    return "\n".join(
        [
            f"restored index {old['index']} of mesh {old['mesh']} ({old['mesh_id']}), {old['rows']} rows",
            f"as the new mesh {facts['mesh']} ({facts['mesh_id']}) with one voter, node {facts['node_id']}",
            f"in {facts['data_dir']}",
            "",
            "Next: start this node. Other nodes join it as new ones, with empty data directories; those of the old",
            "mesh are refused until their data directories are moved away.",
        ]
    )


def _check_empty(data_dir: Path) -> None:
    try:
        found = sorted(entry.name for entry in data_dir.iterdir() if entry.name not in _MAY_BE_THERE)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CommandError(f"{data_dir} cannot be read: {error.strerror}", Exit.FAILED) from None
    if found:
        raise CommandError(
            f"{data_dir} is not empty: it holds {', '.join(found[:5])}",
            Exit.FAILED,
            "move it away, or set another [node] data_dir; a restore never replaces data",
            "not_empty",
        )


def _shown(backup: Path) -> Iterator[bytes]:
    progress = Progress(sys.stderr)
    total = backup.stat().st_size if backup.exists() else 0
    size = 0
    try:
        for piece in read_pieces(backup):
            yield piece
            size += len(piece)
            progress.show(size, total, size, time.monotonic())
    finally:
        progress.clear()


def _former(header: Header) -> tuple[MeshId, ...]:
    found = header.about.get("mesh_id")
    return (MeshId(found),) if isinstance(found, str) else ()
