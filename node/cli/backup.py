"""`meshnode backup FILE`: takes a backup from a node, or checks one.

The file appears under its name only when all of it has arrived, was checked and is on the disk.
"""

import contextlib
import http.client
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from consensus.backup import BackupReader
from node.cli import render
from node.cli.api import Api
from node.cli.exits import CommandError, Exit
from node.cli.files import sync_directory
from storage.dump import Header
from storage.errors import DamagedDump, NewerFormat

READ_BYTES = 256 * 1024
BEGIN_S = 600.0
"""The node copies its store before it answers: at 100 MiB/s, 60 GiB."""

REDRAW_S = 0.1
BAR_CELLS = 24


def run(arguments: Namespace) -> int:
    path: Path = arguments.file.expanduser()
    if arguments.verify:
        facts = verify(path)
    else:
        if path.exists() and not arguments.force:
            raise CommandError(f"{path} exists already", Exit.FAILED, "name another file, or replace it with --force")
        facts = take(Api.of(arguments), path)
    if arguments.json:
        render.print_json(facts)
    else:
        print(text_of(facts, "sound" if arguments.verify else "saved"))
    return Exit.OK


def take(api: Api, path: Path) -> dict[str, Any]:
    """Asks a node, writes `FILE.part`, and renames it when it is whole."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            with api.download("/v1/backup", BEGIN_S) as response:
                facts = check(_kept(_arriving(response, api.url), file), path, Progress(sys.stderr))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise CommandError(f"{part} cannot be written: {error.strerror}", Exit.FAILED, "name another") from None
        raise
    return facts


def verify(path: Path) -> dict[str, Any]:
    return check(read_pieces(path), path, Progress(sys.stderr))


def read_pieces(path: Path) -> Iterator[bytes]:
    """The bytes of a file. Raises CommandError if it cannot be read."""
    try:
        with path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                yield piece
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}", Exit.FAILED) from None


def check(pieces: Iterable[bytes], path: Path, progress: "Progress") -> dict[str, Any]:
    """What a whole backup is; CommandError if it is not whole."""
    reader = BackupReader()
    digest = sha256()
    size = 0
    try:
        for piece in pieces:
            reader.feed(piece)
            digest.update(piece)
            size += len(piece)
            progress.show(reader.rows, reader.header.rows if reader.header else 0, size, time.monotonic())
        header = reader.finish()
    except DamagedDump as error:
        raise CommandError(f"{path}: {error}", Exit.FAILED, "take another backup", error.code) from None
    except NewerFormat as error:
        raise CommandError(f"{path}: {error}", Exit.FAILED, code=error.code) from None
    finally:
        progress.clear()
    return {"file": str(path), "bytes": size, "sha256": digest.hexdigest(), **facts_of(header)}


def facts_of(header: Header) -> dict[str, Any]:
    at_ms = header.about.get("at_ms")
    return {
        "index": header.index,
        "term": header.term,
        "rows": header.rows,
        "digest": header.digest.hex(),
        "taken_at": datetime.fromtimestamp(at_ms / 1000, UTC).isoformat() if isinstance(at_ms, int) else None,
        **{name: header.about.get(name) for name in ("mesh", "mesh_id", "node", "node_id", "voters", "software")},
    }


def text_of(facts: dict[str, Any], verdict: str) -> str:
    rows = [
        ("file", f"{facts['file']} ({render.size(facts['bytes'])}, {verdict})"),
        ("mesh", f"{facts['mesh']} ({facts['mesh_id']})"),
        ("taken", f"{render.local(facts['taken_at'])} from {facts['node']}, meshnode {facts['software']}"),
        ("up to", f"index {facts['index']} of term {facts['term']}"),
        ("tables", f"{facts['rows']} rows, digest {facts['digest']}"),
        ("sha-256", facts["sha256"]),
    ]
    return "\n".join(f"{name:<8} {render.clean(value)}" for name, value in rows)


class Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = render.can_redraw(stream)
        self._shown_s = float("-inf")

    def show(self, done: int, total: int, size: int, now_s: float) -> None:
        if not self._is_terminal or now_s - self._shown_s < REDRAW_S:
            return
        self._shown_s = now_s
        filled = BAR_CELLS * done // total if total else 0
        share = f"{100 * done // total if total else 0:>3} %"
        self._stream.write(f"\r\x1b[K[{'#' * filled}{'-' * (BAR_CELLS - filled)}] {share}  {render.size(size)}")
        self._stream.flush()

    def clear(self) -> None:
        if self._is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def _arriving(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    while True:
        try:
            piece = response.read1(READ_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(
                f"the answer of {url} broke off ({str(error) or type(error).__name__})",
                Exit.UNREACHABLE,
                "try again, or ask another node with --url; the log of that node may say why",
            ) from None
        if not piece:
            return
        yield piece


def _kept(pieces: Iterable[bytes], file: BinaryIO) -> Iterator[bytes]:
    for piece in pieces:
        file.write(piece)
        yield piece
