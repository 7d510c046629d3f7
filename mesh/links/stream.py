"""A second TLS connection to a linked peer that carries Raft frames only, and is read and written by the thread that
owns the replica, not by the event loop: a frame goes from replica to replica without waking either loop, and bulk on
the link never stands before it.

Made on the loop (`mesh.links.streams`), then owned by one thread. A stream that fails is closed by its owner; Raft
frames take the link until there is a new one. It ends with the link it belongs to.
"""

import contextlib
import ssl
from collections.abc import Callable

from mesh.errors import FrameError
from mesh.limits import STREAM_READ_BYTES, STREAM_UNSENT_BYTES_MAX
from mesh.links.frames import FrameParser, Kind, pack
from mesh.links.tls import RECORD_BYTES_MAX, TlsConnection


class Stream:
    """Every method may raise OSError: the stream is over, close it. `on_closed` is called once, on the owner's thread.
    Counters may be read from any thread."""

    def __init__(
        self, connection: TlsConnection, parser: FrameParser, early: list[bytes], on_closed: Callable[[], None]
    ) -> None:
        self._tls, self._incoming, self._outgoing = connection.ssl_object, connection.incoming, connection.outgoing
        self._socket = connection.detach()
        self._parser = parser
        self._arrived = early
        self._on_closed = on_closed
        self._unsent = bytearray()
        self._is_closed = False
        self.is_outdated = False
        """Set from any thread: a newer one is wanted, and the next thing sent goes another way."""
        self.frames_in = self.frames_out = self.bytes_in = self.bytes_out = self.dropped = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for the socket: `flush` when it can be written."""
        return bool(self._unsent)

    def receive(self) -> list[bytes]:
        """Payloads that have arrived, in order; none if there are none. Never blocks."""
        payloads, self._arrived = self._arrived, []
        try:
            data = self._socket.recv(STREAM_READ_BYTES)
        except BlockingIOError:
            return payloads
        if not data:
            raise ConnectionResetError("the peer closed the stream")
        self.bytes_in += len(data)
        self._incoming.write(data)
        try:
            for kind, body in self._parser.feed(self._decrypt()):
                if kind is not Kind.RAFT:
                    raise ConnectionAbortedError(f"a frame of kind {kind.name} on a stream")
                payloads.append(body)
        except FrameError as error:
            raise ConnectionAbortedError(str(error)) from error
        self.frames_in += len(payloads)
        return payloads

    def send(self, payload: bytes) -> bool:
        """False: dropped, as too much is waiting; Raft will repeat it. Never blocks."""
        if self.is_outdated:
            raise ConnectionAbortedError("made anew under new trust")
        if len(self._unsent) > STREAM_UNSENT_BYTES_MAX:
            self.dropped += 1
            return False
        self._tls.write(pack(Kind.RAFT, payload))
        self.frames_out += 1
        self.flush()
        return True

    def flush(self) -> None:
        """Write what the socket takes."""
        self._unsent += self._outgoing.read()
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                sent = self._socket.send(self._unsent)
                self.bytes_out += sent
                del self._unsent[:sent]

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._socket.close()
            self._on_closed()

    def _decrypt(self) -> bytes:
        records: list[bytes] = []
        with contextlib.suppress(ssl.SSLWantReadError):
            while self._incoming.pending and (record := self._tls.read(RECORD_BYTES_MAX)):
                records.append(record)
        return records[0] if len(records) == 1 else b"".join(records)
