"""Where snapshots are made, received and turned into stores: files in the data directory, and processes that do the
heavy work (`node.snapshot_worker`). Everything here blocks; it is called on threads, one call at a time.

    made.snapshot    what this node gives to others
    part.snapshot    what it is receiving; survives restarts, so that it goes on where it was
    copy, filled     directories of work under way
"""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from consensus.snapshot import identity
from node.rituals.registry import child_environment
from storage.copy import check_room
from storage.dump import DumpDecoder, Header
from storage.environment import Environment
from storage.errors import DamagedDump, StorageError
from storage.limits import DUMP_CHUNK_BYTES

DIRECTORY: Final = "snapshot"
"""In the data directory."""


class WorkFailed(Exception):
    """The message says why; trying again later may help."""


class DataDamaged(Exception):
    """The rows of this node's own tables are not what was written."""


class Workshop:
    def __init__(self, store: Environment, data_dir: Path) -> None:
        self._store = store
        self._directory = data_dir / DIRECTORY
        self._made: BinaryIO | None = None
        self._part: BinaryIO | None = None
        self._decoder = DumpDecoder()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def open(self) -> None:
        """Removes what a process that was killed has left, but for what it had received."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._clean("copy", "filled", "made.snapshot")

    def stop(self) -> None:
        """From any thread: ends the work under way."""
        self._is_stopped = True
        if self._process is not None:
            self._process.kill()

    # -- giving --

    def check(self) -> None:
        """Raises DataDamaged, WorkFailed, StorageError."""
        check_room(self._store, self._directory, 1)
        self._work("check", self._store.path, self._directory / "copy")

    def make(self) -> tuple[Header, int]:
        """A snapshot of what is applied now, and how many bytes it has. Raises as `check`."""
        self.discard()
        check_room(self._store, self._directory, 2)
        path = self._directory / "made.snapshot"
        answer = self._work("make", self._store.path, self._directory / "copy", path)
        self._made = path.open("rb")
        return _header(answer), path.stat().st_size

    def read(self, offset: int, size: int) -> bytes:
        """Of what was made last."""
        if self._made is None:
            return b""
        self._made.seek(offset)
        return self._made.read(size)

    def discard(self) -> None:
        if self._made is not None:
            self._made.close()
            self._made = None
        self._clean("made.snapshot")

    # -- receiving --

    def received(self) -> tuple[bytes, int]:
        """Identity of the snapshot that is being received, if it is known, and how much of it is here and whole."""
        if self._part is None:
            self._open_part()
        assert self._part is not None
        header = self._decoder.header
        return b"" if header is None else identity(header), self._part.tell()

    def receive(self, offset: int, data: bytes) -> bool:
        """The next bytes; at 0 those of another snapshot, for which the former is given up. Whether it is complete.
        Raises DamagedDump, and forgets all then; StorageError."""
        if self._part is None:
            self._open_part()
        assert self._part is not None
        if offset == 0 and self._part.tell():
            self._forget()
            self._open_part()
        if offset != self._part.tell():
            return self._decoder.is_complete
        try:
            self._decoder.feed(data)
        except StorageError:
            self._forget()
            raise
        self._part.write(data)
        self._part.flush()
        return self._decoder.is_complete

    def fill(self) -> tuple[Header, Callable[[], Any]]:
        """What was received as a store: its header, and what opens it. Raises WorkFailed, StorageError."""
        check_room(self._store, self._directory, 1)
        filled = self._directory / "filled"
        part = self._directory / "part.snapshot"
        try:
            answer = self._work("fill", part, filled)
        finally:
            self._forget()
        tables = self._store.tables
        return _header(answer), lambda: Environment.open(filled, tables)

    def clean(self) -> None:
        """After an installation, or when none is wanted any more."""
        self._forget()
        self._clean("filled")

    # -- inside --

    def _work(self, *arguments: object) -> dict[str, Any]:
        if self._is_stopped:
            raise WorkFailed("this node is stopping")
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "node.snapshot_worker", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
        )
        output, problem = self._process.communicate()
        code, self._process = self._process.returncode, None
        if code:
            last = problem.decode(errors="replace").strip().splitlines()[-1:]
            raise WorkFailed(f"the process that works on it ended with {code}: {' '.join(last)}")
        answer: dict[str, Any] = json.loads(output)
        if "error" in answer:
            raise WorkFailed(answer["error"])
        if answer.get("sound") is False:
            raise DataDamaged
        return answer

    def _open_part(self) -> None:
        path = self._directory / "part.snapshot"
        path.touch(mode=0o600)
        self._part = path.open("r+b")
        self._decoder = DumpDecoder()
        try:
            while data := self._part.read(DUMP_CHUNK_BYTES):
                self._decoder.feed(data)
        except StorageError:  # torn by a crash of the machine
            self._decoder = DumpDecoder()
            self._part.seek(0)
            self._part.truncate()

    def _forget(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None
        self._clean("part.snapshot")

    def _clean(self, *names: str) -> None:
        for name in names:
            path = self._directory / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()


def _header(answer: dict[str, Any]) -> Header:
    try:
        return msgspec.msgpack.decode(bytes.fromhex(answer["header"]), type=Header)
    except (KeyError, ValueError, msgspec.DecodeError) as error:
        raise DamagedDump(f"the process that worked on it gave no answer: {error}") from error
