"""The caps of the HTTP face, with unit and reason. Beyond them a request is refused, counted and told so."""

from typing import Final

CONNECTIONS_MAX: Final = 2_000
"""Open TCP connections: at about 20 KiB each 40 MiB; below the usual 4,096 file descriptors with room for links."""

REQUESTS_MAX: Final = 1_000
"""Requests being answered at once, long-polls and event streams not counted: they have caps of their own."""

IDLE_S: Final = 75.0
"""An idle or half-sent request's connection is closed after this; longer than the 60 s of common proxies."""

BODY_S: Final = 20.0
"""A body must have arrived within this: 1 MiB at 52 KiB/s."""

WRITE_S: Final = 20.0
"""A watcher that does not take what is written to it for so long is closed."""

HEARTBEAT_S: Final = 15.0
"""Silence on an event stream is broken by a comment, so that proxies and clients know it lives."""

HEADER_LINE_BYTES_MAX: Final = 8_190
HEADERS_MAX: Final = 64
KEY_CHARACTERS_MAX: Final = 255
"""Of an Idempotency-Key."""

STREAM_BUFFER_BYTES: Final = 64 << 10
"""Bytes of an event stream that wait for a slow client before writing to it pauses."""

SHUTDOWN_S: Final = 1.0
"""For requests being answered when the node stops."""
