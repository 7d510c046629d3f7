"""Keys that sort like what they stand for. Tables are ordered maps, so the order of keys is the order of rows."""


def u64(number: int) -> bytes:
    """8 bytes, big-endian: sorts like the number. Raises OverflowError outside 0..2^64-1."""
    return number.to_bytes(8, "big")


def from_u64(key: bytes) -> int:
    return int.from_bytes(key, "big")


def prefix_end(prefix: bytes) -> bytes | None:
    """The first key after all keys that begin with `prefix`; None if there is none (all 0xff)."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return None
    return stripped[:-1] + bytes([stripped[-1] + 1])
