"""Canonical MessagePack: the same value always gives the same bytes, and bytes from outside never raise anything but
`CodecError`.

Maps are written in the order of their keys, structs as their type says. Canonical is what `encode` writes; `decode`
does not check that its input was canonical, so digests are taken of what was encoded here, never of foreign bytes.
"""

from hashlib import blake2b
from math import isfinite
from typing import Any, TypeVar

import msgspec

from storage.errors import CodecError
from storage.limits import JSON_DEPTH_MAX

Value = TypeVar("Value")

DIGEST_BYTES = 16

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}
_REFUSED = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1


def encode(value: object, bytes_max: int | None = None) -> bytes:
    """Raises CodecError: `unsupported` for a value MessagePack cannot hold, `too_large` beyond `bytes_max`."""
    try:
        data = _encode(value)
    except _REFUSED as error:
        raise CodecError("unsupported", f"cannot be encoded: {error}") from error
    if bytes_max is not None and len(data) > bytes_max:
        raise CodecError("too_large", f"{len(data)} bytes encoded; at most {bytes_max} are allowed")
    return data


def decoder(kind: type[Value]) -> msgspec.msgpack.Decoder[Value]:
    """The decoder of a type, made once. Its own `decode` raises what it likes; `decode` below does not."""
    found = _decoders.get(kind)
    if found is None:
        found = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return found


def decode(data: bytes, kind: type[Value], bytes_max: int | None = None) -> Value:
    """Raises CodecError: `too_large` before looking inside, `malformed` for anything that is not such a value."""
    if bytes_max is not None and len(data) > bytes_max:
        raise CodecError("too_large", f"{len(data)} bytes; at most {bytes_max} are allowed")
    try:
        return decoder(kind).decode(data)
    except _REFUSED as error:
        raise CodecError("malformed", f"not a valid {getattr(kind, '__name__', kind)}: {error}") from error


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def check_json(value: object, bytes_max: int, depth_max: int = JSON_DEPTH_MAX) -> None:
    """Refuse what is not plain JSON: None, bool, int of 64 bits, finite float, str, list, dict with str keys.

    Exact types only: a subclass may encode as anything. `bytes_max` counts the encoded form, `depth_max` the nesting
    (a scalar is 0 deep, an empty list 1). Raises CodecError `unsupported`, `too_deep` or `too_large`.
    """
    left = bytes_max
    stack: list[tuple[object, int]] = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        left -= 1  # every value takes a byte at least; so shared and cyclic structures cannot keep us busy
        kind = type(item)
        if item is None or kind is bool:
            pass
        elif isinstance(item, str) and kind is str:
            left -= len(item)
        elif isinstance(item, int) and kind is int:
            if not _INT_MIN <= item <= _INT_MAX:
                raise CodecError("unsupported", "an integer does not fit 64 bits; send it as a string")
        elif isinstance(item, float) and kind is float:
            if not isfinite(item):
                raise CodecError("unsupported", f"{item} is not JSON; use null or a string")
        elif (isinstance(item, list) and kind is list) or (isinstance(item, dict) and kind is dict):
            depth += 1
            if depth > depth_max:
                raise CodecError("too_deep", f"nested more than {depth_max} deep")
            if len(item) > left:
                raise _too_large(bytes_max)
            if isinstance(item, dict):
                for key in item:
                    if type(key) is not str:
                        raise CodecError("unsupported", f"a key of type {type(key).__name__}; keys must be strings")
                    left -= 1 + len(key)
                stack.extend((child, depth) for child in item.values())
            else:
                stack.extend((child, depth) for child in item)
        else:
            raise CodecError("unsupported", f"{kind.__name__} is not JSON; use null, booleans, numbers, strings, "
                                            "lists and maps with string keys")  # fmt: skip
        if left < 0:
            raise _too_large(bytes_max)
    encode(value, bytes_max)  # the exact size; and strings that are not valid Unicode


def _too_large(bytes_max: int) -> CodecError:
    return CodecError("too_large", f"more than {bytes_max} bytes encoded")
