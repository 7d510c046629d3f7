"""MessagePack in workers. The `msgpack` package rather than msgspec, because it is imported five times as fast."""

from typing import Any

import msgpack  # type: ignore[import-untyped]


def pack(value: object) -> bytes:
    """ValueError, TypeError or OverflowError if it cannot be packed."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack_messages(payload: bytes) -> list[list[Any]]:
    messages: list[list[Any]] = msgpack.unpackb(payload, strict_map_key=False)
    return messages
