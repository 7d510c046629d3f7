"""Where snapshots are made, received and turned into stores: files in the data directory, and processes that do the
heavy work (`node.snapshot_worker`). Everything here blocks; it is called on threads, one call at a time.

    made.snapshot    what this node gives to others
    part.snapshot    what it is receiving; survives restarts, so that it goes on where it was
    copy, filled     directories of work under way
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

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
        self._made = self._directory / "made.snapshot"
        self._part = self._directory / "part.snapshot"
        self._decoder: DumpDecoder | None = None
        """Has taken what was received, once that has been looked at."""
        self._part_bytes = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def open(self) -> None:
        """Removes what a process that was killed has left, but for what it had received."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._clean("copy", "filled")
        self.discard()

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
        answer = self._work("make", self._store.path, self._directory / "copy", self._made)
        return _header(answer), self._made.stat().st_size

    def read(self, offset: int, size: int) -> bytes:
        """Of what was made last."""
        try:
            with self._made.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError:  # discarded
            return b""

    def discard(self) -> None:
        self._made.unlink(missing_ok=True)

    # -- receiving --

    def received(self) -> tuple[bytes, int]:
        """Identity of the snapshot that is being received, if it is known, and how much of it is here and whole."""
        header = self._look_at_part().header
        return b"" if header is None else identity(header), self._part_bytes

    def receive(self, offset: int, data: bytes) -> bool:
        """The next bytes; at 0 those of another snapshot, for which the former is given up. Whether it is complete.
        Raises DamagedDump, and forgets all then; StorageError."""
        decoder = self._look_at_part()
        if offset == 0 and self._part_bytes:
            self._forget()
            decoder = self._look_at_part()
        if offset != self._part_bytes:
            return decoder.is_complete
        try:
            decoder.feed(data)
        except StorageError:
            self._forget()
            raise
        with self._part.open("ab") as file:
            file.write(data)
        self._part_bytes += len(data)
        return decoder.is_complete

    def fill(self) -> tuple[Header, Callable[[], Any]]:
        """What was received as a store: its header, and what opens it. Raises WorkFailed, StorageError."""
        check_room(self._store, self._directory, 1)
        filled = self._directory / "filled"
        try:
            answer = self._work("fill", self._part, filled)
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
        try:
            answer: dict[str, Any] = json.loads(output)
        except ValueError as error:
            raise WorkFailed(f"the process that works on it gave no answer: {error}") from error
        if "error" in answer:
            raise WorkFailed(answer["error"])
        if answer.get("sound") is False:
            raise DataDamaged
        return answer

    def _look_at_part(self) -> DumpDecoder:
        if self._decoder is None:
            decoder, size = DumpDecoder(), 0
            self._part.touch(mode=0o600)
            try:
                with self._part.open("rb") as file:
                    while data := file.read(DUMP_CHUNK_BYTES):
                        decoder.feed(data)
                        size += len(data)
            except StorageError:  # torn by a crash of the machine
                self._part.unlink()
                decoder, size = DumpDecoder(), 0
            self._decoder, self._part_bytes = decoder, size
        return self._decoder

    def _forget(self) -> None:
        self._decoder = None
        self._part.unlink(missing_ok=True)

    def _clean(self, *directories: str) -> None:
        for directory in directories:
            shutil.rmtree(self._directory / directory, ignore_errors=True)


def _header(answer: dict[str, Any]) -> Header:
    try:
        return msgspec.msgpack.decode(bytes.fromhex(answer["header"]), type=Header)
    except (KeyError, ValueError, msgspec.DecodeError) as error:
        raise DamagedDump(f"the process that worked on it gave no answer: {error}") from error
