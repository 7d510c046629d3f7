"""TLS for one connection over asyncio's plain transport, by `ssl.MemoryBIO`.

Why not `loop.start_tls`: when a handshake fails asyncio closes the socket without sending the alert, so the other side
sees a hang-up and cannot say why. Here the alert is flushed first: a wrong secret is named on both sides. It is also
one layer and one copy less on the way of every frame.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from typing import Any

RECORD_BYTES_MAX = 16 * 1024  # an SSLObject yields at most one TLS record a read (RFC 8446, section 5.1)


class TlsUser(asyncio.Protocol):
    """What reads and writes plain bytes: `Link`. `attach` is called once, when the handshake is done."""

    def attach(self, connection: "TlsConnection") -> None:
        raise NotImplementedError


class TlsConnection(asyncio.Protocol):
    """Between a raw transport (reading paused) and a `TlsUser`. Await `handshaken` after `start()`."""

    def __init__(self, raw: asyncio.Transport, context: ssl.SSLContext, user: TlsUser, *, is_server: bool) -> None:
        self._raw = raw
        self._user = user
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(self.incoming, self.outgoing, server_side=is_server)
        self._is_ready = False
        self._is_ended = False
        self._error: Exception | None = None
        self.handshaken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Take the raw transport over and shake hands."""
        self._raw.set_protocol(self)
        self._shake()
        self._raw.resume_reading()

    # --- for the user ---

    def write(self, data: bytes) -> None:
        """Encrypt and send. Bytes beyond the high-water mark pause the user; none are refused."""
        try:
            self.ssl_object.write(data)
        except ssl.SSLError as error:
            self._fail(error)
        self._flush()

    def close(self) -> None:
        """Flush, say close_notify, end our direction, and close when the peer does; `abort()` if it does not.

        Closing outright while bytes of the peer lie unread would reset the connection, and our last word with it.
        """
        if self._is_ready and not self.is_closing():
            with contextlib.suppress(ssl.SSLError, ValueError):
                self.ssl_object.unwrap()  # wants the peer's close_notify; ours is written, which is all that matters
            self._flush()
            self._is_ended = True
            try:
                self._raw.write_eof()
            except OSError:  # the peer has reset the connection, and the loop has not heard of it yet
                self._raw.abort()
        elif not self._is_ended:
            self._raw.close()

    def abort(self) -> None:
        self._raw.abort()

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    def detach(self) -> socket.socket:
        """The connection without its transport, which ends: whoever has `ssl_object` and its two buffers goes on with
        it. Reading must be paused. ConnectionError if the socket has not taken everything that was written."""
        if self._raw.is_closing() or self._raw.get_write_buffer_size():
            raise ConnectionAbortedError("the connection is closing or stuck")
        copy = socket.socket(fileno=os.dup(self._raw.get_extra_info("socket").fileno()))
        copy.setblocking(False)
        self._raw.abort()  # closes its own descriptor, not the connection
        return copy

    def is_closing(self) -> bool:
        return self._is_ended or self._raw.is_closing()

    def set_write_buffer_limits(self, *, high: int, low: int) -> None:
        self._raw.set_write_buffer_limits(high=high, low=low)

    def get_extra_info(self, name: str) -> Any:
        return self._raw.get_extra_info(name)

    # --- asyncio.Protocol ---

    def data_received(self, data: bytes) -> None:
        if self._is_ended:
            return
        self.incoming.write(data)
        if not self._is_ready:
            self._shake()
        if self._is_ready:
            self._read()

    def eof_received(self) -> bool:
        return False  # close: half-open links are of no use

    def pause_writing(self) -> None:
        self._user.pause_writing()

    def resume_writing(self) -> None:
        self._user.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        error = self._error or exc
        if not self.handshaken.done():
            self.handshaken.set_exception(error or ConnectionResetError("the peer closed the connection"))
            self.handshaken.exception()  # seen, in case nobody waits any more
        self._user.connection_lost(error)

    # --- within ---

    def _shake(self) -> None:
        if self._error is not None:
            return
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._flush()
        self._is_ready = True
        self._user.attach(self)
        if not self.handshaken.done():
            self.handshaken.set_result(None)

    def _read(self) -> None:
        records: list[bytes] = []
        is_over = False
        try:
            # Asking again when nothing is left would only raise SSLWantReadError, once for every frame of a quiet link.
            while self.incoming.pending:
                if not (record := self.ssl_object.read(RECORD_BYTES_MAX)):
                    is_over = True
                    break
                records.append(record)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            is_over = True
            if not isinstance(error, (ssl.SSLZeroReturnError, ssl.SSLEOFError)):
                self._fail(error)
        if records:
            self._user.data_received(records[0] if len(records) == 1 else b"".join(records))
        if self.outgoing.pending:
            self._flush()
        if is_over:
            self._raw.close()

    def _flush(self) -> None:
        if data := self.outgoing.read():
            self._raw.write(data)

    def _fail(self, error: ssl.SSLError) -> None:
        """The alert that says why is in the outgoing buffer: send it before the end."""
        self._error = self._error or error
        self._flush()
        if not self.handshaken.done():
            self.handshaken.set_exception(error)
            self.handshaken.exception()
        self._raw.close()
