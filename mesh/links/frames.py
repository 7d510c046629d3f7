"""Cuts a byte stream into frames and builds them: `u32 length | u8 kind | body`.

Sans-I/O. Big-endian; the length counts kind and body, and is judged before a single byte of the body is kept, so that
no peer makes us hold more than the cap. A stream that broke the rules once cannot be resynchronised: `FrameError`, and
the link is closed.
"""

import struct
from enum import IntEnum

from mesh.errors import FrameError
from mesh.limits import FRAME_BYTES_MAX, NAME_BYTES_MAX

_HEADER = struct.Struct("!IB")
_ID = struct.Struct("!I")
_ID_AND_NAME = struct.Struct("!IB")

HEADER_BYTES = _HEADER.size


class Kind(IntEnum):
    """What a frame is. Numbers are the wire format: never reuse one."""

    HELLO = 1  # dialler -> acceptor, MessagePack Hello
    WELCOME = 2  # acceptor -> dialler, MessagePack Hello
    REFUSE = 3  # either way, MessagePack Refuse; the sender closes
    PING = 4  # 8 bytes chosen by the sender
    PONG = 5  # the same 8 bytes
    RAFT = 6  # opaque
    REQUEST = 7  # u32 id | u8 length of method | method | payload
    RESPONSE = 8  # u32 id | payload
    FAILURE = 9  # u32 id | u8 length of code | code | message
    CANCEL = 10  # u32 id: the requester no longer waits
    NOTICE = 11  # u8 length of topic | topic | payload
    PEERS = 12  # MessagePack list of known peers
    FOUNDING = 13  # MessagePack founding message
    BYE = 14  # MessagePack Refuse: why the sender closes an established link
    STREAM = 15  # first frame of a stream, both ways: MessagePack StreamHello


_KIND_OF = {int(kind): kind for kind in Kind}


def pack(kind: Kind, body: bytes) -> bytes:
    """One frame. FrameError `oversized_frame` if the body exceeds the cap: the caller must split or refuse."""
    length = len(body) + 1
    if length > FRAME_BYTES_MAX:
        raise oversized(length, FRAME_BYTES_MAX)
    return _HEADER.pack(length, kind) + body


def pack_id(kind: Kind, request_id: int, payload: bytes) -> bytes:
    """A RESPONSE or CANCEL frame."""
    return pack(kind, _ID.pack(request_id) + payload)


def pack_call(kind: Kind, request_id: int, name: bytes, payload: bytes) -> bytes:
    """A REQUEST (name is the method) or FAILURE (name is the code) frame."""
    if len(name) > NAME_BYTES_MAX:
        raise FrameError("oversized_frame", f"the name has {len(name)} bytes, at most {NAME_BYTES_MAX} are allowed")
    return pack(kind, _ID_AND_NAME.pack(request_id, len(name)) + name + payload)


def pack_notice(topic: bytes, payload: bytes) -> bytes:
    if len(topic) > NAME_BYTES_MAX:
        raise FrameError("oversized_frame", f"the topic has {len(topic)} bytes, at most {NAME_BYTES_MAX} are allowed")
    return pack(Kind.NOTICE, bytes((len(topic),)) + topic + payload)


def unpack_id(body: bytes) -> tuple[int, bytes]:
    if len(body) < 4:
        raise _garbage("a frame without its request id")
    return _ID.unpack_from(body)[0], body[4:]


def unpack_call(body: bytes) -> tuple[int, str, bytes]:
    if len(body) < 5 or len(body) < 5 + body[4]:
        raise _garbage("a request frame that ends early")
    request_id, length = _ID_AND_NAME.unpack_from(body)
    return request_id, _text(body[5 : 5 + length]), body[5 + length :]


def unpack_notice(body: bytes) -> tuple[str, bytes]:
    if not body or len(body) < 1 + body[0]:
        raise _garbage("a notice frame that ends early")
    length = body[0]
    return _text(body[1 : 1 + length]), body[1 + length :]


class FrameParser:
    """Bytes in any pieces in, whole frames out. `frame_bytes_max` may be raised once the peer is welcome."""

    __slots__ = ("_buffer", "frame_bytes_max")

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[Kind, bytes]]:
        """The frames completed by `data`, in order.

        Raises FrameError with code `oversized_frame` (the length is above the cap) or `garbage` (unknown kind, empty
        frame); frames before the bad one in the same piece are lost, as the link closes anyway.
        """
        buffer = self._buffer
        if buffer:
            buffer += data
            whole = bytes(buffer) if self._has_frame(buffer) else b""
            if not whole:
                return []
            data = whole
            buffer.clear()
        frames: list[tuple[Kind, bytes]] = []
        position, end = 0, len(data)
        while end - position >= HEADER_BYTES:
            length = self._check(data, position)
            stop = position + 4 + length
            if stop > end:
                break
            frames.append((_KIND_OF[data[position + 4]], data[position + HEADER_BYTES : stop]))
            position = stop
        if position < end:
            buffer += data[position:] if position else data
        return frames

    def _has_frame(self, buffer: bytearray) -> bool:
        """Checked before copying, so that a big frame that arrives in pieces is copied once, not once a piece."""
        return len(buffer) >= HEADER_BYTES and len(buffer) >= 4 + self._check(buffer, 0)

    def _check(self, data: bytes | bytearray, position: int) -> int:
        length, kind = _HEADER.unpack_from(data, position)
        if kind not in _KIND_OF:
            raise _garbage(f"an unknown frame kind {kind}")
        if length > self.frame_bytes_max:
            raise oversized(length, self.frame_bytes_max)
        if length == 0:
            raise _garbage("an empty frame")
        return int(length)


def oversized(length: int, length_max: int) -> FrameError:
    return FrameError("oversized_frame", f"a frame of {length} bytes, at most {length_max} are allowed")


def _garbage(what: str) -> FrameError:
    return FrameError("garbage", f"the peer sent {what}")


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise _garbage("a name that is not UTF-8") from None
