"""Snapshots of whole nodes without files and processes: what was received is on the machine's disk and survives, what
was made is lost with the process."""

from collections.abc import Callable
from typing import Any

from consensus import snapshot
from consensus.machine import DomainMachine
from node.workshop import DataDamaged, WorkFailed
from storage.dump import DumpDecoder, Header, encode_dump
from storage.memory import MemoryStore


class VirtualWorkshop:
    def __init__(self, store: MemoryStore, disk: bytearray) -> None:
        self._store = store
        self._part = disk
        self._made = b""
        self._machine = DomainMachine()

    def open(self) -> None:
        """Nothing is left over."""

    def stop(self) -> None:
        """Nothing takes time."""

    def check(self) -> None:
        with self._store.read() as txn:
            if not snapshot.is_sound(txn, self._machine):
                raise DataDamaged

    def make(self) -> tuple[Header, int]:
        with self._store.read() as txn:
            header = snapshot.make_header(txn, self._machine)
            if header is None:
                raise WorkFailed("nothing is applied yet")
            self._made = b"".join(encode_dump(txn, header))
        return header, len(self._made)

    def read(self, offset: int, size: int) -> bytes:
        return self._made[offset : offset + size]

    def discard(self) -> None:
        self._made = b""

    def received(self) -> tuple[bytes, int]:
        header = self._decoded().header
        return b"" if header is None else snapshot.identity(header), len(self._part)

    def receive(self, offset: int, data: bytes) -> bool:
        if offset == 0:
            self._part.clear()
        if offset == len(self._part):
            self._part.extend(data)
        return self._decoded().is_complete

    def fill(self) -> tuple[Header, Callable[[], Any]]:
        filled = MemoryStore(self._store.tables)
        header = snapshot.fill(filled, [bytes(self._part)], self._machine)
        self._part.clear()
        return header, lambda: filled

    def clean(self) -> None:
        self._part.clear()

    def _decoded(self) -> DumpDecoder:
        decoder = DumpDecoder()
        decoder.feed(bytes(self._part))
        return decoder
