"""A TLS connection that its peer has reset."""

import asyncio
import errno
import ssl
from typing import Any

from mesh.links.tls import TlsConnection, TlsUser


class Reset(asyncio.Transport):
    """The kernel knows of the reset, the loop does not."""

    def __init__(self) -> None:
        super().__init__()
        self.is_aborted = False

    def is_closing(self) -> bool:
        return self.is_aborted

    def write(self, data: Any) -> None:
        """Accepted, and lost."""

    def write_eof(self) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    def abort(self) -> None:
        self.is_aborted = True


def test_closing_after_a_reset_ends_the_connection() -> None:
    async def check() -> None:
        raw = Reset()
        connection = TlsConnection(raw, ssl.create_default_context(), TlsUser(), is_server=False)
        connection._is_ready = True
        connection.close()
        assert raw.is_aborted
        assert connection.is_closing()

    asyncio.run(check())
